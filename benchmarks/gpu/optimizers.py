"""Every build of fused AdamW: the product's own choice, ten steps against float64, and the time on GPT-2-B's parameters."""

from __future__ import annotations

import time
from typing import Any

import torch

from crate_model.model import LanguageModel
from gpu.clocks import host_milliseconds, milliseconds
from gpu.exactness import relative
from gpu.models import model_config
from gpu.session import Evidence
from pipeline.config import PretrainConfig
from pipeline.pretrain import optimizers

RECIPE = PretrainConfig()
BUILDS = ("torch_fused", "apex", "deepspeed", "torch")
BYTES_A_VALUE = 28  # weight, gradient and both moments read, weight and moments written: what no build can do without
Shapes = list[tuple[int, ...]]


def run(evidence: Evidence) -> None:
    evidence.attempt("choice", choice, needs=6)
    builds = [name for name in BUILDS if there(evidence, name)]
    for name in builds:
        evidence.attempt(f"{name}, ten steps", ten_steps, name, needs=3)
    for name in builds:
        evidence.attempt(f"{name}, time", timed, name, needs=3)


def there(evidence: Evidence, name: str) -> bool:
    """Whether a build can be had here; why not is a row."""
    if why := optimizers.missing(name, evidence.device)[0]:
        evidence.left_out(f"{name}, ten steps", why)
    elif name in optimizers.OPERATIONS and evidence.tiny:
        why = "it is not compiled for a trial in small"
        evidence.left_out(f"{name}, ten steps", why)
    return not why


def shapes_of(evidence: Evidence) -> Shapes:
    with torch.device("meta"):
        return [tuple(p.shape) for p in LanguageModel(model_config(evidence, "gpt2", "B")).parameters()]


def flat(shapes: Shapes) -> Shapes:
    """As ZeRO 1 to 3 hand them to the optimizer: all values in one tensor."""
    return [(sum(torch.Size(shape).numel() for shape in shapes),)]


def choice(evidence: Evidence) -> None:
    """What `runtime.optimizer: auto` takes here, tensor by tensor (ZeRO 0) and flat (ZeRO 1 to 3)."""
    shapes = shapes_of(evidence)
    for how, these in (("by tensor", shapes), ("flat", flat(shapes))):
        started = time.perf_counter()
        found = optimizers.choose(these, RECIPE, torch.device(evidence.device), offload=False)
        told = {
            "milliseconds": found.milliseconds,
            "left_out": found.left_out,
            "seconds": time.perf_counter() - started,
        }
        evidence.row("choice", shapes=how, best=found.name, **told)


def ten_steps(evidence: Evidence, name: str) -> None:
    """The distance of all parameters after ten updates to torch's plain AdamW in float64."""
    ours, truth = trajectory(evidence, name, torch.float32), trajectory(evidence, "torch", torch.float64)
    distance = relative(ours, truth)
    evidence.row(
        "ten steps", ok=distance < 1e-6, build=name, distance=distance, largest=float((ours - truth).abs().max())
    )


def trajectory(evidence: Evidence, name: str, dtype: torch.dtype) -> torch.Tensor:
    """All parameters after ten updates at rising rates, with decay in the first group alone."""
    generator = torch.Generator().manual_seed(0)

    def random(shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(evidence.device, dtype)

    parameters = [torch.nn.Parameter(random(shape)) for shape in ((1000, 37), (513,), (7, 3))]
    groups: list[dict[str, Any]] = [
        {"params": parameters[:2], "weight_decay": 0.1},
        {"params": parameters[2:], "weight_decay": 0.0},
    ]
    optimizer = optimizers.build(name, groups, RECIPE)
    for step in range(10):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (step + 1)
        for parameter in parameters:
            parameter.grad = random(tuple(parameter.shape))
        optimizer.step()
    return torch.cat([parameter.detach().flatten().double() for parameter in parameters])


def timed(evidence: Evidence, name: str) -> None:
    """Milliseconds of a step, beside the memory traffic that it cannot avoid."""
    shapes = shapes_of(evidence)
    for how, these in (("by tensor", shapes), ("flat", flat(shapes))):
        parameters = [torch.nn.Parameter(torch.randn(shape, device=evidence.device)) for shape in these]
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        optimizer = optimizers.build(name, [{"params": parameters, "weight_decay": 0.1}], RECIPE)
        ms = milliseconds(optimizer.step, repeat=evidence.pick(20, 3))
        n_values = sum(parameter.numel() for parameter in parameters)
        told = {"host_ms": host_milliseconds(optimizer.step), "tb_per_second": BYTES_A_VALUE * n_values / ms / 1e9}
        evidence.row("time", build=name, shapes=how, values=n_values, ms=ms, **told)


def compile_fused_adam(evidence: Evidence) -> None:
    """DeepSpeed's operation as the product builds it where it is asked for by name: that it compiles, and is exact."""
    why = optimizers.missing("deepspeed", evidence.device)[0]
    if why or evidence.tiny:
        return evidence.left_out("deepspeed's FusedAdam", why or "it is not compiled for a trial in small")
    started, told = time.perf_counter(), list[str]()
    prebuilt = optimizers.is_prebuilt("deepspeed")
    optimizers.require("deepspeed", RECIPE, torch.device(evidence.device), False, told.append)
    evidence.row("deepspeed's FusedAdam", prebuilt=prebuilt, seconds=time.perf_counter() - started, told=told)
