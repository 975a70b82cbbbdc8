"""ISTA sparse coding in four matrix products instead of the reference's five, with a backward of its own.

A step is written by its residual, `a <- relu(a + eta * (z - a W) W^T - eta * lambda)`, so that z W^T is neither computed twice
nor kept: two steps and the synthesis take z W^T, a1 W, r W^T and a2 W. The backward takes eight products, two for each, and
nothing twice; it keeps z, the residuals (d_model wide) and the codes, and rebuilds the ReLU masks from the codes.
A product with W^T carries its element-wise work along: on a GPU inside one Triton kernel, elsewhere in place.
"""

from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from crate_model.ops import precision


def ista(
    z: Float[Tensor, "... d_model"],
    dictionary: Float[Tensor, "d_code d_model"],
    step_size: float,
    lambda_sparsity: float,
    n_steps: int,
) -> Float[Tensor, "... d_model"]:
    """The synthesis `a W` of the code of `z` after `n_steps` ISTA steps from zero; atoms are the rows of `dictionary`.

    The same bits as `synthesis(ista_codes(...))`. *Source:* equals `ops.reference.ista_codes` times W up to rounding.
    """
    return _run(None, z, dictionary, step_size, lambda_sparsity, n_steps, True)


def ista_codes(
    z: Float[Tensor, "... d_model"],
    dictionary: Float[Tensor, "d_code d_model"],
    step_size: float,
    lambda_sparsity: float,
    n_steps: int,
    start: Float[Tensor, "... d_code"] | None = None,
) -> Float[Tensor, "... d_code"]:
    """The code of `z` after `n_steps` ISTA steps from `start` (zero when None).

    Running the steps one by one through `start` gives the same bits as running them together.
    """
    return _run(start, z, dictionary, step_size, lambda_sparsity, n_steps, False)


def synthesis(
    code: Float[Tensor, "... d_code"], dictionary: Float[Tensor, "d_code d_model"]
) -> Float[Tensor, "... d_model"]:
    """`code @ dictionary`: the sum of the atoms, weighted by the code."""
    return precision.linear(*precision.autocast(code, dictionary.T))


def _run(start: Tensor | None, z: Tensor, dictionary: Tensor, *settings: Any) -> Tensor:
    z, dictionary = precision.autocast(z, dictionary)
    flat_start = None if start is None else start.to(z.dtype).flatten(0, -2)
    return _Ista.apply(flat_start, z.flatten(0, -2), dictionary, *settings).unflatten(0, z.shape[:-1])


class _Ista(torch.autograd.Function):
    """Products are widened to float32 where the device has no native narrow ones; what is kept stays narrow."""

    @staticmethod
    @precision.without_autocast
    def forward(
        ctx: Any,
        start: Tensor | None,
        z: Tensor,
        dictionary: Tensor,
        step_size: float,
        lambda_sparsity: float,
        n_steps: int,
        synthesize: bool,
    ) -> Tensor:
        atoms, wide_z = precision.widened(dictionary), precision.widened(z)
        code: Any = start  # None stands for zero
        residuals, codes = [], []
        for _ in range(n_steps):
            previous = None if code is None else precision.widened(code)
            residual = wide_z if previous is None else torch.addmm(wide_z, previous, atoms, alpha=-1)
            code = _shrunk_product(previous, residual, atoms, step_size, step_size * lambda_sparsity).to(z.dtype)
            residuals.append(z if previous is None else residual.to(z.dtype))
            codes.append(code)
        ctx.save_for_backward(start, dictionary, *residuals, *codes)
        ctx.settings = step_size, n_steps, synthesize
        out = torch.mm(precision.widened(code), atoms).to(z.dtype) if synthesize else code
        # torch.compile before torch 2.13 takes the result of an in-place operation, or of a conversion that converts nothing,
        # for something without a gradient, and says nothing. A view of it is taken for what it is.
        return out.detach()

    @staticmethod
    @once_differentiable
    @precision.without_autocast
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        step_size, n_steps, synthesize = ctx.settings
        start, dictionary, *kept = ctx.saved_tensors
        residuals, codes = kept[:n_steps], [start, *kept[n_steps:]]
        atoms, wide_gradient = precision.widened(dictionary), precision.widened(gradient)
        grad_z: Any = None  # None stands for zero
        grad_atoms = torch.zeros_like(atoms, dtype=torch.promote_types(atoms.dtype, torch.float32))
        if synthesize:
            precision.add_product_(grad_atoms, precision.widened(codes[-1]).T, wide_gradient)
        past, factor, sign = (None, wide_gradient, 1) if synthesize else (wide_gradient, None, 1)
        for residual, code, previous in zip(residuals[::-1], codes[:0:-1], codes[-2::-1], strict=True):
            active = _masked_product(past, factor, sign, atoms, precision.widened(code))
            precision.add_product_(grad_atoms, active.T, precision.widened(residual), step_size)
            if previous is None:
                grad_z = _scaled_product(grad_z, active, atoms, step_size)
                break
            grad_residual = _scaled_product(None, active, atoms, step_size)
            grad_z = grad_residual if grad_z is None else grad_z.add_(grad_residual)
            precision.add_product_(grad_atoms, precision.widened(previous).T, grad_residual, -1)
            past, factor, sign = active, grad_residual, -1
        grad_start = None if start is None else torch.addmm(active, grad_residual, atoms.T, alpha=-1).to(start.dtype)
        return grad_start, grad_z.to(gradient.dtype), grad_atoms.to(dictionary.dtype), None, None, None, None


def _scaled_product(total: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """total + scale * a @ b; writes into `total`. A GPU scales and adds as it writes the product, where a CPU's bits are those
    of the separate passes."""
    if a.is_cuda:
        return (
            torch.addmm(a.new_empty(()), a, b, beta=0, alpha=scale)
            if total is None
            else total.addmm_(a, b, alpha=scale)
        )
    product = torch.mm(a, b).mul_(scale)
    return product if total is None else total.add_(product)


def _shrunk_product(start: Tensor | None, residual: Tensor, atoms: Tensor, scale: float, threshold: float) -> Tensor:
    """relu(start + scale * residual @ atoms.T - threshold)."""
    if kernels := _kernels(residual):
        return kernels.shrunk_product(start, residual, atoms, scale, threshold)
    if start is None:
        base = torch.full((residual.shape[0], atoms.shape[0]), -threshold, dtype=residual.dtype, device=residual.device)
    else:
        base = start - threshold
    return base.addmm_(residual, atoms.T, alpha=scale).relu_()


def _masked_product(start: Tensor | None, factor: Tensor | None, scale: float, atoms: Tensor, code: Tensor) -> Tensor:
    """start + scale * factor @ atoms.T where `code` is positive, else 0. Writes into `start` if there is a product."""
    if factor is None:
        return torch.ops.aten.threshold_backward(start, code, 0)
    if kernels := _kernels(factor):
        return kernels.masked_product(start, factor, atoms, scale, code)
    product = torch.mm(factor, atoms.T) if start is None else start.addmm_(factor, atoms.T, alpha=scale)
    return torch.ops.aten.threshold_backward.grad_input(product, code, 0, grad_input=product)


def _kernels(tensor: Tensor) -> ModuleType | None:
    """The Triton kernels where they are for `tensor`."""
    if precision.runs_triton(tensor):
        from crate_model.ops import ista_triton

        return ista_triton
    return None
