"""Who holds up the others: every worker says how far it is, and one that waits too long names those behind and ends itself.

A collective that one worker never enters blocks all others without a word, and what its timeout says differs by backend and
names nobody. Here each worker notes its step in the process group's key-value store, and a thread of its own that it lives;
one that sees no step for the timeout reads all notes.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

logger = logging.getLogger(__name__)
EXIT_HUNG = 75
READ_SECONDS = 5


class Watchdog:
    """Watches one worker's steps. `tell` gets the sentence that names who is behind, before the process ends."""

    def __init__(
        self, store: Any, rank: int, world_size: int, timeout_seconds: float, tell: Callable[[str], None]
    ) -> None:
        self.store, self.rank, self.world_size, self.timeout, self.tell = store, rank, world_size, timeout_seconds, tell
        self._closed = threading.Event()
        self._tick = min(1.0, timeout_seconds / 10)
        self.store.set(f"crate/alive/{rank}", "0")
        self.beat(-1)
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self, step: int) -> None:
        """Note that this worker has come to the end of a step, or of some other piece of work within it."""
        self._step, self._since = step, time.monotonic()
        note = {"step": step, "host": socket.gethostname(), "pid": os.getpid()}
        self.store.set(f"crate/step/{self.rank}", json.dumps(note))

    def close(self) -> None:
        self._closed.set()

    def _watch(self) -> None:
        ticks = 0
        while not self._closed.wait(self._tick):
            ticks += 1
            self.store.set(f"crate/alive/{self.rank}", str(ticks))
            if time.monotonic() - self._since > self.timeout:
                self._end()

    def _end(self) -> None:
        what = self.who_is_behind()
        logger.error(what)
        faulthandler.dump_traceback(file=sys.stderr)
        try:
            self.tell(what)
        finally:
            os._exit(EXIT_HUNG)  # the main thread hangs in a collective and cannot be interrupted

    def who_is_behind(self) -> str:
        """A sentence with the rank, host and process of the workers that are frozen, else of those that have come least far."""
        notes = {rank: self._note(rank) for rank in range(self.world_size)}
        waited = f"no step was finished for {self.timeout:g} s"
        silent = [f"rank {rank} does not answer" for rank, note in notes.items() if note is None]
        if silent:
            return f"{waited}: {', '.join(silent)}"
        named = {
            rank: f"rank {rank} (host {note['host']}, process {note['pid']})" for rank, note in notes.items() if note
        }
        steps = {rank: note["step"] for rank, note in notes.items() if note}
        if frozen := self._frozen():
            told = [f"{named[rank]} stands after step {steps[rank]} and gives no sign of life" for rank in frozen]
            return f"{waited}: {', '.join(told)}"
        least = min(steps.values())
        behind = [named[rank] for rank, step in steps.items() if step == least]
        if len(behind) == self.world_size:
            return f"{waited} by any worker; all live and stand after step {least}"
        return f"{waited}: {', '.join(behind)} stands after step {least}, the others after step {max(steps.values())}"

    def _frozen(self) -> list[int]:
        """Other workers whose threads do not run either: stopped, or without a core."""
        others = [rank for rank in range(self.world_size) if rank != self.rank]
        before = {rank: self._read(f"alive/{rank}") for rank in others}
        time.sleep(max(3.0, 3 * self._tick))
        return [rank for rank in others if self._read(f"alive/{rank}") == before[rank]]

    def _note(self, rank: int) -> dict[str, Any] | None:
        note = self._read(f"step/{rank}")
        return json.loads(note) if note else None

    def _read(self, key: str) -> bytes | None:
        try:
            self.store.wait([f"crate/{key}"], timedelta(seconds=READ_SECONDS))
            return self.store.get(f"crate/{key}")
        except (
            RuntimeError
        ):  # torch's DistStoreError and DistNetworkError: the worker never began, or the store is gone
            return None
