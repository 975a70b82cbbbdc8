"""The driver's end of tracking: opens the runs of a sweep, says how they ended, and keeps the delivery process.

Nothing here talks to the tracking server, so a server that is slow or down never holds up a sweep. Runs are known by a key
of sweep, cell and fingerprint: a rerun writes under the same key and so continues the same run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.artifacts.artifact import Artifact
from pipeline.naming import flat
from pipeline.tracking import TrackerSpec
from pipeline.tracking_spool import LocalSpool, SpoolTracker, shown, write_whole

logger = logging.getLogger(__name__)
CLOSE_SECONDS = 60.0


class TrackedSweep:
    """One sweep's runs on one tracking server. `uri` may hold a password: it is told to the delivery process alone.

    `spool` is a folder of this machine; `remote` an object storage address where workers of other machines leave theirs.
    """

    def __init__(self, uri: str, experiment: str, spool: Path, remote: str = "") -> None:
        self.uri, self.experiment = uri, experiment
        server = _digest(shown(uri))[:8]  # what was meant for one server is never sent to another
        self.spool = (spool / server).resolve()
        self.workers_spool = f"{remote}/{server}" if remote else str(self.spool)
        self.spool.mkdir(parents=True, exist_ok=True)
        self._own: dict[str, SpoolTracker] = {}
        self._start_delivery(self.workers_spool if remote else "")

    def _start_delivery(self, remote: str) -> None:
        """A process of its own: it takes nothing of the driver's time, and outlives it to say that it was killed."""
        with (self.spool / "delivery.log").open("a") as log:
            self.delivery = subprocess.Popen(
                [sys.executable, "-m", "pipeline.mlflow_tracker"],
                cwd=Path(__file__).parents[1],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                text=True,
                start_new_session=True,  # Ctrl-C is for the driver, which then tells how its runs ended
            )
        self._tell({"uri": self.uri, "spool": str(self.spool), "remote": remote})

    def start_parent(
        self, sweep: str, params: Mapping[str, Any], tags: Mapping[str, str], curves_of: Sequence[str] = ()
    ) -> TrackerSpec:
        """Open the sweep's own run, or go on with it.

        `curves_of` are the fingerprints of the artifacts that its scaling curves are drawn from. Of other artifacts it is another
        run, because MLflow keeps every point that a curve ever had.
        """
        key = f"{sweep}-{_digest(self.workers_spool, sweep, *curves_of)[:12]}"
        return self._open(sweep, key, "", params, tags, ())

    def start_child(
        self,
        parent: TrackerSpec,
        cell: str,
        fingerprint: str,
        config: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
        datasets: Sequence[Mapping[str, str]] = (),
        tags: Mapping[str, str] | None = None,
    ) -> TrackerSpec:
        """Open a cell's run, or go on with it, below this parent; another `fingerprint` is another run.

        `config` is shown as parameters, its `runtime` part as tags, because that may change between attempts. `datasets`
        have `name`, `digest`, `source` and `context`. `metrics` are facts to plot against (`n_params`).
        """
        key = f"{cell}-{_digest(self.workers_spool, self.experiment, cell, fingerprint)[:12]}"
        spec = self._open(cell, key, parent.run_id, config, {"fingerprint": fingerprint, **(tags or {})}, datasets)
        if metrics:
            self._tracker(spec).unique_metrics(metrics, step=0)
        return spec

    def checkpoint(
        self, spec: TrackerSpec, name: str, artifact: Artifact, size: Mapping[str, int] | None = None
    ) -> None:
        """Register a trained model by reference: its folder and fingerprint, no copy. `size`: its parameters by name."""
        facts = {key: value for key, value in artifact.summary.items() if not isinstance(value, dict | list)}
        facts |= size or {}
        self._tracker(spec).checkpoint(name, artifact.folder.resolve(), artifact.fingerprint, facts)

    def log_scaling(self, parent: TrackerSpec, rows: Sequence[Mapping[str, Any]]) -> None:
        """Scaling curves as metrics `val_loss_<architecture>` and `score_<metric>_<architecture>` whose step is the parameter
        count, so that the tracking server's own chart of the metric is the scaling plot. Replicas of a size are averaged.

        `rows` have `architecture`, `n_params`, `n_params_non_embedding`, and `val_loss` or `scores` by metric or both; and where
        there are any the `variant` of the training and how the model was `judged`, which are part of the curves' names.
        """
        curves: dict[tuple[str, int], list[float]] = {}
        for row in rows:
            series = "_".join(filter(None, (row["architecture"], row.get("variant"))))
            values = {f"val_loss_{series}": row["val_loss"]} if "val_loss" in row else {}
            judged = "_".join(filter(None, (series, row.get("judged"))))
            values |= {f"score_{metric}_{judged}": score for metric, score in row.get("scores", {}).items()}
            for name, value in values.items():
                curves.setdefault((name, row["n_params"]), []).append(value)
                curves.setdefault((f"{name}_by_non_embedding", row["n_params_non_embedding"]), []).append(value)
        tracker = self._tracker(parent)
        for (name, size), found in sorted(curves.items()):
            tracker.unique_metrics({name: sum(found) / len(found)}, step=size)

    def log_files(self, spec: TrackerSpec, artifact: Artifact, endings: tuple[str, ...]) -> None:
        """Copies of an artifact's files with these endings, in the folders that they have there."""
        for name in artifact.names():
            if name.endswith(endings):
                self._tracker(spec).file(artifact.file(name), str(Path(name).parent) if "/" in name else "")

    def finish(self, spec: TrackerSpec, status: str) -> None:
        """FINISHED, FAILED or KILLED. A run that is never finished here is marked KILLED when this process is gone."""
        self._tracker(spec).end(status)

    def close(self) -> None:
        """Wait for the delivery of what is left: not for a server that is down."""
        self._tell({"end": True})
        try:
            code = self.delivery.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            code = -1  # it goes on by itself
        if code:
            logger.warning(
                "the tracking server has not everything yet; the rest waits in %s and goes with the next run",
                self.spool,
            )

    def _open(
        self,
        name: str,
        key: str,
        parent: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        datasets: Sequence[Mapping[str, str]],
    ) -> TrackerSpec:
        texts = {key: shown(value) for key, value in flat(params).items()}
        changing = {key: value for key, value in texts.items() if key.startswith("runtime.")}
        opening = {
            "experiment": self.experiment,
            "name": name,
            "parent": parent,
            "opened": time.time_ns() // 1_000_000,
            "params": {key: value for key, value in texts.items() if key not in changing},
            "tags": {**changing, **{key: shown(value) for key, value in tags.items()}},
            "datasets": [dict(dataset) for dataset in datasets],
        }
        write_whole(self.spool / key / "run.json", json.dumps(opening))
        return TrackerSpec(shown(self.uri), self.experiment, key, self.workers_spool)

    def _tracker(self, spec: TrackerSpec) -> SpoolTracker:
        if spec.run_id not in self._own:
            self._own[spec.run_id] = SpoolTracker(LocalSpool(self.spool / spec.run_id), background=False)
        return self._own[spec.run_id]

    def _tell(self, message: Mapping[str, Any]) -> None:
        assert self.delivery.stdin is not None
        try:
            self.delivery.stdin.write(json.dumps(message) + "\n")
            self.delivery.stdin.flush()
            if "end" in message:
                self.delivery.stdin.close()
        except BrokenPipeError:
            logger.warning("the delivery of tracking has ended early: see %s", self.spool / "delivery.log")


def _digest(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
