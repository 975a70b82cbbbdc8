"""ISTA in four products, and its Triton kernel under the interpreter, against the plain torch oracle."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from crate_model.ops import ista as op
from crate_model.ops import precision, reference

ETA, LAMBDA = 0.1, 0.1


def inputs(dtype: torch.dtype, n: int = 37, d: int = 24, h: int = 56) -> tuple[Tensor, Tensor, Tensor]:
    """z, dictionary and an output gradient; the dictionary at its initial scale, so that ISTA is stable."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(n, d, generator=generator, dtype=torch.float64)
    dictionary = (torch.rand(h, d, generator=generator, dtype=torch.float64) * 2 - 1) * (6 / d) ** 0.5
    gradient = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return z.to(dtype), dictionary.to(dtype), gradient.to(dtype)


def oracle(z: Tensor, dictionary: Tensor, n_steps: int) -> Tensor:
    return reference.ista_codes(z, dictionary, ETA, LAMBDA, n_steps)[-1] @ dictionary


def gradients(run: Callable[[Tensor, Tensor], Tensor], z: Tensor, dictionary: Tensor, gradient: Tensor) -> list[Tensor]:
    z, dictionary = z.clone().requires_grad_(), dictionary.clone().requires_grad_()
    out = run(z, dictionary)
    out.backward(gradient)
    assert z.grad is not None and dictionary.grad is not None
    return [out.detach(), z.grad, dictionary.grad]


@pytest.mark.parametrize("n_steps", [1, 2, 3, 5])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_value_and_gradients(dtype: torch.dtype, tolerance: float, n_steps: int) -> None:
    z, dictionary, gradient = inputs(dtype)
    ours = gradients(lambda z, w: op.ista(z, w, ETA, LAMBDA, n_steps), z, dictionary, gradient)
    theirs = gradients(lambda z, w: oracle(z, w, n_steps), z, dictionary, gradient)
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_every_code_of_every_step() -> None:
    z, dictionary, _ = inputs(torch.float64)
    for n_steps, theirs in enumerate(reference.ista_codes(z, dictionary, ETA, LAMBDA, 4), start=1):
        torch.testing.assert_close(op.ista_codes(z, dictionary, ETA, LAMBDA, n_steps), theirs, rtol=1e-12, atol=1e-12)


def test_gradcheck_of_codes_from_a_start() -> None:
    """Numerical differentiation, away from the ReLU's kinks, of what a tap between the steps uses."""
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    dictionary = torch.randn(7, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    start = torch.rand(3, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda s, z, w: op.ista_codes(z, w, ETA, LAMBDA, 2, start=s), (start, z, dictionary)
    )
    assert torch.autograd.gradcheck(lambda z, w: op.ista(z, w, ETA, LAMBDA, 2), (z, dictionary))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_taken_one_by_one_give_the_same_bits(dtype: torch.dtype) -> None:
    z, dictionary, _ = inputs(dtype, n=64, d=32, h=128)
    code = op.ista_codes(z, dictionary, ETA, LAMBDA, 1)
    for _ in range(2):
        code = op.ista_codes(z, dictionary, ETA, LAMBDA, 1, start=code)
    assert torch.equal(code, op.ista_codes(z, dictionary, ETA, LAMBDA, 3))
    assert torch.equal(op.synthesis(code, dictionary), op.ista(z, dictionary, ETA, LAMBDA, 3))


def test_bfloat16_is_float32_rounded() -> None:
    """bfloat16 in and out; within its own rounding of the exact result, and gradients in bfloat16."""
    z, dictionary, gradient = inputs(torch.bfloat16, n=64, d=32, h=128)
    ours = gradients(lambda z, w: op.ista(z, w, ETA, LAMBDA, 2), z, dictionary, gradient)
    exact = gradients(lambda z, w: oracle(z, w, 2), z.double(), dictionary.double(), gradient.double())
    for our, their in zip(ours, exact, strict=True):
        assert our.dtype == torch.bfloat16
        assert (our.double() - their).norm() / their.norm() < 0.01


def test_autocast_gives_the_autocast_dtype() -> None:
    z, dictionary, _ = inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert op.ista(z, dictionary, ETA, LAMBDA, 2).dtype == torch.bfloat16


def test_probe_of_native_bfloat16_products() -> None:
    assert isinstance(precision.fast_bf16(), bool)
    assert precision.default_dtype("cpu") == (torch.bfloat16 if precision.fast_bf16() else torch.float32)
    assert precision.default_dtype("cuda") == torch.bfloat16
    assert precision.widens(torch.zeros(1, dtype=torch.bfloat16)) == (not precision.fast_bf16())
    assert not precision.widens(torch.zeros(1))
