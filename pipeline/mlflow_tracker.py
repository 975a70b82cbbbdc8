"""MLflow, all of it: a process of its own that sends a sweep's spool to the tracking store.

`python -m pipeline.mlflow_tracker` is started by the driver and reads two JSON lines from it: where to send what, and that
the sweep has ended. When the driver dies instead, its open runs are marked KILLED. Sending again is harmless: lines carry
their times, and MLflow keeps equal metrics once. What cannot be sent stays in the spool for the next run.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.artifacts.storage import Storage
from pipeline.tracking_spool import note_sent, read_lines, sent_bytes, write_whole

logger = logging.getLogger("crate.mlflow")
PASS_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 30.0
METRICS_A_CALL, PARAMS_A_CALL, LONGEST_VALUE = 1000, 100, 6000  # MLflow's limits
REFUSALS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS"}  # sending again would not help
KEY = "crate.run"  # tag by which a run is found again


class Delivery:
    """Sends one spool to one tracking store. Not reachable: the exception of MLflow, requests or the database."""

    def __init__(self, uri: str, spool: Path, remote: Storage | None = None) -> None:
        import mlflow
        from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES, MLFLOW_HTTP_REQUEST_TIMEOUT

        MLFLOW_HTTP_REQUEST_MAX_RETRIES.set(0)  # the spool is the retry
        MLFLOW_HTTP_REQUEST_TIMEOUT.set(30)
        self.spool, self.uri, self.remote = spool, uri, remote
        self.client = mlflow.MlflowClient(tracking_uri=uri)
        self._experiments: dict[str, str] = {}
        self._runs: dict[str, tuple[int, str, str]] = {}  # key -> (when opened, MLflow's run id, its experiment)

    def deliver(self) -> int:
        """One pass over the spool. Returns how many lines were sent."""
        self._collect()
        folders = [path.parent for path in sorted(self.spool.glob("*/run.json"))]
        return sum(self._deliver_run(folder.name) for folder in folders)

    def _collect(self) -> None:
        """Bring what workers left on the object storage: files before the lines that speak of them."""
        names = self.remote.names() if self.remote else []
        for name in sorted(names, key=lambda name: "/files/" not in name):
            assert self.remote
            self.remote.download(name, self.spool / name)
            self.remote.delete([name])

    def clean(self) -> None:
        """Remove the runs of which everything is delivered, their end included."""
        for folder in [path.parent for path in self.spool.glob("*/run.json")]:
            if is_delivered(folder):
                shutil.rmtree(folder)

    def _deliver_run(self, key: str) -> int:
        run_id = self._run(key)
        n_lines = 0
        for path in sorted((self.spool / key).glob("*.jsonl")):
            lines, offset = read_lines(path)
            if lines:
                self._send(run_id, key, lines)
                note_sent(path, offset)
                n_lines += len(lines)
        return n_lines

    def _run(self, key: str) -> str:
        """MLflow's id of a run, which is found by its tag or created, and marked as running when it was opened anew."""
        opening = json.loads((self.spool / key / "run.json").read_text("utf-8"))
        if key in self._runs and self._runs[key][0] == opening["opened"]:
            return self._runs[key][1]
        experiment = self._experiment(opening["experiment"])
        found = self.client.search_runs([experiment], f"tags.`{KEY}` = '{key}'", max_results=1)
        run = found[0] if found else self._create(key, experiment, opening)
        run_id = run.info.run_id
        noted = self.spool / key / "run.sent"
        if not noted.is_file() or noted.read_text() != str(opening["opened"]):
            if found:
                self.client.update_run(run_id, status="RUNNING")
            self._tag(run_id, opening["tags"] | self._parent_tag(opening))
            self._log_params(run_id, opening["params"], run.data.params)
            self._log_datasets(run_id, opening["datasets"])
            write_whole(noted, str(opening["opened"]))
        self._runs[key] = opening["opened"], run_id, experiment
        return run_id

    def _create(self, key: str, experiment: str, opening: dict[str, Any]) -> Any:
        tags = {KEY: key, "mlflow.source.name": "pipeline/sweep.py", "mlflow.source.type": "JOB"}
        tags |= self._parent_tag(opening)
        if "git" in opening["tags"]:
            tags["mlflow.source.git.commit"] = opening["tags"]["git"].rstrip("+")
        return self.client.create_run(experiment, opening["opened"], tags, opening["name"])

    def _parent_tag(self, opening: dict[str, Any]) -> dict[str, str]:
        """Whose child a run is: of the sweep that opened it last."""
        return {"mlflow.parentRunId": self._run(opening["parent"])} if opening["parent"] else {}

    def _experiment(self, name: str) -> str:
        if name not in self._experiments:
            found = self.client.get_experiment_by_name(name)
            if found is None:
                self._experiments[name] = self.client.create_experiment(
                    name, artifact_location=self._artifact_location()
                )
            else:
                if found.lifecycle_stage == "deleted":
                    self.client.restore_experiment(found.experiment_id)
                self._experiments[name] = found.experiment_id
        return self._experiments[name]

    def _artifact_location(self) -> str | None:
        """A server has its own place; with a bare database the files lie beside the spool."""
        return None if self.uri.startswith("http") else (self.spool.parents[1] / "mlflow-artifacts").as_uri()

    def _send(self, run_id: str, key: str, lines: list[dict[str, Any]]) -> None:
        from mlflow.entities import Metric

        metrics = []
        unique: set[tuple[str, float, int]] = set()
        for line in lines:
            for name, value in line.get("metrics", {}).items():
                point = (name, value, line["step"])
                if not line.get("unique") or not (point in unique or self._has(run_id, *point)):
                    metrics.append(Metric(name, value, line["t"], line["step"]))
                    unique.add(point)
        self._log_batches(run_id, "metrics", metrics, METRICS_A_CALL)
        if params := _merged(lines, "params"):
            self._log_params(run_id, params, self.client.get_run(run_id).data.params)
        self._tag(run_id, _merged(lines, "tags"))
        for line in lines:
            with _refusals_noted():
                if "file" in line:
                    self._log_file(run_id, key, line)
                elif "model" in line:
                    self._register(run_id, key, line["model"])
                elif (
                    "end" in line and line["t"] >= self._runs[key][0]
                ):  # not that of an attempt before the last opening
                    self.client.set_terminated(run_id, line["end"], line["t"])

    def _has(self, run_id: str, name: str, value: float, step: int) -> bool:
        return any(old.step == step and old.value == value for old in self.client.get_metric_history(run_id, name))

    def _log_params(self, run_id: str, params: dict[str, str], known: dict[str, str]) -> None:
        """MLflow's parameters never change; one that does between two attempts is kept as the tag `now.<name>`."""
        from mlflow.entities import Param

        texts = {name: value[:LONGEST_VALUE] for name, value in params.items()}
        new = [Param(name, value) for name, value in texts.items() if name not in known]
        self._log_batches(run_id, "params", new, PARAMS_A_CALL)
        self._tag(run_id, {f"now.{name}": value for name, value in texts.items() if known.get(name, value) != value})

    def _tag(self, run_id: str, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        texts = [RunTag(name, value[:LONGEST_VALUE]) for name, value in tags.items()]
        self._log_batches(run_id, "tags", texts, PARAMS_A_CALL)

    def _log_batches(self, run_id: str, kind: str, values: list[Any], size: int) -> None:
        for start in range(0, len(values), size):
            with _refusals_noted():
                self.client.log_batch(run_id, **{kind: values[start : start + size]}, synchronous=True)

    def _log_datasets(self, run_id: str, datasets: list[dict[str, str]]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = [
            DatasetInput(
                Dataset(d["name"], d["digest"], "local", json.dumps({"uri": d["source"]})),
                [InputTag("mlflow.data.context", d["context"])],
            )
            for d in datasets
        ]
        if inputs:
            self.client.log_inputs(run_id, inputs)

    def _log_file(self, run_id: str, key: str, line: dict[str, Any]) -> None:
        path = self.spool / key / "files" / line["file"]
        if path.is_file():  # gone: it was sent by an attempt that ended before it could note so
            self.client.log_artifact(run_id, str(path), line["folder"] or None)
            shutil.rmtree(path.parent)

    def _register(self, run_id: str, key: str, model: dict[str, Any]) -> None:
        """A logged model without files: its tags say where the checkpoint lies."""
        from mlflow.entities import LoggedModelStatus

        experiment, tag = self._runs[key][2], "crate.fingerprint"
        if self.client.search_logged_models([experiment], f"tags.`{tag}` = '{model['fingerprint']}'", max_results=1):
            return
        tags = {tag: model["fingerprint"], "checkpoint": model["folder"], "mlflow.model.isExternal": "true"}
        made = self.client.create_logged_model(experiment, model["name"], run_id, tags, model["params"])
        self.client.finalize_logged_model(made.model_id, LoggedModelStatus.READY)


@contextlib.contextmanager
def _refusals_noted() -> Iterator[None]:
    """What the server says is wrong is written down and left, so that it does not hold up what is right."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code not in REFUSALS:
            raise
        logger.warning("refused: %s", str(error).partition("\n")[0])


def is_open(folder: Path) -> bool:
    """Whether a run has no end since it was last opened."""
    opened = json.loads((folder / "run.json").read_text("utf-8"))["opened"]
    texts = (
        text for path in folder.glob("*.jsonl") for text in path.read_text("utf-8").splitlines() if '"end": ' in text
    )
    return not any(json.loads(text)["t"] >= opened for text in texts)


def is_delivered(folder: Path) -> bool:
    """Whether the server has all of a run's lines, its end among them."""
    return not is_open(folder) and all(path.stat().st_size == sent_bytes(path) for path in folder.glob("*.jsonl"))


def mark_killed(spool: Path) -> None:
    for folder in [path.parent for path in spool.glob("*/run.json")]:
        if is_open(folder):
            line = {"end": "KILLED", "t": int(time.time() * 1000)}
            with (folder / f"killed-{os.getpid()}.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def serve(uri: str, spool: Path, remote: Storage | None, driver_left: threading.Event) -> int:
    """Deliver until the driver has left and everything is sent (0), or cannot be sent (1)."""
    delivery, wait = None, PASS_SECONDS
    while True:
        last = driver_left.is_set()  # read before the pass: what the driver wrote before it left is in this one
        try:
            delivery = delivery or Delivery(uri, spool, remote)
            n_lines = delivery.deliver()
            wait = PASS_SECONDS
            if last and not n_lines:
                delivery.clean()
                return 0
            if n_lines and last:
                continue
        except Exception as error:  # noqa: BLE001 - many libraries' ways to say "not reachable"; the spool keeps everything
            logger.warning("not delivered: %s: %s", type(error).__name__, str(error).partition("\n")[0])
            if last:
                return 1
            wait = min(2 * wait, LONGEST_WAIT_SECONDS)
        driver_left.wait(wait)


def main() -> int:
    logging.basicConfig(format="%(asctime)s %(name)s %(message)s", level=logging.WARNING)
    os.nice(10)  # the cores are the training's
    order = json.loads(sys.stdin.readline())
    spool, left = Path(order["spool"]), threading.Event()

    def await_end() -> None:
        if not sys.stdin.readline():
            mark_killed(spool)
        left.set()

    threading.Thread(target=await_end, daemon=True).start()
    with (spool / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one sender a spool: a sweep's last one may still be at it
        return serve(order["uri"], spool, Storage(order["remote"]) if order.get("remote") else None, left)


def _merged(lines: list[dict[str, Any]], kind: str) -> dict[str, str]:
    return {name: value for line in lines for name, value in line.get(kind, {}).items()}


if __name__ == "__main__":
    sys.exit(main())
