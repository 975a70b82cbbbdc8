"""How near a fast path is to float64, judged by how near plain torch comes in the same dtype on the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gpu.session import Evidence

FLOOR = {torch.bfloat16: 6e-3, torch.float16: 8e-4, torch.float32: 2e-5}  # some roundings: what nobody has to be below
POISONED = (2**16, 2**20, 2**24, 2**27)  # sizes of the allocator's blocks, in values


def compare(
    evidence: Evidence,
    name: str,
    ours: Sequence[Tensor],
    plain: Sequence[Tensor],
    truth: Sequence[Tensor],
    dtype: torch.dtype,
    **about: Any,
) -> None:
    """A row of the relative errors of `ours` and of `plain`; `ok` when ours is at most twice plain's, or below the floor."""
    errors = [relative(*pair) for pair in zip(ours, truth, strict=True)]
    plain_errors = [relative(*pair) for pair in zip(plain, truth, strict=True)]
    ok = all(error <= max(2 * other, FLOOR[dtype]) for error, other in zip(errors, plain_errors, strict=True))
    evidence.row(name, ok=ok, ours=errors, plain=plain_errors, dtype=str(dtype).removeprefix("torch."), **about)


def relative(ours: Tensor, truth: Tensor) -> float:
    """The distance over the truth's norm, in float64; inf for another shape or what is not finite."""
    if ours.shape != truth.shape:
        return float("inf")
    a, b = ours.detach().double(), truth.detach().double().to(ours.device)
    distance = float((a - b).norm() / b.norm().clamp_min(1e-300))
    return distance if distance == distance else float("inf")


def with_gradients(run: Callable[..., Tensor], inputs: Sequence[Tensor], gradient: Tensor) -> list[Tensor]:
    """What `run` gives for the inputs, and the gradient of each, for this gradient of the result."""
    leaves = [value.detach().clone().requires_grad_() for value in inputs]
    out = run(*leaves)
    out.backward(gradient.to(out.dtype))
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def poison() -> None:
    """What is allocated next holds NaN wherever it is not written: a kernel that leaves a hole is found out."""
    if not torch.cuda.is_available():
        return
    torch.cuda.empty_cache()
    for size in POISONED:
        blocks = [torch.full((size,), float("nan"), device="cuda") for _ in range(4)]
        del blocks
