"""Time and memory of what runs on a device that answers later: every clock waits for it at both ends."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def milliseconds(run: Callable[[], Any], repeat: int = 10, warm: int = 3) -> float:
    """The median time of a call among `repeat` that follow each other without a pause, after `warm` that do not count.

    The device is not waited for between the calls: a step that the host cannot issue fast enough takes as long as the host.
    """
    for _ in range(warm):
        run()
    synchronize()
    marks = [_mark()]
    for _ in range(repeat):
        run()
        marks.append(_mark())
    synchronize()
    return median(_between(sooner, later) for sooner, later in itertools.pairwise(marks))


def _mark() -> Any:
    if not torch.cuda.is_available():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(sooner: Any, later: Any) -> float:
    return 1000 * (later - sooner) if isinstance(later, float) else sooner.elapsed_time(later)


def host_milliseconds(run: Callable[[], Any], repeat: int = 3) -> float:
    """What the host needs to issue a call on an idle device: as long as the call itself, and it is bound by launches."""
    times = []
    for _ in range(repeat):
        synchronize()
        started = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - started))
    synchronize()
    return median(times)


def seconds(run: Callable[[], Any]) -> float:
    """One call, waited for."""
    synchronize()
    started = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - started


def forget_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_gib() -> float:
    """The most memory since `forget_peak`, by torch's allocator; without a card the most this process ever had."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    from pipeline.this_machine import peak_rss_bytes

    return peak_rss_bytes() / 2**30
