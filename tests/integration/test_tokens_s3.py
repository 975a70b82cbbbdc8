"""Sources on an object storage, here a local S3 server: the same artifact as from the disk."""

from __future__ import annotations

import gzip
import json
import os
import random
import threading
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from pipeline.artifacts.store import Store
from pipeline.artifacts.tokens import TokenSplit
from pipeline.config import TokensConfig
from pipeline.errors import ResourceError
from pipeline.tokens import files
from pipeline.tokens.estimate import estimate
from pipeline.tokens.files import ByteStream
from pipeline.tokens.sources import list_sources, read
from tests.s3 import BUCKET, s3_server
from tests.tokens_lab import contents, job, jsonl, make, record, write_lines


@pytest.fixture(scope="module")
def weather():
    with s3_server() as weather:
        yield weather


@pytest.fixture(scope="module")
def corpus(weather, tmp_path_factory):
    """The same Pile-shaped files in a folder and in the bucket."""
    folder = tmp_path_factory.mktemp("pile")
    draw = random.Random(0)
    lines = [record(f"document {i}: {draw.randbytes(40).hex()}", f"domain {i % 3}") for i in range(4000)]
    write_lines(folder / "train/00.jsonl.zst", [*lines[:1900], b"broken", lines[-1]])
    write_lines(folder / "train/01.jsonl.zst", lines[1900:3800])
    write_lines(folder / "train/deeper/02.jsonl.zst", lines[:10])  # `*` does not reach into folders
    write_lines(folder / "val.jsonl.zst", lines[3800:])
    bucket = fs.S3FileSystem(endpoint_override=os.environ["AWS_ENDPOINT_URL"])
    for path in folder.rglob("*.zst"):
        with bucket.open_output_stream(f"{BUCKET}/pile/{path.relative_to(folder)}", compression=None) as stream:
            stream.write(path.read_bytes())
    return folder


def test_a_corpus_on_s3_gives_the_artifact_of_the_disk(corpus, tmp_path):
    def config(root):
        return jsonl(train=(f"{root}/train/*.jsonl.zst",), val=(f"{root}/val.jsonl.zst",))

    here, there = make(tmp_path / "here", config(corpus)), make(tmp_path / "there", config(f"s3://{BUCKET}/pile"))
    tokens = {name: value for name, value in contents(here).items() if name.endswith(".arrow")}
    assert len(tokens) == 3 and tokens.items() <= contents(there).items()
    assert here.summary == there.summary and here.summary["bad"] == {"malformed_json": 1}
    assert here.summary["duplicates_dropped"] == 1
    origin = TokenSplit(there, "train").document_at(0)
    assert (origin.origin_file, origin.origin_line) == (f"s3://{BUCKET}/pile/train/00.jsonl.zst", 1)


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "parquet", "text"])
def test_every_kind_of_file_is_read_from_s3_as_from_a_disk(weather, tmp_path, kind):
    records = [{"text": f"text {i}", "meta": {"pile_set_name": f"domain {i % 2}"}} for i in range(2000)]
    lines = b"".join(json.dumps(row).encode() + b"\n" for row in records)
    table = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(records), table, row_group_size=300)
    contents_of = {
        "jsonl": {"a.jsonl": lines},
        "jsonl.gz": {"a.jsonl.gz": gzip.compress(lines)},
        "parquet": {"a.parquet": table.getvalue().to_pybytes()},
        "text": {f"{row['meta']['pile_set_name']}/{i}.txt": row["text"].encode() for i, row in enumerate(records[:20])},
    }[kind]
    bucket, root = fs.S3FileSystem(endpoint_override=os.environ["AWS_ENDPOINT_URL"]), f"{BUCKET}/kinds/{kind}"
    for name, data in contents_of.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
        with bucket.open_output_stream(f"{root}/{name}", compression=None) as stream:
            stream.write(data)

    def documents(place):
        config = TokensConfig(source=kind.partition(".")[0], train=(f"{place}/",))
        found = [d for source in list_sources(config, tmp_path) for d in read(source, config, lambda position: None)]
        return [(d.text, d.domain, d.origin_file.removeprefix(f"{place}/"), d.origin_line) for d in found]

    here = documents(tmp_path)
    assert documents(f"s3://{root}") == here and len(here) == (20 if kind == "text" else 2000)
    assert {domain for _, domain, *_ in here} == {"domain 0", "domain 1"}


def test_folders_and_patterns_are_listed_on_s3_as_on_a_disk(corpus, tmp_path):
    for pattern, files_found in (("train", 3), ("**/*.zst", 4), ("train/0[01].*", 2), ("val.jsonl.zst", 1)):
        there = list_sources(jsonl(train=(f"s3://{BUCKET}/pile/{pattern}",)), tmp_path)
        here = list_sources(jsonl(train=(f"{corpus}/{pattern}",)), tmp_path)
        names = [[source.origin.rpartition("/pile/")[2] for source in there]]
        names += [[source.origin.removeprefix(f"{corpus}/") for source in here]]
        assert names[0] == names[1] and len(names[0]) == files_found
        assert [source.bytes for source in there] == [source.bytes for source in here]


def test_what_is_not_on_s3_is_told(corpus, tmp_path):
    with pytest.raises(ResourceError, match=r"no file matches s3://.*\.parquet"):
        make(tmp_path, jsonl(train=(f"s3://{BUCKET}/pile/train/*.parquet",)))
    with pytest.raises(ResourceError, match="cannot list s3://no-such-bucket"):
        make(tmp_path, jsonl(train=("s3://no-such-bucket/pile/*.zst",)))
    assert estimate(jsonl(train=(f"s3://{BUCKET}/pile/train/*.zst",)), cores=2)["problem"] == ""


def clear_up_after(weather, failures: int) -> None:
    while weather.n_failed < failures:
        time.sleep(0.01)
    weather.fail_every = 0


def test_a_storage_that_breaks_off_is_read_on_from_the_same_place(corpus, weather, monkeypatch):
    monkeypatch.setattr(files, "BUFFER_BYTES", 1 << 14)  # many requests
    monkeypatch.setattr(files, "CHUNK_BYTES", 1 << 12)
    expected = b"".join(ByteStream(str(corpus / "train/00.jsonl.zst")).chunks())
    chunks = ByteStream(f"s3://{BUCKET}/pile/train/00.jsonl.zst").chunks()
    found = next(chunks)
    weather.fail_every = 1
    threading.Thread(target=clear_up_after, args=(weather, 2)).start()
    found += b"".join(chunks)
    assert weather.n_failed >= 2
    assert found == expected


def test_another_node_goes_on_from_shards_kept_on_the_storage(corpus, tmp_path):
    """A store on S3, where nodes share nothing else: each has a cache of its own."""
    place = f"s3://{BUCKET}/store"
    config = jsonl(train=(f"s3://{BUCKET}/pile/train/*.zst",), val=(f"s3://{BUCKET}/pile/val.jsonl.zst",))
    expected = make(tmp_path / "folder", config)
    first = job(Store.open(place, tmp_path / "first"), config)
    held_out, others = first.phases()
    first.make(held_out[0], lambda position: None)
    first.gather_digests()
    first.make(others[1], lambda position: None)
    storage = first.context.store.storage
    storage.write(f".scratch/{first.context.fingerprint}/shards/{others[0].name}/train.arrow", b"a node died here")
    second = job(Store.open(place, tmp_path / "second"), config)
    assert [second.is_made(source) for source in (*held_out, *others)] == [True, False, True]
    third = job(Store.open(place, tmp_path / "third"), config)
    third.clear_leftovers()
    second.make(others[0], lambda position: None)
    assert third.facts(others[0]) == second.facts(others[0])  # fetched when it is asked for
    artifact = make(Store.open(place, tmp_path / "fourth"), config)
    assert contents(artifact) == contents(expected)
    reader = TokenSplit(Store.open(place, tmp_path / "fifth").get("tokens", artifact.fingerprint), "train")
    assert reader.n_tokens == expected.summary["train"]["n_tokens"]
