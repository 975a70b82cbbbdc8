"""Every bad document lands in quarantine under its kind, with its file and line; the others are all there."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.artifacts.tokens import TokenSplit
from pipeline.artifacts.vocabulary import gpt2_encoding
from pipeline.config import TokensConfig
from pipeline.errors import ResourceError, StageError
from pipeline.tokens.documents import Bad
from pipeline.tokens.sources import list_sources, read
from tests.tokens_lab import jsonl, make, quarantine, record, write_lines

GOOD = [f"good document {i}, of some words" for i in range(60)]
ANY = {"max_bad_fraction": 1.0, "val_fraction": 0.3}


def texts(artifact) -> list[str]:
    found = []
    for split in ("train", "val"):
        tokens = TokenSplit(artifact, split)
        found += gpt2_encoding().decode(tokens.read(0, tokens.n_tokens).tolist()).split("<|endoftext|>")[:-1]
    return sorted(found)


def all_accounted(summary) -> bool:
    written = sum(summary[split]["n_documents"] for split in ("train", "val", "test") if split in summary)
    return summary["documents_in"] == written + sum(summary["bad"].values()) + summary["duplicates_dropped"]


BAD_LINES = [
    (b'{"text": "unfinished', "malformed_json"),
    (b"not json at all", "malformed_json"),
    (b'["text"]', "malformed_json"),
    (b"[" * 100_000, "malformed_json"),
    (b'{"meta": {"pile_set_name": "Test"}}', "missing_text"),
    (b'{"text": null}', "missing_text"),
    (b'{"text": 17}', "text_not_a_string"),
    (b'{"text": ["a", "list"]}', "text_not_a_string"),
    (b'{"text": "broken \xff\xfe bytes"}', "invalid_utf8"),
    (b'{"text": ""}', "empty_document"),
    (b'{"text": "half a pair \\ud83d alone"}', "lone_surrogate"),
    (b'{"text": "fine", "meta": {"pile_set_name": "half \\udc80"}}', "lone_surrogate"),
    (record("x" * 5000), "too_large"),
]


@pytest.mark.parametrize(("line", "kind"), BAD_LINES)
@pytest.mark.parametrize("suffix", ["", ".zst"])
def test_a_bad_line_is_quarantined_alone(tmp_path, line, kind, suffix):
    lines = [record(text) for text in GOOD]
    lines.insert(41, line)
    path = write_lines(tmp_path / f"shard.jsonl{suffix}", lines)
    artifact = make(tmp_path / "store", jsonl(train=(str(path),), max_document_bytes=4000, **ANY))
    if kind == "malformed_json" and len(line) > 4000:
        kind = "too_large"
    assert artifact.summary["bad"] == {kind: 1}
    (row,) = quarantine(artifact)
    assert (row["kind"], row["origin_file"], row["origin_line"]) == (kind, str(path), 42)
    assert texts(artifact) == sorted(GOOD)
    assert all_accounted(artifact.summary)


@settings(max_examples=25, deadline=None)
@given(
    mixture=st.lists(st.sampled_from(["good", "copy", *range(len(BAD_LINES))]), max_size=30), n_files=st.integers(1, 3)
)
def test_nothing_is_lost_of_any_mixture(tmp_path_factory, mixture, n_files):
    """Every line of every file is written, in quarantine under its own file, line and kind, or dropped as a copy of val."""
    folder = tmp_path_factory.mktemp("mixture")
    written, set_aside = ["always"], []
    files = {folder / f"{number}.jsonl.zst": [] for number in range(n_files)}
    for number, what in enumerate(mixture):
        path, lines = [*files.items()][number % n_files]
        if isinstance(what, int):
            line, kind = BAD_LINES[what]
            set_aside.append((str(path), len(lines) + 1, "too_large" if len(line) > 4000 else kind))
        else:
            line = record("held out" if what == "copy" else f"good {number}")
            written += [f"good {number}"] * (what == "good")
        lines.append(line)
    for number, (path, lines) in enumerate(files.items()):
        write_lines(path, [*lines, *[record("always")] * (number == 0)])
    val = write_lines(folder / "val.jsonl", [record("held out")])
    config = jsonl(train=(f"{folder}/*.zst",), val=(str(val),), max_document_bytes=4000, max_bad_fraction=1.0)
    artifact = make(folder / "store", config)
    assert texts(artifact) == sorted([*written, "held out"])
    assert sorted((row["origin_file"], row["origin_line"], row["kind"]) for row in quarantine(artifact)) == sorted(
        set_aside
    )
    assert artifact.summary["duplicates_dropped"] == mixture.count("copy")
    assert artifact.summary["documents_in"] == len(mixture) + 2 and all_accounted(artifact.summary)


def test_deep_json_does_not_break_the_reader(tmp_path):
    path = write_lines(tmp_path / "shard.jsonl", [*map(record, GOOD), b'{"a":' * 50_000, record("last")])
    artifact = make(tmp_path / "store", jsonl(train=(str(path),), **ANY))
    assert artifact.summary["bad"] == {"malformed_json": 1} and texts(artifact) == sorted([*GOOD, "last"])


def test_what_is_no_fault_is_taken(tmp_path):
    lines = [
        *map(record, GOOD),
        b"",
        b"   ",
        b'{"text": "no meta"}',
        b'{"text": "nan too", "score": NaN, "big": 1e999}',
    ]
    path = write_lines(tmp_path / "shard.jsonl", lines)
    path.write_bytes(path.read_bytes() + b'{"text": "no newline at the end, \\u00e9\\ud83d\\ude00"}')
    artifact = make(tmp_path / "store", jsonl(train=(str(path),), val_fraction=0.3))
    assert texts(artifact) == sorted([*GOOD, "no meta", "nan too", "no newline at the end, \u00e9\U0001f600"])
    assert artifact.summary["bad"] == {}
    assert {"Test", "unknown"} == {*artifact.summary["train"]["domains"], *artifact.summary["val"]["domains"]}


@pytest.mark.parametrize("pack", [zstandard.compress, gzip.compress])
@pytest.mark.parametrize("harm", ["truncated", "garbage at the end", "corrupt"])
def test_a_damaged_file_gives_what_can_be_read_of_it(tmp_path, pack, harm, caplog):
    rng = np.random.default_rng(0)
    many = [f"document {i} {rng.integers(0, 10**18)}" for i in range(20_000)]
    whole = pack(b"".join(record(text) + b"\n" for text in many))
    damaged = {
        "truncated": whole[: len(whole) // 2],
        "garbage at the end": whole + b"garbage",
        "corrupt": whole[: len(whole) // 2] + bytes(64) + whole[len(whole) // 2 + 64 :],
    }[harm]
    path = tmp_path / ("shard.jsonl.zst" if pack is zstandard.compress else "shard.jsonl.gz")
    path.write_bytes(damaged)
    artifact = make(tmp_path / "store", jsonl(train=(str(path),), **ANY))
    found = texts(artifact)
    assert artifact.summary["bad"]["damaged_file"] == 1 and all_accounted(artifact.summary)
    if harm == "corrupt":
        assert 0.3 * len(many) < len(found) < 0.6 * len(many)  # deflate may run on a little into nonsense
    else:
        assert set(found) <= set(many)
    assert f"of 1 sources only a part could be read: ['{path}']" in caplog.text
    row = quarantine(artifact)[-1]
    assert (row["kind"], row["origin_line"]) == ("damaged_file", artifact.summary["documents_in"])
    if harm == "garbage at the end":
        assert found == sorted(many)
    else:
        assert len(found) > 0.3 * len(many)


@pytest.mark.parametrize("suffix", ["zst", "gz"])
def test_a_compressed_file_without_a_byte_is_damaged(tmp_path, suffix):
    """A copy that stopped before it began; the compressed form of nothing has some bytes."""
    write_lines(tmp_path / "good.jsonl", map(record, GOOD))
    (tmp_path / f"torn.jsonl.{suffix}").write_bytes(b"")
    (tmp_path / f"void.jsonl.{suffix}").write_bytes({"zst": zstandard.compress, "gz": gzip.compress}[suffix](b""))
    artifact = make(tmp_path / "store", jsonl(train=(str(tmp_path / "*.jsonl*"),), **ANY))
    (row,) = quarantine(artifact)
    assert (row["kind"], row["origin_file"]) == ("damaged_file", str(tmp_path / f"torn.jsonl.{suffix}"))
    assert texts(artifact) == sorted(GOOD) and all_accounted(artifact.summary)


def test_a_document_of_200_megabytes_is_set_aside_in_little_memory(tmp_path):
    import tracemalloc

    path = tmp_path / "shard.jsonl.zst"
    with path.open("wb") as file, zstandard.ZstdCompressor().stream_writer(file) as packed:
        packed.write(b"\n".join(map(record, GOOD[:30])) + b'\n{"text": "')
        for _ in range(200):
            packed.write(b"word " * 200_000)
        packed.write(b'"}\n' + b"\n".join(map(record, GOOD[30:])))
    tracemalloc.start()
    artifact = make(tmp_path / "store", jsonl(train=(str(path),), max_document_bytes=8 << 20, **ANY))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    (row,) = quarantine(artifact)
    assert (row["kind"], row["origin_line"]) == ("too_large", 31)
    assert texts(artifact) == sorted(GOOD)
    assert peak < 100 << 20


def test_too_many_bad_documents_stop_the_stage_and_name_the_worst_file(tmp_path):
    write_lines(tmp_path / "a.jsonl", [record("fine"), b"bad"])
    write_lines(tmp_path / "b.jsonl", [record("fine too"), b"bad", b"bad", b'{"text": 1}'])
    config = {"train": (str(tmp_path / "*.jsonl"),), "val_fraction": 0.5}
    with pytest.raises(
        StageError, match=r"4 of 6 documents are unreadable; the worst file is .*b\.jsonl \(2 malf"
    ) as raised:
        make(tmp_path / "store", jsonl(**config, max_bad_fraction=0.6))
    told = raised.value.fix.split()[1].rstrip(";")
    assert len([json.loads(line) for line in open(told)]) == 3  # noqa: SIM115, PTH123
    assert not list((tmp_path / "store").glob("tokens/*"))


@pytest.mark.parametrize("empty", [b"", b"\n\n"])
def test_a_corpus_without_a_document_is_refused(tmp_path, empty):
    (tmp_path / "empty.jsonl").write_bytes(empty)
    with pytest.raises(StageError, match="no document is left for train"):
        make(tmp_path / "store", jsonl(train=(str(tmp_path / "empty.jsonl"),)))


def test_missing_and_unreadable_sources_are_told(tmp_path):
    with pytest.raises(ResourceError, match=r"no file matches .*nowhere/\*\.jsonl"):
        make(tmp_path / "store", jsonl(train=(str(tmp_path / "nowhere" / "*.jsonl"),)))
    with pytest.raises(ValueError, match="train names no files"):
        jsonl()
    with pytest.raises(ValueError, match="takes no files"):
        TokensConfig(train=("x.jsonl",))


def test_bad_rows_and_files_of_parquet(tmp_path):
    column = pa.array([*GOOD, None, "", "x" * 5000])
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet", row_group_size=7)
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(whole[:-20])
    torn = bytearray(whole)
    torn[40:80] = bytes(40)
    (tmp_path / "c.parquet").write_bytes(torn)
    invalid = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(bytes([0, 0, 0, 0, 2, 0, 0, 0])), pa.py_buffer(b"\xff\xfe")]
    )
    pq.write_table(pa.table({"text": invalid}), tmp_path / "d.parquet")
    pq.write_table(pa.table({"text": pa.array([3])}), tmp_path / "e.parquet")
    config = TokensConfig(source="parquet", train=(str(tmp_path / "*.parquet"),), max_document_bytes=4000, **ANY)
    artifact = make(tmp_path / "store", config)
    found = {(row["origin_file"][-9], row["origin_line"]): row["kind"] for row in quarantine(artifact)}
    assert found == {
        ("a", 61): "missing_text",
        ("a", 62): "empty_document",
        ("a", 63): "too_large",
        ("b", 1): "damaged_file",
        ("c", 1): "damaged_file",
        ("d", 1): "invalid_utf8",
        ("e", 1): "text_not_a_string",
    }
    assert texts(artifact) == sorted(GOOD) and all_accounted(artifact.summary)


def test_bad_rows_and_files_of_hugging_face_datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    rows = {"text": pa.array([*GOOD, None, "", "x" * 5000])}
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    whole = (tmp_path / "rows.parquet").read_bytes()
    torn = bytearray(whole)
    torn[40:80] = bytes(40)
    (tmp_path / "torn.parquet").write_bytes(torn)
    write_lines(tmp_path / "a.jsonl", map(record, GOOD))
    write_lines(tmp_path / "b.jsonl", [*map(record, GOOD), b'{"text": "unfinished'])
    lines = b"".join(record(f"{text} {'and more ' * 900}") + b"\n" for text in GOOD)
    (tmp_path / "short.jsonl.gz").write_bytes(gzip.compress(lines)[:-200])

    def bad(reader, name):
        config = TokensConfig(source="huggingface", train=(f"{reader}?data_files={tmp_path / name}",))
        config = config.model_copy(update={"max_document_bytes": 4000})
        documents = [
            d for source in list_sources(config, tmp_path) for d in read(source, config, lambda position: None)
        ]
        return [(d.kind, d.origin_line) for d in documents if isinstance(d, Bad) and d.kind != "too_large"]

    assert bad("parquet", "rows.parquet") == [("missing_text", 61), ("empty_document", 62)]
    assert bad("json", "*.jsonl") == [("damaged_file", 1)]  # of the second file; the first is read
    for reader, name in (("json", "short.jsonl.gz"), ("parquet", "torn.parquet")):  # as if a network failed
        with pytest.raises(ResourceError, match="cannot read the dataset"):
            bad(reader, name)


def test_bad_text_files(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for i, text in enumerate(GOOD):
        (folder / f"{i:02d}.txt").write_text(text, encoding="utf-8")
    (folder / "empty.txt").write_bytes(b"")
    (folder / "latin.txt").write_bytes("Bücher".encode("latin-1"))
    (folder / "long.txt").write_bytes(b"long " * 1000)
    (folder / "short.txt.gz").write_bytes(gzip.compress(b"packed")[:-4])
    artifact = make(
        tmp_path / "store", TokensConfig(source="text", train=(str(folder),), max_document_bytes=4000, **ANY)
    )
    found = {row["origin_file"].rpartition("/")[2]: row["kind"] for row in quarantine(artifact)}
    assert found == {
        "empty.txt": "empty_document",
        "latin.txt": "invalid_utf8",
        "long.txt": "too_large",
        "short.txt.gz": "damaged_file",
    }
    assert texts(artifact) == sorted(GOOD) and all_accounted(artifact.summary)
