"""What Ray Train is asked for, and who pays for a restart: failures and preemptions have budgets of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from training_world import make_job, make_tokens, with_runtime

from pipeline.artifacts.store import Store
from pipeline.config import RuntimeConfig
from pipeline.errors import ConfigError, StageError
from pipeline.pretrain import on_ray
from pipeline.pretrain.job import OUTCOME, TOLD, TrainingJob


@pytest.mark.parametrize(
    ("runtime", "on_gpu", "workers", "resources"),
    [
        ({}, False, 1, {"CPU": 1.0}),
        ({"workers_per_cell": 4}, True, 4, {"GPU": 1.0}),
        ({"workers_per_cell": 8, "min_workers_per_cell": 2}, True, (2, 8), {"GPU": 1.0}),
        ({"workers_per_cell": 2, "min_workers_per_cell": 2}, False, 2, {"CPU": 1.0}),
        ({"workers_per_cell": 1, "gpus_per_worker": 0.25}, True, 1, {"GPU": 0.25}),
    ],
    ids=["one", "fixed", "elastic", "no-less", "a-quarter"],
)
def test_workers_and_what_each_takes(
    runtime: dict[str, Any], on_gpu: bool, workers: int | tuple[int, int], resources: dict[str, float]
) -> None:
    scaling = on_ray._scaling(RuntimeConfig(**runtime), on_gpu)
    assert (scaling.num_workers, scaling.use_gpu, scaling.resources_per_worker) == (workers, on_gpu, resources)


def test_several_workers_of_a_model_cannot_share_a_gpu() -> None:
    shared = RuntimeConfig(workers_per_cell=2, gpus_per_worker=0.5)
    with pytest.raises(ConfigError, match="cannot share one"):
        on_ray._scaling(shared, on_gpu=True)
    assert on_ray._scaling(shared, on_gpu=False).num_workers == 2


@pytest.fixture
def job(tmp_path: Path) -> TrainingJob:
    job = make_job(tmp_path, make_tokens(Store(tmp_path / "store"), 2000, 500))
    return with_runtime(job, max_failures=0, max_preemptions=2)


def attempts_that_end(monkeypatch: pytest.MonkeyPatch, *outcomes: dict[str, Any]) -> list[dict[str, Any]]:
    """Have every Ray Train run end at once with the next outcome; what is left of the list was not needed."""
    left = list(outcomes)
    monkeypatch.setattr(on_ray, "_fit_once", lambda job: job.write_note(OUTCOME, left.pop(0)))
    return left


def test_preemptions_do_not_use_up_the_failures(job: TrainingJob, monkeypatch: pytest.MonkeyPatch) -> None:
    left = attempts_that_end(monkeypatch, {"preempted": True}, {"preempted": True}, {"summary": {}}, {"summary": {}})
    on_ray.fit(job)
    assert left == [{"summary": {}}] and job.read_note(OUTCOME) == {"summary": {}}
    assert job.read_note(TOLD) == [f"its node is taken away ({n} of 2); moving" for n in (1, 2)]


def test_too_many_preemptions_end_the_job(job: TrainingJob, monkeypatch: pytest.MonkeyPatch) -> None:
    left = attempts_that_end(monkeypatch, *[{"preempted": True}] * 4)
    with pytest.raises(StageError, match="taken away 3 times"):
        on_ray.fit(job)
    assert len(left) == 1 and len(job.read_note(TOLD)) == 2


def test_a_failure_has_its_own_budget_in_ray(job: TrainingJob, monkeypatch: pytest.MonkeyPatch) -> None:
    job = with_runtime(job, max_failures=5)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True}, {"Alive": True}])
    failures = on_ray._trainer(job).run_config.failure_config
    assert (failures.max_failures, failures.max_preemption_failures) == (5, 2)
