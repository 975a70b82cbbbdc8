"""How far a step is, told through a small file that anybody may read: the driver's lines, `status` in another terminal.

Workers write `runs/<run>/progress/<step>.json` at most twice a second (every five seconds to an object storage), whole, so a
reader never sees half a file and a slow reader never holds up a worker.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.artifacts.store import Store

WRITE_EVERY_SECONDS = 0.5
WRITE_FAR_EVERY_SECONDS = 5.0
FOLDER = "progress"


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
    told: list[str] = field(default_factory=list)  # sentences that a person is to read once
    fingerprint: str = ""  # of what is being made: another configuration of this name may have a step of this name

    @property
    def rate(self) -> float:
        """Units a second in this attempt; 0 before anything is known."""
        seconds = self.updated - self.started
        return (self.done - self.done_at_start) / seconds if seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        return (self.total - self.done) / self.rate if self.rate > 0 else None


class Progress:
    """The writing end. `update` is cheap: it writes every now and then, and always at the end."""

    def __init__(self, store: Store, run_name: str, step: str, total: float, unit: str, fingerprint: str = "") -> None:
        self.store, self.run_name = store, run_name
        self.note = _note(step)
        self.pause_seconds = WRITE_FAR_EVERY_SECONDS if store.storage else WRITE_EVERY_SECONDS
        now = time.time()
        self.state = ProgressState(step, 0, total, unit, now, 0, now, fingerprint=fingerprint)
        self._written = 0.0

    def start_at(self, done: float, told: Iterable[str] = ()) -> None:
        """Say that an earlier attempt did this much, and what a person is to read about it."""
        self.state.done = self.state.done_at_start = done
        self.state.told = list(told)
        self._write()

    def update(self, done: float, **facts: Any) -> None:
        self.state.done = done
        self.state.facts.update(facts)
        self.state.updated = time.time()
        if done >= self.state.total or self.state.updated - self._written >= self.pause_seconds:
            self._write()

    def tell(self, sentence: str) -> None:
        """Something that a person is to read once."""
        self.state.told.append(sentence)
        self.state.updated = time.time()
        self._write()

    def _write(self) -> None:
        self._written = time.time()
        self.store.write_note(self.run_name, self.note, json.dumps(asdict(self.state)).encode())


def _note(step: str) -> str:
    return f"{FOLDER}/{step.replace('/', '--')}.json"


def progress_of(store: Store, run_name: str, step: str) -> ProgressState | None:
    """One step's state; None before it has begun."""
    data = store.read_note(run_name, _note(step))
    return ProgressState(**json.loads(data)) if data is not None else None


def read_progress(store: Store, run_name: str) -> dict[str, ProgressState]:
    """All steps' states by step name; empty before anything has begun."""
    states = (ProgressState(**json.loads(data)) for data in store.notes(run_name, FOLDER).values())
    return {state.step: state for state in states}


def amount(value: float) -> str:
    """A count as people say it: 950, 12.3k, 4.56M, 157B."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    hours, rest = divmod(int(seconds + 0.5), 3600)
    minutes, seconds = divmod(rest, 60)
    if hours >= 48:
        return f"{hours / 24:.1f} d"
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


def facts_text(facts: dict[str, object]) -> str:
    return "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in facts.items())


def progress_text(state: ProgressState) -> str:
    """`1.02M of 2M tokens  1.6k tokens/s  10 min left  loss 5.31`."""
    facts = dict(state.facts)
    rate = facts.pop(f"{state.unit}/s", state.rate)  # a step that measures its own rate tells the newest
    parts = [f"{amount(state.done)} of {amount(state.total)} {state.unit}"]
    if state.rate > 0:
        parts += [f"{amount(rate)} {state.unit}/s", f"{duration(state.seconds_left)} left"]
    return "  ".join([*parts, facts_text(facts)]).rstrip()
