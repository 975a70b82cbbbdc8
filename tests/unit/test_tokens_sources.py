"""Every kind of source gives the same documents with their origin; splits are what the files or the hash say."""

from __future__ import annotations

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pipeline.artifacts.tokens import TokenSplit
from pipeline.artifacts.vocabulary import gpt2_encoding
from pipeline.config import TokensConfig
from pipeline.errors import ResourceError
from pipeline.stage import canonical
from pipeline.tokens import sources
from pipeline.tokens.estimate import estimate, take_sample
from pipeline.tokens.inspect import batch_rows
from pipeline.tokens.packaged import PYTHON, SPEECHES
from pipeline.tokens.sources import list_sources, read
from tests.tokens_lab import contents, context, jsonl, make, record, write_lines

TEXTS = [f"text {i}\nof two lines" for i in range(30)]
RECORDS = [{"text": text, "meta": {"pile_set_name": f"domain {i % 2}"}} for i, text in enumerate(TEXTS)]


def documents(config: TokensConfig, tmp_path) -> list:
    found = []
    for source in list_sources(config, tmp_path / "scratch"):
        told: list[int] = []
        found += read(source, config, told.append)
        assert told and told == sorted(told) and told[-1] <= source.bytes
    return found


def write(folder, kind: str) -> TokensConfig:
    folder.mkdir()
    lines = [json.dumps(row).encode() for row in RECORDS]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(RECORDS), folder / "a.parquet", row_group_size=8)
        return TokensConfig(source="parquet", train=(str(folder / "*.parquet"),))
    if kind == "huggingface":
        pq.write_table(pa.Table.from_pylist(RECORDS[:20]), folder / "train-0.parquet")
        pq.write_table(pa.Table.from_pylist(RECORDS[20:]), folder / "train-1.parquet")
        return TokensConfig(source="huggingface", train=(str(folder),))
    write_lines(folder / f"a.{kind}", lines)
    if kind == "jsonl.gz":
        (folder / "a.jsonl.gz").write_bytes(gzip.compress((folder / "a.jsonl.gz").read_bytes()))
    return jsonl(train=(str(folder / "a.*"),))


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.zst", "jsonl.gz", "parquet", "huggingface"])
def test_every_kind_of_source_yields_the_same_documents(tmp_path, kind, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    found = documents(write(tmp_path / "corpus", kind), tmp_path)
    assert [(d.text, d.domain) for d in found] == [(row["text"], row["meta"]["pile_set_name"]) for row in RECORDS]
    lines = [*range(1, 21), *range(1, 11)] if kind == "huggingface" else range(1, 31)
    assert [d.origin_line for d in found] == list(lines)
    assert found[0].origin_file.startswith(str(tmp_path / "corpus"))


@pytest.mark.parametrize("suffix", ["zst", "gz"])
def test_a_file_of_several_compressed_pieces_is_read_to_its_end(tmp_path, suffix):
    """As parallel compressors write them, and `cat a.zst b.zst`."""
    pack = {"zst": zstandard.compress, "gz": gzip.compress}[suffix]
    data = b"".join(json.dumps(row).encode() + b"\n" for row in RECORDS)
    pieces = [data[at : at + 100] for at in range(0, len(data), 100)]
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(b"".join(map(pack, pieces)))
    assert [d.text for d in documents(jsonl(train=(str(path),)), tmp_path)] == TEXTS


def test_plain_text_takes_each_file_as_it_is(tmp_path, monkeypatch):
    for i, text in enumerate(TEXTS):
        path = tmp_path / "corpus" / f"domain {i % 2}" / f"{i:02d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.replace("\n", "\r\n").encode())
    (tmp_path / "corpus/domain 0/.hidden").write_text("not a document")
    monkeypatch.setattr(sources, "TEXT_SHARD_BYTES", 100)  # so that the files become several shards
    config = TokensConfig(source="text", train=(str(tmp_path / "corpus"),))
    found = documents(config, tmp_path)
    assert sorted(d.text for d in found) == sorted(text.replace("\n", "\r\n") for text in TEXTS)
    assert {(d.domain, int(d.origin_file[-6:-4]) % 2) for d in found} == {("domain 0", 0), ("domain 1", 1)}
    assert len(list_sources(config, tmp_path)) > 3


def test_globs_lists_and_folders_name_files_once_and_in_order(tmp_path):
    for name in ("b/2.jsonl", "b/10.jsonl", "a/1.jsonl", "a/deep/3.jsonl"):
        write_lines(tmp_path / name, [record(name)])
    patterns = (str(tmp_path / "b/*.jsonl"), str(tmp_path / "**/*.jsonl"), str(tmp_path / "a"))
    found = list_sources(jsonl(train=patterns), tmp_path)
    names = [source.origin.removeprefix(f"{tmp_path}/") for source in found]
    assert names == ["b/10.jsonl", "b/2.jsonl", "a/1.jsonl", "a/deep/3.jsonl"]
    assert [source.number for source in found] == [0, 1, 2, 3]


def test_documents_are_split_by_the_hash_of_their_text_alone(tmp_path):
    def val_texts(lines, name):
        write_lines(tmp_path / name, lines)
        artifact = make(tmp_path / f"{name}.store", jsonl(train=(str(tmp_path / name),), val_fraction=0.2))
        val = TokenSplit(artifact, "val")
        return sorted(gpt2_encoding().decode(val.read(0, val.n_tokens).tolist()).split("<|endoftext|>")[:-1])

    many = [f"document {i}" for i in range(1000)]
    one = val_texts(map(record, many), "one.jsonl")
    assert 150 < len(one) < 250
    assert val_texts(map(record, reversed(many)), "other.jsonl") == one
    assert val_texts([*map(record, many), *map(record, many)], "twice.jsonl") == sorted(one * 2)  # copies stay together


def test_copies_of_held_out_documents_are_taken_out_of_train(tmp_path):
    train = [f"train {i}" for i in range(50)]
    held = ["val 1", "val 2", "test 1"]
    write_lines(tmp_path / "train.jsonl", map(record, [*train, "val 2", *train[:3], "test 1", "val 2 "]))
    write_lines(tmp_path / "val.jsonl", map(record, held[:2]))
    write_lines(tmp_path / "test.jsonl", map(record, held[2:]))
    files = {split: (str(tmp_path / f"{split}.jsonl"),) for split in ("train", "val", "test")}
    artifact = make(tmp_path / "store", jsonl(**files))
    summary = artifact.summary
    assert (summary["duplicates"], summary["duplicates_dropped"], summary["documents_in"]) == (2, 2, 59)
    assert [summary[split]["n_documents"] for split in ("train", "val", "test")] == [54, 2, 1]
    split = TokenSplit(artifact, "train")
    text = gpt2_encoding().decode(split.read(0, split.n_tokens).tolist())
    assert text.split("<|endoftext|>") == [*train, *train[:3], "val 2 ", ""]

    write_lines(tmp_path / "train.jsonl", map(record, held))  # nothing but copies, and one document more
    write_lines(tmp_path / "more.jsonl", [record("train")])
    files["train"] = (*files["train"], str(tmp_path / "more.jsonl"))
    kept = make(tmp_path / "kept", jsonl(**files, drop_duplicates=False)).summary
    assert (kept["duplicates"], kept["duplicates_dropped"], kept["train"]["n_documents"]) == (3, 0, 4)
    summary = make(tmp_path / "dropped", jsonl(**files)).summary
    assert (summary["duplicates_dropped"], summary["train"]["n_documents"]) == (3, 1)


def test_copies_of_test_documents_are_taken_out_of_a_train_that_is_split_by_hash(tmp_path):
    texts = [f"document {i}" for i in range(200)]
    write_lines(tmp_path / "train.jsonl", map(record, texts))
    write_lines(tmp_path / "test.jsonl", map(record, texts[:50]))
    train, test = ((str(tmp_path / f"{split}.jsonl"),) for split in ("train", "test"))
    alone = make(tmp_path / "alone", jsonl(train=train, val_fraction=0.5)).summary
    artifact = make(tmp_path / "store", jsonl(train=train, test=test, val_fraction=0.5))
    split = TokenSplit(artifact, "train")
    found = gpt2_encoding().decode(split.read(0, split.n_tokens).tolist()).split("<|endoftext|>")[:-1]
    assert found and not set(found) & set(texts[:50])
    counts = artifact.summary
    dropped = alone["train"]["n_documents"] - len(found)
    assert 10 < dropped < 40 and counts["duplicates"] == counts["duplicates_dropped"] == dropped
    assert counts["val"] == alone["val"] and counts["test"]["n_documents"] == 50  # val, too, is held out


def test_the_packaged_corpus_has_two_domains_in_both_splits(tmp_path):
    artifact = make(tmp_path, TokensConfig())
    for split in ("train", "val"):
        domains = artifact.summary[split]["domains"]
        assert set(domains) == {SPEECHES, PYTHON}
        assert min(counts["n_tokens"] for counts in domains.values()) > 50_000
    assert 5 < artifact.summary["unigram_entropy"] < 6.5
    document = TokenSplit(artifact, "val").document_at(0)
    data = zstandard.ZstdDecompressor().stream_reader(artifact.file(document.origin_file).read_bytes()).read()
    line = json.loads(data.split(b"\n")[document.origin_line - 1])  # the origin leads to the very text
    ids = [*gpt2_encoding().encode_ordinary(line["text"]), 50256]
    assert TokenSplit(artifact, "val").read(0, len(ids)).tolist() == ids
    assert line["meta"]["pile_set_name"] == document.domain


def test_hugging_face_addresses(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    config = write(tmp_path / "corpus", "huggingface")
    address = config.train[0]
    two = list_sources(TokensConfig(source="huggingface", train=(f"{address}?split=train",)), tmp_path)
    assert [source.part for source in two] == [0, 1]
    with pytest.raises(ResourceError, match="no such option 'spilt'"):
        list_sources(TokensConfig(source="huggingface", train=(f"{address}?spilt=train",)), tmp_path)
    with pytest.raises(ResourceError, match="cannot read the dataset"):
        list_sources(TokensConfig(source="huggingface", train=(str(tmp_path / "nowhere"),)), tmp_path)


def test_a_batch_can_be_looked_at(tmp_path):
    write_lines(tmp_path / "a.jsonl", [json.dumps(row).encode() for row in RECORDS])
    artifact = make(tmp_path / "store", jsonl(train=(str(tmp_path / "a.jsonl"),), val_fraction=0.2))
    split = TokenSplit(artifact, "train")
    rows = [row for step in range(split.n_windows(20)) for row in batch_rows(artifact, 3, 1, 20, step)]
    assert sorted(row["window"] for row in rows) == list(range(split.n_windows(20)))
    whole = "".join(row["text"] for row in sorted(rows, key=lambda row: row["window"]))
    assert gpt2_encoding().decode(split.read(0, split.n_tokens).tolist()).startswith(whole)
    for row in rows:
        assert sum(document["tokens"] for document in row["documents"]) == 20
        for document in row["documents"]:
            assert (
                TEXTS[document["origin_line"] - 1]
                and document["domain"] == f"domain {(document['origin_line'] - 1) % 2}"
            )
    assert json.loads(json.dumps(rows)) == rows


def test_the_estimate_knows_sizes_and_this_machines_rate(tmp_path, monkeypatch):
    lines = [record(f"document {i} with {i * i} words") for i in range(2000)]
    write_lines(tmp_path / "a.jsonl.zst", lines[:1000])
    write_lines(tmp_path / "b.jsonl.zst", lines[1000:])
    config = jsonl(train=(str(tmp_path / "*.zst"),), val_fraction=0.1)
    guess, artifact = estimate(config, cores=2), make(tmp_path / "store", config)
    real = sum(artifact.summary[split]["n_tokens"] for split in ("train", "val"))
    assert guess["problem"] == "" and guess["files"] == 2
    assert guess["tokens"] == pytest.approx(real, rel=0.15) and guess["stored_bytes"] == pytest.approx(
        2 * guess["tokens"], abs=2
    )
    assert guess["hours"] > 0 and guess["tokens_per_second_and_core"] > 10_000
    assert estimate(config, 2, artifact)["splits"]["val"] == artifact.summary["val"]

    away = TokensConfig(source="jsonl", train=("nowhere/*.zst",), expected_text_bytes=10**12)
    guess = estimate(away, cores=4)
    assert guess["problem"] == "no file matches nowhere/*.zst"
    assert 2 * 10**11 < guess["tokens"] < 5 * 10**11 and guess["hours"] > 0.1

    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    streamed = write(tmp_path / "streamed", "huggingface").model_copy(update={"expected_text_bytes": 10**12})
    guess = estimate(streamed, cores=4)
    assert "does not tell its size" in guess["problem"] and guess["text_bytes"] == 10**12
    assert guess["sample"]["documents"] == 10 and guess["hours"] > 0.1


def test_a_wrong_text_field_is_told_by_the_estimate_after_a_short_look(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [record(f"document {i} {'word ' * 2000}") for i in range(2000)])
    wrong = jsonl(train=(str(path),), text_field="content", expected_text_bytes=10**9)
    seen = take_sample(wrong, list_sources(wrong, tmp_path)[0])
    assert 0 < seen.n_bad < 1000 and seen.n_tokens == 0  # not to the end of 20 MB
    guess = estimate(wrong, cores=2)
    assert guess["problem"] == f"nothing at the beginning of {path} can be read"
    assert guess["text_bytes"] == 10**9 and guess["tokens"] > 10**8


def test_what_only_the_plan_needs_enters_no_fingerprint(tmp_path):
    plain, told = TokensConfig(), TokensConfig(expected_text_bytes=5)
    assert canonical(plain) == canonical(told)
    assert context(tmp_path, plain).fingerprint == context(tmp_path, told).fingerprint
    assert context(tmp_path, plain).fingerprint != context(tmp_path, TokensConfig(val_fraction=0.1)).fingerprint


def test_the_number_of_files_does_not_matter_to_the_stream(tmp_path):
    lines = [json.dumps(row).encode() for row in RECORDS]
    write_lines(tmp_path / "one.jsonl", lines)
    for number in range(3):
        write_lines(tmp_path / f"three/{number}.jsonl", lines[number * 10 : number * 10 + 10])
    one = make(tmp_path / "1", jsonl(train=(str(tmp_path / "one.jsonl"),), val_fraction=0.2))
    three = make(tmp_path / "3", jsonl(train=(str(tmp_path / "three"),), val_fraction=0.2))
    for split in ("train", "val"):
        a, b = TokenSplit(one, split), TokenSplit(three, split)
        assert a.read(0, a.n_tokens).tolist() == b.read(0, b.n_tokens).tolist()
        assert a.document_starts().tolist() == b.document_starts().tolist()
    assert contents(one)["summary"] == contents(three)["summary"]
