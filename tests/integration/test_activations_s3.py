"""A store on S3, where nodes share nothing else: what one node read the others find, and the records are those of a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.activations import job as jobs
from pipeline.activations.extract import Extractor
from pipeline.activations.job import Job, plan_job
from pipeline.activations.stage import run
from pipeline.artifacts.manifest import sha256_of
from pipeline.artifacts.store import Store
from pipeline.errors import ArtifactError
from tests.s3 import BUCKET, s3_server
from tests.unit import activation_cases as cases

PLACE = f"s3://{BUCKET}/activations"  # a process keeps its connections by address: no other test has this one


def hashes(folder: Path) -> list[str]:
    return [sha256_of(folder / name) for name in ("neurons.parquet", "excerpts.parquet")]


def node(cache: Path, workers: int = 1) -> Job:
    """The work as a node with a cache of its own sees it."""
    store = Store.open(PLACE, cache)
    inputs = {"tokens": store.all_of("tokens")[0], "pretrain": store.all_of("pretrain")[0]}
    return plan_job(cases.settings(), inputs, cases.context(store, workers))


def read(job: Job, shards: range) -> None:
    extractor = Extractor(job)
    for shard in shards:
        extractor.read_shard(shard)


def test_parts_of_nodes_that_share_no_disk_become_the_records_of_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "SHARD_TOKENS", 512)
    local = Store(tmp_path / "folder")
    made = {"tokens": cases.tokens_artifact(local, 3000), "pretrain": cases.model_artifact(local)}
    expected = hashes(cases.extract(local, cases.settings(), made).folder)
    with s3_server():
        far = Store.open(PLACE, tmp_path / "maker")
        inputs = {"tokens": cases.tokens_artifact(far, 3000), "pretrain": cases.model_artifact(far)}
        first, second = node(tmp_path / "first"), node(tmp_path / "second")
        n_shards = len(first.shards)
        assert first.missing() == list(range(n_shards)) and n_shards > 4
        read(first, range(2))
        read(second, range(2, n_shards - 1))
        assert first.missing() == second.missing() == [n_shards - 1]
        with pytest.raises(ArtifactError, match="never kept"):
            first.bring_parts()
        read(second, range(n_shards - 1, n_shards))
        out = first.context.store.making_folder("out")
        run(cases.settings(), inputs, out, first.context)  # Ray would be started if a shard were missing
        assert hashes(out) == expected
        assert node(tmp_path / "third", workers=2).missing() == [0]  # its pilots are shared out otherwise
