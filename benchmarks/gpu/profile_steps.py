"""Where a step's time on the card goes: the longest kernels of the large models' steps, in a file of text and as rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from gpu import models
from gpu.clocks import synchronize
from gpu.models import ROWS, model_config, random_batch, step_of
from gpu.session import Evidence

LONGEST = 25
CASES = (("crate", "compiled"), ("gpt2", "compiled"), ("crate", "eager"), ("gpt2", "eager"))
Kernel = tuple[float, int, str]  # milliseconds in all, launches, name


def run(evidence: Evidence) -> None:
    for architecture, how in evidence.pick(CASES, CASES[1:3]):
        evidence.attempt(f"{architecture} {how}", one_step, architecture, how, needs=15 if how == "compiled" else 6)


def one_step(evidence: Evidence, architecture: str, how: str) -> None:
    config = model_config(evidence, architecture, "B")
    model = models.ours(config, evidence.device).bfloat16()
    batch = random_batch(config, evidence.pick(ROWS, 2), evidence.device)
    step = step_of(model, models.compiled(evidence, model) if how == "compiled" else model, batch)
    for _ in range(3):
        step()
    total, launches, kernels = profiled(step)
    with (evidence.out / "profile.txt").open("a", encoding="utf-8") as file:
        file.write(f"\n==== {evidence.session.run} {architecture} {how}: {total:.2f} ms, {launches} launches\n")
        for ms, count, name in kernels:
            file.write(f"{ms:9.3f} ms {100 * ms / max(total, 1e-9):5.1f} %  x{count:4d}  {name}\n")
    told = {"architecture": architecture, "how": how, "device_ms": total, "launches": launches}
    evidence.row("profile", **told, longest=[(ms, count, name[:90]) for ms, count, name in kernels])


def profiled(run: Callable[[], Any]) -> tuple[float, int, list[Kernel]]:
    """Milliseconds and launches of all kernels of a call, and the longest of them; without a card those of operations."""
    on_card = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_card else [])]
    with profile(activities=activities) as recorded:
        run()
        synchronize()
    kernels: list[Kernel] = []
    for event in recorded.key_averages():
        own = event.self_device_time_total if on_card else event.self_cpu_time_total  # microseconds
        # What the compiler and others mark as a region is told as if it were a kernel around its kernels.
        if own and ("CUDA" in str(event.device_type)) == on_card and not event.is_user_annotation:
            kernels.append((own / 1000, event.count, event.key[:150]))
    kernels.sort(reverse=True)
    return sum(ms for ms, *_ in kernels), sum(count for _, count, _ in kernels), kernels[:LONGEST]
