"""The forecast's clock and costs against a real sweep: small, but with the same DAG and the same scheduler."""

from __future__ import annotations

from pathlib import Path

import pytest

from crate_model.flops import train_flops_per_token
from pipeline.artifacts.store import Artifact
from pipeline.config_load import load_config
from pipeline.dag import kept, plan
from pipeline.forecast.schedule import Task, play
from pipeline.forecast.work import Work
from pipeline.runtime import open_store
from tests.corpus import write_corpus
from tests.e2e.sweeps import sweep, tiny_config, write_config

CORES = 2
MODELS = {"model.architecture": ["crate", "gpt2"], "model.d_model": [32, 96]}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forecast")
    changes = {"grid": MODELS, "model__n_layer": 1, "runtime__checkpoint_every_steps": 100}
    config = write_config(folder / "tiny.yaml", tiny_config(write_corpus(folder), folder / "store", **changes))
    first = sweep(config, "--until", "tokens")
    assert first.returncode == 0 and "Made up to tokens" in first.stdout, first.stdout + first.stderr
    result = sweep(config)
    assert result.returncode == 0 and "1 kept" in result.stdout, result.stdout + result.stderr
    return config


def measured(config: Path) -> tuple[list[Task], float, dict[str, Artifact]]:
    """The sweep's steps with the seconds that each took, and how long all of it took, from the manifests alone."""
    loaded = load_config(config)
    whole = plan(loaded)
    made = kept(whole, open_store(loaded.config.runtime.store))
    tasks, begun, ended = [], [], []
    for name, step in whole.steps.items():
        took = made[name].manifest.provenance
        tasks.append(Task(name, step.cell, tuple(step.inputs.values()), Work(0, 1, took["seconds"], "")))
        begun.append(took["started"])
        ended.append(took["started"] + took["seconds"])
    return tasks, max(ended) - min(begun), made


def test_played_with_the_measured_seconds_it_takes_as_long_as_it_took(swept: Path) -> None:
    tasks, seconds, _ = measured(swept)
    played = play(tasks, gpus=0, cores=CORES, parallel_cells=CORES)
    assert played.makespan == pytest.approx(seconds, rel=0.35)


def test_crate_s_two_widths_forecast_gpt2_s(swept: Path) -> None:
    """Seconds are what a trainer takes to start plus FLOPs over a rate: two of the four trainings give both, and the rest."""
    _, _, made = measured(swept)
    cells = {cell.name: cell.config for cell in load_config(swept).cells()}
    flops = {name: train_flops_per_token(c.model) * c.pretrain.total_tokens for name, c in cells.items()}
    seconds = {name: made[f"{name}/pretrain"].manifest.provenance["seconds"] for name in cells}
    small, large = sorted((name for name in cells if name.startswith("crate")), key=lambda name: flops[name])
    rate = (flops[large] - flops[small]) / (seconds[large] - seconds[small])
    start = seconds[small] - flops[small] / rate
    forecast = {name: start + flops[name] / rate for name in cells}
    assert forecast == pytest.approx(seconds, rel=0.5)
