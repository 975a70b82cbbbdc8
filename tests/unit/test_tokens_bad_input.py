"""Every bad document lands in quarantine under its kind, with its file and line; the others are all there."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pipeline.artifacts.tokens import TokenSplit
from pipeline.artifacts.vocabulary import gpt2_encoding
from pipeline.config import TokensConfig
from pipeline.errors import ResourceError, StageError
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
def test_a_damaged_file_gives_what_can_be_read_of_it(tmp_path, pack, harm):
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
    row = quarantine(artifact)[-1]
    assert (row["kind"], row["origin_line"]) == ("damaged_file", artifact.summary["documents_in"])
    if harm == "garbage at the end":
        assert found == sorted(many)
    else:
        assert len(found) > 0.3 * len(many)


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
