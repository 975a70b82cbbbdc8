"""The order of activations, and quantile edges in it.

Tokens are ordered by activation; tokens at exactly zero, most of them in a sparse code, by a second hash, so that a quantile
may fall among them. That order is a whole number a token (`order_keys`): the float's bits, which are ordered as the floats are,
with zeros spread over the range of the denormal floats. Quantiles are measured on a histogram of those numbers, 16 steps a power
of two, and drawn straight within a step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.activations.priority import LARGEST

if TYPE_CHECKING:
    from torch import Tensor

STEPS = 16  # histogram levels a power of two
FIRST, LAST = -24, 16  # powers of two: smaller activations share the lowest level, larger ones the highest
N_POSITIVE = (LAST - FIRST) * STEPS
SHIFT = 23 - 4  # bits of a float below its exponent and the four that tell 16 steps apart
LOWEST = (127 + FIRST) * STEPS  # the float 2^FIRST's bits above SHIFT
ZERO_KEYS = 1 << 22  # keys [0, ZERO_KEYS) belong to zeros; the smallest normal float has key ZERO_KEYS
ZERO_FACTOR = 0x9E3779B1  # scrambles a zero's hash: its low bits decide the upper ones


def order_keys(values: Tensor, priorities: Tensor) -> Tensor:
    """Keys (tokens, neurons) int32 in [-2^30, 2^30), ordered as the float32 `values`, zeros by a hash made from `priorities`."""
    import torch

    bits = (values + 0.0).view(torch.int32)  # the sum turns -0 into 0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    spread = (priorities * (ZERO_FACTOR - 2**32) >> 10) & (ZERO_KEYS - 1)
    zero = ~((ordered | -ordered) >> 31)  # all ones where the value is 0
    return (ordered >> 1) | (spread & zero)


def descending(values: Tensor) -> Tensor:
    """int32 that fall as the float32 values rise."""
    import torch

    bits = (values + 0.0).view(torch.int32)
    return ~(bits ^ ((bits >> 31) & LARGEST))


def bin_bounds(edges: Tensor, n_bins: int) -> Tensor:
    """Order keys (n_bins + 1, neurons) between which the lowest bins lie, from inner edges (neurons, edges)."""
    import torch

    outer = torch.full((len(edges), 1), 1 << 30, dtype=edges.dtype, device=edges.device)
    return torch.cat([-outer, edges, outer], 1).T[: n_bins + 1].contiguous()


def n_levels(signed: bool) -> int:
    """Levels of the histogram: negative ones if signed, zero, positive ones."""
    return 1 + N_POSITIVE * (2 if signed else 1)


def level_counts(values: Tensor, signed: bool) -> Tensor:
    """Histogram (neurons, levels) int64 of values (tokens, neurons)."""
    import torch

    n_neurons, levels = values.shape[1], n_levels(signed)
    bits = values.T.contiguous().view(torch.int32)  # neuron by neuron
    size = bits & LARGEST
    level = ((size >> SHIFT) - LOWEST).clamp_(0, N_POSITIVE - 1).add_(1)
    torch.minimum(level, size, out=level)  # 0 for zeros
    if signed:
        sign = bits >> 31
        level = (level ^ sign).sub_(sign).add_(N_POSITIVE)
    ones = torch.ones((1, 1), dtype=torch.int64, device=values.device).expand(level.shape)
    return ones.new_zeros((n_neurons, levels)).scatter_add_(1, level.long(), ones)


def lower_keys(signed: bool) -> np.ndarray:
    """The smallest order key (levels,) of each histogram level."""
    positive = ((np.arange(N_POSITIVE, dtype=np.int64) + LOWEST) << SHIFT) >> 1
    positive[0] = ZERO_KEYS
    if not signed:
        return np.concatenate([[0], positive])
    negative = (-((np.arange(1, N_POSITIVE + 1, dtype=np.int64) + LOWEST) << SHIFT)) >> 1
    negative[-1] = -(1 << 30)
    return np.concatenate([negative[::-1], [0], positive])


def edge_keys(counts: np.ndarray, shares: tuple[float, ...], signed: bool) -> np.ndarray:
    """Order keys (neurons, edges) int32 with the given shares of the counted tokens below them, as far as the levels tell."""
    below = np.cumsum(counts, axis=1)  # tokens at or below each level
    total = below[:, -1:]
    lower = np.append(lower_keys(signed), np.int64(2**30 - 1))
    edges = np.empty((len(counts), len(shares)), np.int64)
    neurons = np.arange(len(counts))
    for column, share in enumerate(shares):
        wanted = share * total[:, 0]
        level = np.minimum((below <= wanted[:, None]).sum(axis=1), counts.shape[1] - 1)
        inside = counts[neurons, level]
        part = (wanted - (below[neurons, level] - inside)) / np.maximum(inside, 1)
        edges[:, column] = lower[level] + (part * (lower[level + 1] - lower[level])).astype(np.int64)
    return edges.astype(np.int32)


def octaves(counts: np.ndarray, signed: bool) -> np.ndarray:
    """The published histogram (neurons, 2 + octaves): below zero, zero, then a bin a power of two."""
    zero = N_POSITIVE if signed else 0
    positive = counts[:, zero + 1 :].reshape(len(counts), LAST - FIRST, STEPS).sum(axis=2)
    return np.concatenate([counts[:, :zero].sum(axis=1)[:, None], counts[:, zero : zero + 1], positive], axis=1)


def edge_values(keys: np.ndarray) -> np.ndarray:
    """The activations (float64) at order keys: 0 for a key among the zeros."""
    keys = keys.astype(np.int32)
    ordered = keys << 1
    bits = np.where(keys < 0, ordered ^ np.int32(LARGEST), ordered)
    return np.where((keys >= 0) & (keys < ZERO_KEYS), 0.0, bits.view(np.float32).astype(np.float64))
