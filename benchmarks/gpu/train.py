"""Training steps of the large models: ours compiled and eager, with bfloat16 weights as DeepSpeed keeps them, and the plain ones.

A step is the forward and the backward pass of one micro-batch on random tokens; the optimizer's share is in the stages `engine`
and `loop`. The plain models run as their users run them, float32 weights under bfloat16 autocast, and with bfloat16 weights too,
so that autocast's own cost is not counted for ours.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from gpu import models
from gpu.clocks import forget_peak, host_milliseconds, milliseconds, peak_gib, synchronize
from gpu.models import ARCHITECTURES, ROWS, Batch, model_config, random_batch, speed, step_of
from gpu.session import Evidence

SAME_GRADIENT = (
    0.2  # relative distance of compiled gradients to eager ones: bfloat16's roundings, and codes that these move
)
# over ReLU's kink; gradients that a compiler loses lie much farther off


def run(evidence: Evidence) -> None:
    # The most valuable first; a compiler's cache that was not filled makes each of these half a minute longer.
    for architecture in ARCHITECTURES:
        evidence.attempt(f"{architecture} compiled", ours_compiled, architecture, needs=15)
    for architecture in ARCHITECTURES:
        evidence.attempt(f"plain {architecture} compiled", plain_compiled, architecture, True, needs=15)
    for architecture in ARCHITECTURES:
        evidence.attempt(f"{architecture} eager", ours_eager, architecture, needs=6)
        evidence.attempt(f"plain {architecture} eager", plain_eager, architecture, needs=6)
    for architecture in evidence.pick(ARCHITECTURES, ARCHITECTURES[:1]):
        evidence.attempt(f"plain {architecture} compiled, bf16", plain_compiled, architecture, False, needs=20)


def ours_compiled(evidence: Evidence, architecture: str, measure: bool = True) -> None:
    """`measure` False fills the compiler's cache alone."""
    config = model_config(evidence, architecture, "B")
    model = models.ours(config, evidence.device).bfloat16()
    batch = random_batch(config, evidence.pick(ROWS, 2), evidence.device)
    run = models.compiled(evidence, model)
    started = time.perf_counter()
    distance = gradient_distance(model, run, batch)
    synchronize()
    about = {"compile_seconds": time.perf_counter() - started, "gradient_distance": distance}
    if measure:
        told = {"side": "ours", "architecture": architecture, "size": "B", "how": "compiled", "weights": "bf16"}
        measured(evidence, config, model, run, batch, told | about | {"ok": distance < SAME_GRADIENT})


def gradient_distance(model: nn.Module, run: Any, batch: Batch) -> float:
    """Between the gradients of `run`, which is `model` compiled, and the model's own, over the norm of these: a compiler that
    loses gradients is fast too."""
    gradients = []
    for forward in (model, run):
        forward(*batch).backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).float())
        model.zero_grad(set_to_none=True)
    return float((gradients[1] - gradients[0]).norm() / gradients[0].norm())


def plain_compiled(evidence: Evidence, architecture: str, autocast: bool, measure: bool = True) -> None:
    config = model_config(evidence, architecture, "B")
    model = models.plain(config, evidence.device)
    model = model if autocast else model.bfloat16()
    batch = random_batch(config, evidence.pick(ROWS, 2), evidence.device)
    run = models.compiled(evidence, model)
    started = time.perf_counter()
    step_of(model, run, batch, autocast)()
    synchronize()
    told = {"side": "plain", "architecture": architecture, "size": "B", "how": "compiled"}
    told |= {"weights": "fp32, autocast" if autocast else "bf16", "compile_seconds": time.perf_counter() - started}
    if measure:
        measured(evidence, config, model, run, batch, told, autocast)


def ours_eager(evidence: Evidence, architecture: str) -> None:
    config = model_config(evidence, architecture, "B")
    model = models.ours(config, evidence.device).bfloat16()
    told = {"side": "ours", "architecture": architecture, "size": "B", "how": "eager", "weights": "bf16"}
    for n_rows in evidence.pick((16, ROWS, 64), (2,)):
        batch = random_batch(config, n_rows, evidence.device)
        measured(evidence, config, model, model, batch, told)


def plain_eager(evidence: Evidence, architecture: str) -> None:
    config = model_config(evidence, architecture, "B")
    model = models.plain(config, evidence.device)
    batch = random_batch(config, evidence.pick(ROWS // 2, 2), evidence.device)  # eager, whole logits take much memory
    told = {"side": "plain", "architecture": architecture, "size": "B", "how": "eager", "weights": "fp32, autocast"}
    measured(evidence, config, model, model, batch, told, autocast=True)


def measured(
    evidence: Evidence,
    config: Any,
    model: nn.Module,
    run: Any,
    batch: Batch,
    told: dict[str, Any],
    autocast: bool = False,
) -> None:
    """A row of a step that is ready to run: its speed, the host's part in it, and the memory that it takes at most."""
    step = step_of(model, run, batch, autocast)
    forget_peak()
    ms = milliseconds(step, repeat=evidence.pick(10, 2), warm=evidence.pick(3, 1))
    about = {"host_ms": host_milliseconds(step, evidence.pick(3, 1)), "peak_gib": peak_gib()}
    evidence.row("step", **told, **speed(evidence, config, len(batch[0]), ms), **about)
