"""Finding the processes that a test kills."""

from __future__ import annotations

import contextlib
import os
import subprocess

import psutil


def named_below(part: str, pid: int | None = None) -> list[psutil.Process]:
    """Processes below `pid` (this one) whose command begins with a word that holds `part`; none that ends meanwhile."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(pid or os.getpid()).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # a zombie too
                if part in " ".join(process.cmdline()[:1]):
                    found.append(process)
    return found


def kill_with_all_below(started: subprocess.Popen) -> None:
    """By SIGKILL, all at once; those that have ended are let be."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(started.pid)
        for victim in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
    started.wait()
