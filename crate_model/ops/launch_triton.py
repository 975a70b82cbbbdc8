"""The smallest Triton kernel, launched to learn whether Triton works on this machine."""

import torch
import triton
import triton.language as tl
from triton.errors import TritonError

N = 256


def check(device: str = "cuda") -> None:
    """Launch it. Raises ImportError, OSError, RuntimeError, AssertionError or SubprocessError, by what is missing."""
    numbers = torch.arange(N, device=device, dtype=torch.float32)
    doubled = torch.full_like(numbers, float("nan"))
    try:
        kernel[(1,)](numbers, doubled, n=N)
    except TritonError as error:
        raise RuntimeError(str(error)) from error
    if not torch.equal(doubled, 2 * numbers):
        raise RuntimeError("a Triton kernel ran, but did not compute what it should")


@triton.jit
def kernel(from_ptr, to_ptr, n: tl.constexpr):
    places = tl.arange(0, n)
    tl.store(to_ptr + places, 2 * tl.load(from_ptr + places))
