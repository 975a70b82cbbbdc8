"""ISTA sparse coding in four matrix products instead of the reference's five, with a backward of its own.

A step is written by its residual, `a <- relu(a + eta * (z - a W) W^T - eta * lambda)`, so that z W^T is never computed twice and
never kept: two steps and the synthesis take z W^T, a1 W, r W^T and a2 W. The backward needs eight products, the least there is;
it keeps only z, the residuals (d_model wide) and the codes, and rebuilds the ReLU masks from the codes.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from crate_model.ops import precision

threshold_backward = torch.ops.aten.threshold_backward


def ista_codes(
    z: Float[Tensor, "... d_model"],
    dictionary: Float[Tensor, "d_code d_model"],
    step_size: float,
    lambda_sparsity: float,
    n_steps: int,
    start: Float[Tensor, "... d_code"] | None = None,
) -> Float[Tensor, "... d_code"]:
    """The code of `z` after `n_steps` ISTA steps from `start` (zero when None); atoms are the rows of `dictionary`.

    Running the steps one by one through `start` gives the same bits as running them together.
    *Source:* equals `ops.reference.ista_codes(...)[-1]` up to rounding.
    """
    z, dictionary = precision.autocast(z, dictionary)
    flat_start = None if start is None else start.to(z.dtype).flatten(0, -2)
    codes = _Ista.apply(flat_start, z.flatten(0, -2), dictionary, step_size, lambda_sparsity, n_steps)
    return codes.unflatten(0, z.shape[:-1])


class _Ista(torch.autograd.Function):
    """Plain torch on any device; products are widened to float32 where the device has no native narrow ones."""

    @staticmethod
    def forward(
        ctx: Any,
        start: Tensor | None,
        z: Tensor,
        dictionary: Tensor,
        step_size: float,
        lambda_sparsity: float,
        n_steps: int,
    ) -> Tensor:
        wide = torch.float32 if precision.widens(z) else z.dtype
        wide_z, atoms = z.to(wide), dictionary.to(wide)
        code: Any = start  # None stands for zero
        kept: list[Tensor] = []
        for _ in range(n_steps):
            previous = None if code is None else code.to(wide)
            residual = wide_z if previous is None else torch.addmm(wide_z, previous, atoms, alpha=-1)
            code = _step(previous, residual, atoms, step_size, lambda_sparsity).to(z.dtype)
            kept += [z if previous is None else residual.to(z.dtype), code]
        ctx.save_for_backward(start, z, dictionary, *kept)
        ctx.step_size = step_size
        return code

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        start, z, dictionary, *kept = ctx.saved_tensors
        wide = torch.float32 if precision.widens(z) else z.dtype
        atoms, eta = dictionary.to(wide), ctx.step_size
        grad_z, grad_atoms, grad_code = torch.zeros_like(z, dtype=wide), torch.zeros_like(atoms), gradient.to(wide)
        residuals, codes = kept[0::2], kept[1::2]
        for residual, code, previous in zip(residuals[::-1], codes[::-1], [*codes[-2::-1], start], strict=True):
            active = threshold_backward(grad_code, code.to(wide), 0)
            grad_residual = torch.mm(active, atoms).mul_(eta)
            grad_z += grad_residual
            grad_atoms.addmm_(active.T, residual.to(wide), alpha=eta)
            if previous is not None:
                grad_atoms.addmm_(previous.to(wide).T, grad_residual, alpha=-1)
                grad_code = active.addmm_(grad_residual, atoms.T, alpha=-1)
        grad_start = None if start is None else grad_code.to(z.dtype)
        return grad_start, grad_z.to(z.dtype), grad_atoms.to(dictionary.dtype), None, None, None


def _step(previous: Tensor | None, residual: Tensor, atoms: Tensor, step_size: float, lambda_sparsity: float) -> Tensor:
    """relu(previous + eta * residual @ atoms.T - eta * lambda), with the threshold folded into the product's start."""
    threshold = step_size * lambda_sparsity
    if previous is None:
        base = torch.full((residual.shape[0], atoms.shape[0]), -threshold, dtype=residual.dtype, device=residual.device)
    else:
        base = previous - threshold
    return base.addmm_(residual, atoms.T, alpha=step_size).relu_()
