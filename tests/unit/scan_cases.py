"""Activations that try the kernels of `scan.py`, and what they are compared by."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import torch

from pipeline.activations import reservoir, scan
from pipeline.activations.keys import EMPTY, NONE, keys_of
from pipeline.activations.priority import name_hashes, token_hashes
from pipeline.activations.quantiles import bin_bounds, edge_keys, level_counts, n_levels
from pipeline.activations.reservoir import Excerpts, Tokens

OPENAI, TWELFTHS = (0.5, 0.9, 0.99, 0.999), tuple(i / 12 for i in range(1, 12))
KEPT = [(5, 1, 16), (7, 3, 4), (8, 2, 6)]  # capacity, bins and width: powers of two and others
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


def same_as_plain(
    kernels: ModuleType,
    shape: tuple[int, int, int],
    signed: bool,
    shares: tuple[float, ...],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Kernels that look at activations, against the plain forms; the top bin is left out, and one row has no allowed token."""
    n_rows, n_ctx, n_neurons = shape
    values = _as(activations(shape, signed), dtype)
    counts = level_counts(activations((8, n_ctx, n_neurons), signed, seed=1).flatten(0, 1), signed)
    edges = torch.from_numpy(edge_keys(counts.numpy(), shares, signed))
    allowed = torch.rand((n_rows, n_ctx), generator=torch.Generator().manual_seed(2)) < 0.8
    if n_rows > 2:
        allowed[1] = False
    of_tokens = torch.from_numpy(token_hashes(0, 11 + np.arange(n_rows * n_ctx)).reshape(n_rows, n_ctx))
    of_neurons = torch.from_numpy(name_hashes(0, "site", n_neurons))
    for n_bins in (len(shares), len(shares) + 1):
        arguments = (values, allowed, of_tokens, of_neurons, bin_bounds(edges, n_bins))
        plain = scan.plain_extremes(values.float(), *arguments[1:])
        found = scan.Extremes(*kernels.extremes(*arguments))
        for name in ("highest", "token", "largest", "least"):
            torch.testing.assert_close(getattr(found, name), getattr(plain, name), rtol=0, atol=0, msg=name)
    plain_sums, sums = scan.plain_statistics(values.float()), scan.Statistics(*kernels.statistics(values))
    torch.testing.assert_close(sums.sums, plain_sums.sums, rtol=1e-12, atol=1e-9)
    assert torch.equal(sums.maximum, plain_sums.maximum) and torch.equal(sums.nonzero, plain_sums.nonzero)


def _as(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Without denormals in 16 bits, which Triton's interpreter, unlike a GPU, takes for zeros."""
    smallest = 0.0 if dtype == torch.float32 else torch.finfo(dtype).tiny
    return values.masked_fill(values.abs() < smallest, 0.0).to(dtype)


def same_levels_as_plain(kernels: ModuleType, signed: bool, dtype: torch.dtype = torch.float32) -> None:
    """The histogram is added to what is there."""
    values = _as(activations((3, 150, 70), signed).flatten(0, 1), dtype)
    counts = torch.ones(70, n_levels(signed), dtype=torch.int32)
    kernels.count_levels(counts, values, signed)
    assert torch.equal(counts.long() - 1, level_counts(values.float(), signed))


def same_kept_as_plain(kernels: ModuleType, capacity: int, n_bins: int, width: int, dtype: torch.dtype) -> None:
    """Batch after batch, until most candidates come too late; every third is none, and the last neuron has none at all."""
    n_offered, n_tokens, n_neurons = 6, 90, 35
    generator = torch.Generator().manual_seed(3)
    forms = {}
    for name, keep in (("plain", reservoir.plain_keep), ("kernel", kernels.keep)):
        kept = torch.full((n_neurons, n_bins, capacity), EMPTY)
        forms[name] = keep, kept, torch.zeros((n_neurons, n_bins, capacity, width))
    for first in range(2**32 - 4 * n_tokens, 2**32, n_tokens):  # positions that an int32 does not hold
        text = torch.randn((n_tokens, n_neurons), generator=generator).to(dtype)
        starts = torch.randint(0, n_tokens - width + 1, (n_tokens,), generator=generator)
        shape = (n_offered, n_bins, n_neurons)
        tokens = torch.rand((*shape[1:], n_tokens), generator=generator).argsort(-1)[..., :n_offered].permute(2, 0, 1)
        priorities = torch.randint(-(2**31), 2**31 - 1, shape, generator=generator, dtype=torch.int32)
        keys = keys_of(priorities, tokens + first).masked_fill_(torch.rand(shape, generator=generator) < 0.3, NONE)
        keys[..., -1] = NONE
        for keep, kept, excerpts in forms.values():
            keep(kept, excerpts, keys, Excerpts(text, starts, first))
    (_, *plain), (_, *found) = forms.values()
    same_when_sorted(found, plain)
    assert (plain[0][:-1] < EMPTY).sum() > 0.9 * plain[0][:-1].numel() and (plain[0][-1] == EMPTY).all()


def same_when_sorted(found_and_excerpts: list[torch.Tensor], plain_and_excerpts: list[torch.Tensor]) -> None:
    """Keys (neurons, bins, capacity) and excerpts (..., width), in whatever places."""
    (found, found_excerpts), (plain, plain_excerpts) = found_and_excerpts, plain_and_excerpts
    order, found_order = plain.argsort(dim=2, stable=True), found.argsort(dim=2, stable=True)
    assert torch.equal(found.gather(2, found_order), plain.gather(2, order))
    in_order = found_excerpts.gather(2, found_order[..., None].expand_as(found_excerpts))
    assert torch.equal(in_order, plain_excerpts.gather(2, order[..., None].expand_as(plain_excerpts)))


def same_tokens_kept_as_plain(
    kernels: ModuleType, capacity: int, by_activation: bool, signed: bool, dtype: torch.dtype
) -> None:
    """Batch after batch of all tokens, for the lower of the quantile bins or for all together."""
    n_tokens, n_neurons, width = 75, 40, 6
    counts = level_counts(activations((8, n_tokens, n_neurons), signed, seed=1).flatten(0, 1), signed)
    bounds = bin_bounds(torch.from_numpy(edge_keys(counts.numpy(), OPENAI, signed)), 3)
    bounds = torch.stack([bounds[0], -bounds[0]]) if by_activation else bounds
    of_neurons = torch.from_numpy(name_hashes(0, "site", n_neurons))
    starts, forms = torch.arange(n_tokens), {}
    for name, keep in (("plain", reservoir.plain_keep_tokens), ("kernel", kernels.keep_tokens)):
        kept = torch.full((n_neurons, len(bounds) - 1, capacity), EMPTY)
        forms[name] = keep, kept, torch.zeros((*kept.shape, width))
    for turn, first in enumerate(range(2**32 - 3 * n_tokens, 2**32, n_tokens)):
        text = _as(activations((1, n_tokens + width, n_neurons), signed, seed=turn)[0], dtype)
        of_tokens = torch.from_numpy(token_hashes(0, first + np.arange(n_tokens)))
        for keep, kept, excerpts in forms.values():
            tokens = Tokens(text[:n_tokens], of_tokens, of_neurons)
            keep(kept, excerpts, tokens, bounds, by_activation, Excerpts(text, starts, first))
    (_, *plain), (_, *found) = forms.values()
    same_when_sorted(found, plain)
    assert (plain[0] < EMPTY).any(2).sum() > 0.5 * plain[0][..., 0].numel()
