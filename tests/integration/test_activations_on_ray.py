"""The Ray Data adapter makes what the core makes, also after a killed actor or driver; errors come through whole."""

from __future__ import annotations

import multiprocessing
import threading
import time
from pathlib import Path

import psutil
import pytest

from pipeline import runtime
from pipeline.activations import job as jobs
from pipeline.activations.job import plan_job
from pipeline.activations.on_ray import read_shards
from pipeline.activations.stage import run
from pipeline.artifacts.manifest import sha256_of
from pipeline.artifacts.store import Store
from pipeline.config import RuntimeConfig
from pipeline.errors import ArtifactError
from tests.processes import named_below
from tests.unit import activation_cases as cases

FILES = ("neurons.parquet", "excerpts.parquet")


def hashes(folder: Path) -> list[str]:
    return [sha256_of(folder / name) for name in FILES]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Text, a model, and the records as the core makes them without Ray."""
    store = Store(tmp_path_factory.mktemp("store"))
    inputs = {"tokens": cases.tokens_artifact(store, 6000), "pretrain": cases.model_artifact(store)}
    asked = cases.settings(tokens=6000)
    return store, inputs, asked, hashes(cases.extract(store, asked, inputs).folder)


@pytest.fixture
def many_shards(monkeypatch):
    monkeypatch.setattr(jobs, "SHARD_TOKENS", 512)


def readers() -> list[psutil.Process]:
    """The actors that read shards, among this process's own descendants."""
    return named_below("ShardReader")


def test_two_actors_make_the_same_bytes_as_the_core(world, ray_cluster):
    store, inputs, asked, expected = world
    context = cases.context(store, workers=2, fingerprint="1" * 32)
    out = store.making_folder("1" * 32)
    summary = run(asked, inputs, out, context)
    assert hashes(out) == expected
    assert summary["sites"]["code-l0"]["dead"] == 1 / 32
    assert summary["tokens"] == 187 * 32 and summary["tokens_asked"] == 6000


def test_a_killed_actor_changes_nothing(world, ray_cluster, many_shards, monkeypatch):
    """One actor is killed as soon as the first shard is there; Ray starts another, which goes on."""
    store, inputs, asked, expected = world
    context = cases.context(store, workers=1, fingerprint="2" * 32)
    killed: list[int] = []

    def kill_one() -> None:
        deadline = time.monotonic() + 200
        while not killed and time.monotonic() < deadline:
            if list(context.scratch.glob("shard-*.safetensors")):
                for process in readers():
                    process.kill()
                    killed.append(process.pid)
            time.sleep(0.01)

    thread = threading.Thread(target=kill_one)
    thread.start()
    out = store.making_folder("2" * 32)
    run(asked, inputs, out, context)
    thread.join()
    assert killed
    assert hashes(out) == expected


def test_a_killed_driver_leaves_its_shards_to_the_next(world, ray_cluster, many_shards):
    """What an earlier attempt read is not read again, and what it left half written is not taken for whole."""
    import ray

    store, inputs, asked, expected = world
    context = cases.context(store, workers=1, fingerprint="3" * 32)
    job = plan_job(asked, inputs, context)
    address = ray.get_runtime_context().gcs_address
    first = multiprocessing.get_context("spawn").Process(target=drive, args=(address, job))
    first.start()
    while len(list(context.scratch.glob("shard-*.safetensors"))) < 3:
        assert first.is_alive()
        time.sleep(0.01)
    first.kill()
    first.join()
    (context.scratch / f".{job.shard_file(len(job.shards) - 1).name}.99").write_bytes(b"half of a shard")
    before = {path.name: path.stat().st_mtime_ns for path in context.scratch.glob("shard-*")}
    out = store.making_folder("3" * 32)
    run(asked, inputs, out, context)
    assert hashes(out) == expected
    after = {path.name: path.stat().st_mtime_ns for path in context.scratch.glob("shard-*")}
    assert 3 <= len(before) < len(job.shards) == len(after) and before.items() <= after.items()


def drive(address: str, job: jobs.Job) -> None:
    """A driver of its own on the same cluster, until it is killed."""
    runtime.connect_ray(RuntimeConfig(ray_address=address))
    shards = range(len(job.shards))
    read_shards(job, shards, job.context.progress(job.corpus().n_tokens(range(job.corpus().n_batches)), "tokens"))


def test_an_actors_error_is_told_as_ours(world, ray_cluster, tmp_path):
    store, inputs, asked, _ = world
    spoilt = inputs | {"pretrain": cases.model_artifact(Store(tmp_path), spoil=True)}
    out = store.making_folder("4" * 32)
    with pytest.raises(ArtifactError, match="not finite"):
        run(asked, spoilt, out, cases.context(store, fingerprint="4" * 32))
    assert not list(out.iterdir())
