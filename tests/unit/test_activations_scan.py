"""The compiled kernels for a CPU find what the plain forms find; activations that are not finite are seen in the sums."""

from __future__ import annotations

import pytest
import torch

from pipeline.activations import quantiles, reservoir_numba, scan, scan_numba
from tests.unit.scan_cases import (
    KEPT,
    OPENAI,
    SHAPES,
    TWELFTHS,
    activations,
    same_as_plain,
    same_kept_as_plain,
    same_levels_as_plain,
    same_tokens_kept_as_plain,
)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("shares", [OPENAI, TWELFTHS], ids=["openai", "anthropic"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernels_on_a_cpu(shape, shares, signed):
    same_as_plain(scan_numba, shape, signed, shares)


@pytest.mark.parametrize("signed", [False, True])
def test_levels_are_counted_alike(signed):
    same_levels_as_plain(scan_numba, signed)
    assert (quantiles.level_counts(activations((3, 400, 70), signed).flatten(0, 1), signed).sum(1) == 1200).all()


@pytest.mark.parametrize(("capacity", "n_bins", "width"), KEPT)
def test_the_same_candidates_are_kept(capacity, n_bins, width):
    same_kept_as_plain(reservoir_numba, capacity, n_bins, width, torch.float32)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("by_activation", [False, True])
@pytest.mark.parametrize("capacity", [5, 8])
def test_the_same_tokens_are_kept(capacity, by_activation, signed):
    same_tokens_kept_as_plain(reservoir_numba, capacity, by_activation, signed, torch.float32)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_shows_in_the_mean(bad):
    values = activations((2, 50, 20), signed=False)
    values[1, 31, 4] = bad
    for found in (scan.statistics(values), scan.plain_statistics(values)):
        assert (~found.sums[0].isfinite()).nonzero().tolist() == [[4]]


def test_the_parts_of_a_tensor_may_lie_apart():
    values = activations((2, 50, 40), signed=True)
    apart = values.transpose(1, 2).contiguous().transpose(1, 2)
    assert not apart.is_contiguous()
    assert torch.equal(scan.statistics(apart).sums, scan.statistics(values).sums)
