"""Who holds up the others: every worker says how far it is, and one that waits too long names those behind and ends itself.

A collective that one worker never enters blocks all others without a word, and what its timeout says differs by backend and
names nobody. Here each worker notes its step in the process group's key-value store; a thread that sees no step for the
timeout reads all notes.
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
        while not self._closed.wait(min(1.0, self.timeout / 10)):
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
        """A sentence with the rank, host and process of the workers that have come least far."""
        notes = {rank: self._read(rank) for rank in range(self.world_size)}
        waited = f"no step was finished for {self.timeout:g} s"
        silent = [f"rank {rank} does not answer" for rank, note in notes.items() if note is None]
        if silent:
            return f"{waited}: {', '.join(silent)}"
        steps = {rank: note["step"] for rank, note in notes.items() if note}
        least = min(steps.values())
        behind = [
            f"rank {rank} (host {note['host']}, process {note['pid']})"
            for rank, note in notes.items()
            if note and note["step"] == least
        ]
        if len(behind) == self.world_size:
            return f"{waited} by any worker; all stand after step {least}"
        return f"{waited}: {', '.join(behind)} stands after step {least}, the others after step {max(steps.values())}"

    def _read(self, rank: int) -> dict[str, Any] | None:
        try:
            self.store.wait([f"crate/step/{rank}"], timedelta(seconds=READ_SECONDS))
            return json.loads(self.store.get(f"crate/step/{rank}"))
        except (
            RuntimeError
        ):  # torch's DistStoreError and DistNetworkError: the worker never began, or the store is gone
            return None
