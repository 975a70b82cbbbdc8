"""Cores of one's own: trainers side by side on a host each keep to other cores, so that their threads do not fight.

A core is taken by locking a file; the operating system drops the lock when the process ends, however it ends.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path
from typing import IO

_held: list[IO[str]] = []  # open for as long as this process lives
_all: set[int] = set()  # the cores before any were taken


def default_folder() -> Path:
    return Path(tempfile.gettempdir()) / f"crate-cores-{os.getuid()}"


def take_cores(wanted: int, folder: Path | None = None) -> list[int]:
    """Bind the calling thread, and the threads it will start, to `wanted` cores that no other trainer has taken.

    Returns the cores; empty, and nothing bound, when there are not so many left.
    """
    if not hasattr(os, "sched_setaffinity"):
        return []
    folder = folder or default_folder()
    folder.mkdir(parents=True, exist_ok=True)
    taken: dict[int, IO[str]] = {}
    file: IO[str]
    for core in sorted(os.sched_getaffinity(0)):
        if len(taken) == wanted:
            break
        file = (folder / str(core)).open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken[core] = file
        except BlockingIOError:
            file.close()
    if len(taken) < wanted:
        for file in taken.values():
            file.close()
        return []
    _held.extend(taken.values())
    _all.update(os.sched_getaffinity(0))
    os.sched_setaffinity(0, taken)
    return list(taken)


def use_any_core() -> None:
    """Let the calling thread run anywhere again: for work beside the training."""
    if _all:
        os.sched_setaffinity(0, _all)
