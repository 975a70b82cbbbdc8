"""The forecast's clock against a real sweep: small, but with the same DAG and the same scheduler."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config_load import load_config
from pipeline.dag import kept, plan
from pipeline.forecast.schedule import Task, play
from pipeline.forecast.work import Work
from pipeline.runtime import open_store

CORES = 2


def test_played_with_the_measured_seconds_it_takes_as_long_as_it_took(swept: Path) -> None:
    """The seconds of each step, and of all, come from the manifests alone."""
    loaded = load_config(swept)
    whole = plan(loaded)
    made = kept(whole, open_store(loaded.config.runtime.store))
    tasks, begun, ended = [], [], []
    for name, step in whole.steps.items():
        took = made[name].manifest.provenance
        tasks.append(Task(name, step.cell, tuple(step.inputs.values()), Work(0, 1, took["seconds"], "")))
        begun.append(took["started"])
        ended.append(took["started"] + took["seconds"])
    played = play(tasks, gpus=0, cores=CORES, parallel_cells=CORES)
    assert played.makespan == pytest.approx(max(ended) - min(begun), rel=0.35)
