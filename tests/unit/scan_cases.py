"""Activations that try the kernels of `scan.py`, and what they are compared by."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import torch

from pipeline.activations import scan
from pipeline.activations.priority import name_hashes, token_hashes
from pipeline.activations.quantiles import bin_bounds, edge_keys, level_counts

OPENAI, TWELFTHS = (0.5, 0.9, 0.99, 0.999), tuple(i / 12 for i in range(1, 12))
SHAPES = [(3, 128, 48), (1, 100, 33), (2, 17, 1), (2, 40, 600)]  # neither tiles nor registers always come out even


def activations(shape: tuple[int, int, int], signed: bool, seed: int = 0) -> torch.Tensor:
    """From neurons that always fire to dead ones, with equals, a negative zero, a denormal and very large numbers."""
    _, n_ctx, n_neurons = shape
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator) - torch.linspace(-4, 5, n_neurons)
    values[:, : n_ctx // 3] -= 2
    values[0, 5] = values[0, 3]
    values = values if signed else values.relu()
    values[0, 7, 0], values[0, 8, 0], values[-1, 9, -1] = -0.0, 1e-40, 3e4
    return values


def same_as_plain(kernels: ModuleType, shape: tuple[int, int, int], signed: bool, shares: tuple[float, ...]) -> None:
    """Both kernels against the plain forms; the top bin is left out, and one row has no allowed token."""
    n_rows, n_ctx, n_neurons = shape
    values = activations(shape, signed)
    counts = level_counts(activations((8, n_ctx, n_neurons), signed, seed=1).flatten(0, 1), signed)
    edges = torch.from_numpy(edge_keys(counts.numpy(), shares, signed))
    allowed = torch.rand((n_rows, n_ctx), generator=torch.Generator().manual_seed(2)) < 0.8
    if n_rows > 2:
        allowed[1] = False
    of_tokens = torch.from_numpy(token_hashes(0, 11 + np.arange(n_rows * n_ctx)).reshape(n_rows, n_ctx))
    of_neurons = torch.from_numpy(name_hashes(0, "site", n_neurons))
    for n_bins in (len(shares), len(shares) + 1):
        arguments = (values, allowed, of_tokens, of_neurons, bin_bounds(edges, n_bins))
        plain, found = scan.plain_extremes(*arguments), scan.Extremes(*kernels.extremes(*arguments))
        for name in ("highest", "token", "largest", "least"):
            torch.testing.assert_close(getattr(found, name), getattr(plain, name), rtol=0, atol=0, msg=name)
    plain_sums, sums = scan.plain_statistics(values), scan.Statistics(*kernels.statistics(values))
    torch.testing.assert_close(sums.sums, plain_sums.sums, rtol=1e-12, atol=1e-9)
    assert torch.equal(sums.maximum, plain_sums.maximum) and torch.equal(sums.nonzero, plain_sums.nonzero)
