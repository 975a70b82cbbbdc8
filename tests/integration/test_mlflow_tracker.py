"""Tracking end to end on a sqlite store: what rooms tell arrives in MLflow, once, under runs that a rerun continues."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts.artifact import Artifact
from pipeline.mlflow_tracker import Delivery, mark_killed
from pipeline.tracking import TrackerSpec
from pipeline.tracking_driver import TrackedSweep
from pipeline.tracking_spool import LocalSpool, SpoolTracker, shown
from tests.s3 import BUCKET, s3_server
from tests.synthetic_sweep import SyntheticSweep, fresh_store


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One sqlite store for all tests here: making its schema takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


class Driver(TrackedSweep):
    """The driver's end without its process, so that tests deliver when they want to."""

    def _start_delivery(self, remote: str) -> None:
        pass


@pytest.fixture
def driver(database: str, tmp_path: Path) -> Driver:
    return Driver(database, tmp_path.name, tmp_path / "runs" / "s" / "mlflow-spool")


def deliver(driver: Driver) -> Any:
    delivery = Delivery(driver.uri, driver.spool)
    while delivery.deliver():
        pass
    return delivery


def runs_of(driver: Driver, delivery: Delivery) -> dict[str, Any]:
    experiment = delivery.client.get_experiment_by_name(driver.experiment)
    found = delivery.client.search_runs([experiment.experiment_id])
    assert len({run.info.run_name for run in found}) == len(found), "a run was made twice"
    return {run.info.run_name: run for run in found}


def open_sweep(driver: Driver, fingerprint: str = "f" * 32) -> tuple[TrackerSpec, TrackerSpec]:
    config = {"model": {"n_layer": 1, "architecture": "crate"}, "runtime": {"workers_per_cell": 1}}
    parent = driver.start_parent("study", {"seed": 0}, {"git": "abc123+"})
    dataset = {"name": "tokens", "digest": "d" * 32, "source": "store/tokens", "context": "training"}
    return parent, driver.start_child(parent, "crate-1l", fingerprint, config, {"n_params": 6.5e6}, [dataset])


def test_what_rooms_tell_arrives(driver: Driver, tmp_path: Path) -> None:
    parent, child = open_sweep(driver)
    tracker = child.open()
    for step in range(1, 51):
        tracker.metrics({"pretrain/loss": 10 - step / 10}, step=1024 * step)
    tracker.metrics({"pretrain/grad_norm": math.nan}, step=1024)
    tracker.params({"pretrain/optimizer": "torch_fused"})
    tracker.tags({"pretrain/device": "cpu"})
    (tmp_path / "curve.png").write_bytes(b"picture")
    tracker.file(tmp_path / "curve.png", "figures")
    tracker.close()
    driver.finish(child, "FINISHED")
    driver.finish(parent, "FAILED")
    delivery = deliver(driver)
    runs = runs_of(driver, delivery)
    run = runs["crate-1l"]
    assert (run.info.status, runs["study"].info.status) == ("FINISHED", "FAILED")
    assert run.data.tags["mlflow.parentRunId"] == runs["study"].info.run_id
    history = delivery.client.get_metric_history(run.info.run_id, "pretrain/loss")
    assert [(m.step, m.value) for m in sorted(history, key=lambda m: m.step)] == [
        (1024 * s, 10 - s / 10) for s in range(1, 51)
    ]
    assert math.isnan(run.data.metrics["pretrain/grad_norm"])
    assert run.data.metrics["n_params"] == 6.5e6
    assert run.data.params == {"model.n_layer": "1", "model.architecture": "crate", "pretrain/optimizer": "torch_fused"}
    assert run.data.tags["runtime.workers_per_cell"] == "1"
    assert run.data.tags["pretrain/device"] == "cpu"
    assert runs["study"].data.tags["mlflow.source.git.commit"] == "abc123"
    (inputs,) = run.inputs.dataset_inputs
    assert (inputs.dataset.digest, inputs.tags[0].value) == ("d" * 32, "training")
    (file,) = delivery.client.list_artifacts(run.info.run_id, "figures")
    assert file.path == "figures/curve.png"
    delivery.clean()
    assert not list(driver.spool.glob("*/run.json"))


def test_a_rerun_continues_the_same_run_and_another_model_is_another(driver: Driver) -> None:
    for attempt in range(2):
        _, child = open_sweep(driver)
        tracker = child.open()
        tracker.metrics({"pretrain/loss": 5.0 - attempt}, step=1000 * (attempt + 1))
        tracker.params({"pretrain/workers": attempt})
        tracker.close()
        first = runs_of(driver, deliver(driver))["crate-1l"]
        assert first.info.status == "RUNNING"
        driver.finish(child, "FINISHED")
        time.sleep(0.002)
    delivery = deliver(driver)
    run = runs_of(driver, delivery)["crate-1l"]
    assert len(delivery.client.get_metric_history(run.info.run_id, "pretrain/loss")) == 2
    assert run.data.params["pretrain/workers"] == "0"  # parameters never change in MLflow
    assert run.data.tags["now.pretrain/workers"] == "1"
    parent = driver.start_parent("study", {}, {})
    other = driver.start_child(parent, "crate-1l-longer", "e" * 32, {})
    deliver(driver)
    assert other.run_id.startswith("crate-1l-longer-")
    assert len(runs_of(driver, delivery)) == 3


def test_lines_sent_twice_are_there_once(driver: Driver) -> None:
    """A sender that dies between sending and noting sends again."""
    _, child = open_sweep(driver)
    tracker = child.open()
    tracker.metrics({"pretrain/loss": 4.0}, step=5)
    tracker.close()
    deliver(driver)
    for note in driver.spool.glob("*/*.sent"):
        note.unlink()
    delivery = deliver(driver)
    run = runs_of(driver, delivery)["crate-1l"]
    assert len(delivery.client.get_metric_history(run.info.run_id, "pretrain/loss")) == 1


def test_the_scaling_curve_is_a_metric_whose_step_is_the_size(driver: Driver) -> None:
    parent = driver.start_parent("study", {}, {})
    rows = [
        {"architecture": "crate", "n_params": n, "n_params_non_embedding": n // 10, "val_loss": loss}
        for n, loss in ((6_500_000, 4.0), (6_500_000, 4.2), (6_700_000, 3.5))
    ]
    for _ in range(2):  # a rerun tells it again
        driver.log_scaling(parent, rows)
    delivery = deliver(driver)
    run = runs_of(driver, delivery)["study"]
    history = delivery.client.get_metric_history(run.info.run_id, "val_loss_crate")
    assert sorted((m.step, m.value) for m in history) == [(6_500_000, pytest.approx(4.1)), (6_700_000, 3.5)]
    assert run.data.metrics["val_loss_crate_by_non_embedding"] == 3.5


def test_other_models_of_a_sweep_s_name_are_other_curves_and_equal_ones_keep_their_run(driver: Driver) -> None:
    history = []
    for models, loss in (("a",), 4.0), (("a", "b"), 5.0):
        parent = driver.start_parent("study", {}, {}, curves_of=models)
        child = driver.start_child(parent, "crate-1l", "f" * 32, {})
        driver.log_scaling(
            parent, [{"architecture": "crate", "n_params": 100, "n_params_non_embedding": 10, "val_loss": loss}]
        )
        delivery = deliver(driver)
        experiment = delivery.client.get_experiment_by_name(driver.experiment).experiment_id
        found = {run.data.tags["crate.run"]: run for run in delivery.client.search_runs([experiment])}
        own = found[parent.run_id].info.run_id
        history.append([m.value for m in delivery.client.get_metric_history(own, "val_loss_crate")])
        assert found[child.run_id].data.tags["mlflow.parentRunId"] == own
    assert history == [[4.0], [5.0]]
    assert len(found) == 3


def test_a_checkpoint_is_registered_where_it_lies_and_once(driver: Driver, tmp_path: Path) -> None:
    sweep = SyntheticSweep(fresh_store(tmp_path / "store"), total_tokens=4096, d_model=8, n_head=1, top=1, random=1)
    trained: Artifact = sweep.inputs[sweep.add("crate", 1) + "/pretrain"]
    _, child = open_sweep(driver, trained.fingerprint)
    for _ in range(2):
        driver.checkpoint(child, "crate-1l", trained)
        deliver(driver)
    delivery = deliver(driver)
    experiment = delivery.client.get_experiment_by_name(driver.experiment).experiment_id
    (model,) = delivery.client.search_logged_models([experiment])
    assert model.tags["checkpoint"] == str(trained.folder.resolve())
    assert model.params["n_params"] == str(trained.summary["n_params"])
    assert not delivery.client.list_logged_model_artifacts(model.model_id)


def test_a_refused_line_holds_nothing_up(driver: Driver, caplog: pytest.LogCaptureFixture) -> None:
    _, child = open_sweep(driver)
    tracker = child.open()
    tracker.metrics({"no $uch name": 1.0}, step=0)
    tracker.close()
    second = child.open()
    second.metrics({"pretrain/loss": 3.0}, step=1)
    second.close()
    run = runs_of(driver, deliver(driver))["crate-1l"]
    assert run.data.metrics["pretrain/loss"] == 3.0
    assert "refused" in caplog.text


def test_no_password_is_ever_shown(driver: Driver) -> None:
    secret = "postgresql://someone:s3cret@db/mlflow"
    driver.uri, plain = secret, driver.uri
    spec = driver.start_parent("study", {"runtime": {"mlflow_uri": secret}, "where": secret}, {})
    assert "s3cret" not in json.dumps(spec.__dict__)
    driver.uri = plain
    deliver(driver)
    assert all("s3cret" not in path.read_text() for path in driver.spool.rglob("*") if path.is_file())
    assert shown(secret) == "postgresql://db/mlflow"


def test_a_full_disk_never_stops_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = tmp_path / "not a folder"
    place.write_text("")
    tracker = SpoolTracker(LocalSpool(place / "run"))
    tracker.metrics({"pretrain/loss": 1.0}, step=1)
    tracker.close()
    assert caplog.text.count("tracking cannot be written") == 1


def test_system_metrics_are_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.tracking_spool.SYSTEM_SECONDS", 0.1)
    monkeypatch.setattr(LocalSpool, "flush_seconds", 0.1)
    tracker = SpoolTracker(LocalSpool(tmp_path))
    time.sleep(0.5)
    tracker.close()
    (path,) = tmp_path.glob("*.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= lines[0]["metrics"].keys()


def test_workers_without_the_drivers_disk_leave_lines_on_the_object_storage(database: str, tmp_path: Path) -> None:
    with s3_server():
        remote = f"s3://{BUCKET}/store/runs/s/mlflow-spool"
        driver = Driver(database, tmp_path.name, tmp_path / "runs" / "s" / "mlflow-spool", remote)
        _, child = open_sweep(driver)
        assert child.spool.startswith(remote)
        tracker = child.open()
        tracker.metrics({"pretrain/loss": 2.5}, step=7)
        (tmp_path / "a.txt").write_text("file")
        tracker.file(tmp_path / "a.txt")
        tracker.close()
        from pipeline.artifacts.storage import Storage

        delivery = Delivery(driver.uri, driver.spool, Storage(child.spool))
        while delivery.deliver():
            pass
        run = runs_of(driver, delivery)["crate-1l"]
        assert run.data.metrics["pretrain/loss"] == 2.5
        assert [file.path for file in delivery.client.list_artifacts(run.info.run_id)] == ["a.txt"]
        assert Storage(child.spool).names() == []


DRIVER = """
import os, sys, time
from pathlib import Path
from pipeline.tracking_driver import TrackedSweep
sweep = TrackedSweep(sys.argv[1], "killed", Path(sys.argv[2]))
parent = sweep.start_parent("study", {}, {})
child = sweep.start_child(parent, "crate-1l", "f" * 32, {})
print("open", flush=True)
time.sleep(600)
"""


def test_runs_of_a_killed_driver_are_marked_killed(database: str, tmp_path: Path) -> None:
    """The delivery process outlives a `kill -9` of its driver just long enough to say so."""
    spool = tmp_path / "runs" / "killed" / "mlflow-spool"
    process = subprocess.Popen([sys.executable, "-c", DRIVER, database, str(spool)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "open\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 90
    while list(spool.glob("*/*/run.json")):
        assert time.monotonic() < deadline, next(spool.glob("*/delivery.log")).read_text()
        time.sleep(0.2)
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=database)
    experiment = client.get_experiment_by_name("killed")
    assert experiment is not None
    assert {run.info.run_name: run.info.status for run in client.search_runs([experiment.experiment_id])} == {
        "study": "KILLED",
        "crate-1l": "KILLED",
    }


def test_only_open_runs_are_marked(driver: Driver) -> None:
    _, child = open_sweep(driver)
    driver.finish(child, "FINISHED")
    mark_killed(driver.spool)
    runs = runs_of(driver, deliver(driver))
    assert (runs["study"].info.status, runs["crate-1l"].info.status) == ("KILLED", "FINISHED")


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    yield
