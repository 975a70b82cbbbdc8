"""The Triton kernels that scan activations, under Triton's interpreter (test_triton_kernels.py)."""

import pytest
import torch

from pipeline.activations import reservoir_triton, scan_triton
from tests.unit.scan_cases import (
    KEPT,
    OPENAI,
    SHAPES,
    TWELFTHS,
    same_as_plain,
    same_kept_as_plain,
    same_levels_as_plain,
    same_tokens_kept_as_plain,
)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("shares", [OPENAI, TWELFTHS], ids=["openai", "anthropic"])
@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_kernels_on_a_gpu(shape, shares, signed):
    same_as_plain(scan_triton, shape, signed, shares)


def test_a_half_precision_pass_is_looked_at_as_float32():
    same_as_plain(scan_triton, SHAPES[0], False, OPENAI, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("signed", [False, True])
def test_levels_are_counted_alike(signed, dtype):
    same_levels_as_plain(scan_triton, signed, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("capacity", "n_bins", "width"), KEPT)
def test_the_same_candidates_are_kept(capacity, n_bins, width, dtype):
    same_kept_as_plain(reservoir_triton, capacity, n_bins, width, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("by_activation", [False, True])
@pytest.mark.parametrize("capacity", [5, 8])
def test_the_same_tokens_are_kept(capacity, by_activation, signed, dtype):
    same_tokens_kept_as_plain(reservoir_triton, capacity, by_activation, signed, dtype)
