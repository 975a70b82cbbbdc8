"""How far a step is, told through a small file that anybody may read: the driver's lines, `status` in another terminal.

Workers write `runs/<run>/progress/<step>.json` at most twice a second, by rename, so a reader never sees half a file and a
slow reader never holds up a worker.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

WRITE_EVERY_SECONDS = 0.5


@dataclass
class ProgressState:
    """One step's progress. `facts` are what a person wants to see beside it, e.g. {"loss": 5.31}."""

    step: str
    done: float
    total: float
    unit: str
    started: float  # seconds since the epoch, of this attempt
    done_at_start: float  # what an earlier attempt had done already: not counted in the rate
    updated: float
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Units a second in this attempt; 0 before anything is known."""
        seconds = self.updated - self.started
        return (self.done - self.done_at_start) / seconds if seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        return (self.total - self.done) / self.rate if self.rate > 0 else None


class Progress:
    """The writing end. `update` is cheap: it writes at most every WRITE_EVERY_SECONDS, and always at the end."""

    def __init__(self, folder: Path, step: str, total: float, unit: str) -> None:
        self.path = folder / (step.replace("/", "--") + ".json")
        now = time.time()
        self.state = ProgressState(step, 0, total, unit, now, 0, now)
        self._written = 0.0

    def start_at(self, done: float) -> None:
        """Say that an earlier attempt did this much."""
        self.state.done = self.state.done_at_start = done
        self._write()

    def update(self, done: float, **facts: Any) -> None:
        self.state.done = done
        self.state.facts.update(facts)
        self.state.updated = time.time()
        if done >= self.state.total or self.state.updated - self._written >= WRITE_EVERY_SECONDS:
            self._write()

    def _write(self) -> None:
        self._written = time.time()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(asdict(self.state)), encoding="utf-8")
        temporary.replace(self.path)


def read_progress(folder: Path) -> dict[str, ProgressState]:
    """All steps' states by step name; a folder that is not there yet is simply empty."""
    states = (ProgressState(**json.loads(path.read_text("utf-8"))) for path in sorted(folder.glob("[!.]*.json")))
    return {state.step: state for state in states}
