"""Shards made in any order, by any number of makers, in any number of attempts: always the same artifact."""

from __future__ import annotations

import errno
import os
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ResourceError, StageError
from pipeline.tokens.shard import ShardWriter
from tests.tokens_lab import contents, job, jsonl, make, record, write_lines


def nothing(position: int) -> None: ...


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    draw = random.Random(0)
    for number in range(8):
        lines = [record(f"{number}.{i} {draw.randbytes(20).hex()}", f"domain {i % 2}") for i in range(50)]
        write_lines(folder / f"train/{number}.jsonl.zst", [*lines, b"broken", record("also in val")])
    write_lines(folder / "val.jsonl", [record("also in val"), record("only in val")])
    return jsonl(train=(f"{folder}/train",), val=(f"{folder}/val.jsonl",), max_bad_fraction=0.1)


@pytest.fixture(scope="module")
def expected(config, tmp_path_factory):
    artifact = make(tmp_path_factory.mktemp("expected"), config)
    assert artifact.summary["duplicates_dropped"] == 8 and artifact.summary["bad"] == {"malformed_json": 8}
    return contents(artifact)


@settings(max_examples=12, deadline=None)
@given(order=st.permutations(range(8)), makers=st.sampled_from([1, 2, 3, 8]), made=st.integers(0, 8))
def test_order_and_number_of_makers_do_not_matter(tmp_path_factory, config, expected, order, makers, made):
    """`made` shards are finished by an earlier attempt, the others by the stage itself."""
    folder = tmp_path_factory.mktemp("order")
    earlier = job(folder, config)
    held_out, others = earlier.phases()
    for source in held_out:
        earlier.make(source, nothing)
    earlier.gather_digests()
    with ThreadPoolExecutor(makers) as pool:
        list(pool.map(lambda number: earlier.make(others[number], nothing), order[:made]))
    inodes = {number: (earlier.shards / others[number].name / "train.arrow").stat().st_ino for number in order[:made]}
    artifact = make(folder, config)
    assert contents(artifact) == expected
    for number, inode in inodes.items():
        assert artifact.file(f"train/{number:05d}.arrow").stat().st_ino == inode  # kept, not made again


def test_a_source_that_changed_is_read_again(config, tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [record(f"document {i}") for i in range(40)])
    changing = jsonl(train=(str(path),), val_fraction=0.3)
    earlier = job(tmp_path / "store", changing)
    earlier.make(earlier.sources[0], nothing)
    write_lines(path, [record(f"document {i}") for i in range(50)])
    assert make(tmp_path / "store", changing).summary["documents_in"] == 50


def test_held_out_files_that_changed_are_looked_for_anew(tmp_path):
    """Shards of train that an earlier attempt finished against another val are of no use."""
    train = write_lines(tmp_path / "train.jsonl", [record(f"document {i}") for i in range(40)])
    val = write_lines(tmp_path / "val.jsonl", [record("document 1")])
    changing = jsonl(train=(str(train),), val=(str(val),))
    earlier = job(tmp_path / "store", changing)
    for phase in earlier.phases():
        for source in phase:
            earlier.make(source, nothing)
        earlier.gather_digests()
    write_lines(val, [record("document 2"), record("document 3")])
    summary = make(tmp_path / "store", changing).summary
    assert (summary["duplicates_dropped"], summary["train"]["n_documents"]) == (2, 38)


def test_two_makers_of_the_same_shard_agree(config, tmp_path, expected):
    earlier = job(tmp_path, config)
    held_out, others = earlier.phases()
    earlier.make(held_out[0], nothing)
    earlier.gather_digests()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: earlier.make(others[0], nothing), range(4)))
    assert [path.name for path in earlier.shards.glob("*train-00000*")] == [others[0].name]
    assert contents(make(tmp_path, config)) == expected


def test_a_full_disk_is_told_and_leaves_nothing(config, tmp_path, monkeypatch):
    def full(self, *document):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(ShardWriter, "add", full)
    with pytest.raises(ResourceError, match="no space left on the disk"):
        make(tmp_path, config)
    assert not list(tmp_path.glob(".scratch/*/shards/*")) and not list(tmp_path.glob("tokens/*"))


def test_a_wrong_text_field_is_told_at_once(tmp_path):
    path = write_lines(tmp_path / "a.jsonl.zst", [record(f"document {i}") for i in range(5000)])
    with pytest.raises(
        StageError, match=r"none of the first 1000 documents of .*a\.jsonl\.zst can be read \(1000 missing"
    ):
        make(tmp_path / "store", jsonl(train=(str(path),), text_field="content"))
    assert not list(tmp_path.glob("store/.scratch/*/shards/*"))
