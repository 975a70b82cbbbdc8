"""A person sees tokens come in while a shard is read, not only when it is whole."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest

from pipeline import beats
from pipeline.activations.extract import Extractor
from pipeline.activations.job import plan_job
from pipeline.artifacts.store import Store
from pipeline.progress import progress_text, read_progress
from tests.unit import activation_cases as cases


@pytest.fixture
def job(tmp_path):
    store = Store(tmp_path)
    inputs = {"tokens": cases.tokens_artifact(store, 3000), "pretrain": cases.model_artifact(store)}
    return plan_job(cases.settings(), inputs, cases.context(store))


def test_a_shard_tells_its_tokens_batch_by_batch(job):
    told: list[int] = []
    assert Extractor(job).read_shard(0, told.append) == told[-1] == 93 * 32
    assert told[:3] == [128, 256, 384]


def test_the_driver_adds_up_the_shards_under_way(job, monkeypatch):
    monkeypatch.setattr(beats, "NEAR_PAUSE_SECONDS", 0.01)
    context, folder = job.context, "beats/cell--activations"

    def seen() -> float:
        return read_progress(context.store, "run")["cell/activations"].done

    def wait_for(done: int) -> None:
        deadline = time.monotonic() + 20
        while seen() != done and time.monotonic() < deadline:
            time.sleep(0.01)
        assert seen() == done

    context.store.write_note("run", f"{folder}/4", b"999")  # a killed attempt's
    progress = context.progress(3000, "tokens")
    progress.start_at(1000)
    progress.pause_seconds = 0
    with beats.watched(context, lambda shards: progress.update(1000 + sum(shards.values()))):
        for shard, tokens in ((2, 300), (3, 200)):
            beat = beats.Beat(context, shard)
            time.sleep(0.02)
            beat(tokens)
        wait_for(1500)
    assert seen() == 1500 and not context.store.notes("run", folder)
    assert "tokens/s" in progress_text(progress.state) and "left" in progress_text(progress.state)


def test_beats_never_lie_where_the_artifact_is_linked(job, monkeypatch):
    monkeypatch.setattr(beats, "NEAR_PAUSE_SECONDS", 0.0)
    context = dataclasses.replace(job.context, step_name="tokens")
    beats.Beat(context, "train/00000")(5)
    link = context.store.link("run", "tokens", job.tokens)
    assert (Path(link) / "manifest.json").is_file()
