"""What a room may tell the experiment tracker, and no more. MLflow itself lives in `mlflow_tracker.py`.

A `TrackerSpec` is plain data that travels to workers; `open()` gives the tracker of this step's cell. Tracking never stops
a run: a tracker that cannot reach its server spools to disk.
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

    def params(self, values: Mapping[str, Any]) -> None: ...

    def tags(self, values: Mapping[str, str]) -> None: ...

    def file(self, path: Path, folder: str = "") -> None:
        """Keep a file (a figure, a table) with the run."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class TrackerSpec:
    """Where and as what a step is tracked. An empty `uri` tracks nothing (single stages run by hand, tests)."""

    uri: str = ""
    experiment: str = ""
    run_id: str = ""  # of the cell (or of the parent, for sweep-wide steps)
    spool: str = ""  # folder for what could not be sent yet

    def open(self) -> Tracker:
        if not self.uri:
            return NoTracker()
        from pipeline.mlflow_tracker import MlflowTracker

        return MlflowTracker(self)


class NoTracker:
    """Tracks nothing."""

    def metrics(self, values: Mapping[str, float], step: int) -> None: ...

    def params(self, values: Mapping[str, Any]) -> None: ...

    def tags(self, values: Mapping[str, str]) -> None: ...

    def file(self, path: Path, folder: str = "") -> None: ...

    def close(self) -> None: ...
