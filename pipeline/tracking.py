"""What a room may tell the experiment tracker, and no more. MLflow itself lives in `mlflow_tracker.py`.

A `TrackerSpec` is plain data that travels to workers; `open()` gives the tracker of this step's cell. A tracker only
appends to files in the sweep's spool folder (`tracking_spool.py`); a process beside the driver sends them to the server.
So tracking costs a training step the same, which is next to nothing, whether the server is near, slow or down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


class Tracker(Protocol):
    """Writes to one run of one cell. Calls return at once; `close` flushes."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Named numbers at a step (for training: tokens seen). Names are `room/what`."""

    def params(self, values: Mapping[str, Any]) -> None:
        """What was chosen and stays so for the whole run, e.g. the optimizer really used."""

    def tags(self, values: Mapping[str, str]) -> None:
        """What may change from one attempt to the next."""

    def file(self, path: Path, folder: str = "") -> None:
        """Keep a copy of a file (a figure, a table) with the run."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class TrackerSpec:
    """Where and as what a step is tracked. An empty `uri` tracks nothing (single stages run by hand, tests)."""

    uri: str = ""
    experiment: str = ""
    run_id: str = ""  # of the cell (or of the parent, for sweep-wide steps): a folder of the spool, a tag in MLflow
    spool: str = ""  # folder, or object storage address, for what is not sent yet

    def open(self) -> Tracker:
        if not self.uri:
            return NoTracker()
        from pipeline.tracking_spool import SpoolTracker, open_spool

        return SpoolTracker(open_spool(self.spool, self.run_id))


class NoTracker:
    """Tracks nothing."""

    def metrics(self, values: Mapping[str, float], step: int) -> None: ...

    def params(self, values: Mapping[str, Any]) -> None: ...

    def tags(self, values: Mapping[str, str]) -> None: ...

    def file(self, path: Path, folder: str = "") -> None: ...

    def close(self) -> None: ...
