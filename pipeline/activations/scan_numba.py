"""The kernels of `scan.py` for a CPU, compiled by numba when they are first called.

Loops over neurons are the innermost, so that the compiler works on as many neurons at once as a register holds. A neuron's sums
are added up token by token in float64, a row at a time: its second reading then finds the row in the processor's cache.
"""

from __future__ import annotations

from functools import reduce

import numpy as np
import torch
from numba import njit
from torch import Tensor

from pipeline.activations import priority, quantiles
from pipeline.activations.moments import Moments

NEURONS_AT_ONCE = 512  # whose running results a core's first cache holds
LARGEST, SMALLEST = np.int32(priority.LARGEST), np.int32(priority.SMALLEST)
FIRST_FACTOR, SECOND_FACTOR = np.uint32(priority.FIRST_FACTOR), np.uint32(priority.SECOND_FACTOR)
ZERO_FACTOR, ZERO_MASK = np.uint32(quantiles.ZERO_FACTOR), np.uint32(quantiles.ZERO_KEYS - 1)
ONE, TEN, THIRTEEN, SIXTEEN, THIRTY_ONE = np.int32(1), np.uint32(10), np.uint32(13), np.uint32(16), np.int32(31)
ZERO = np.float32(0)
SHIFT, LOWEST, N_POSITIVE = np.int32(quantiles.SHIFT), np.int32(quantiles.LOWEST), np.int32(quantiles.N_POSITIVE)


def extremes(
    values: Tensor, allowed: Tensor, of_tokens: Tensor, of_neurons: Tensor, bounds: Tensor
) -> tuple[Tensor, ...]:
    n_rows, _, n_neurons = values.shape
    highest = np.full((n_rows, n_neurons), -np.inf, np.float32)
    token = np.zeros((n_rows, n_neurons), np.int32)
    largest = np.full((n_rows, n_neurons), SMALLEST)
    least = np.full((n_rows, len(bounds) - 1, n_neurons), LARGEST)
    floats, hashes = values.numpy(), (of_tokens.numpy().view(np.uint32), of_neurons.numpy().view(np.uint32))
    _extremes(floats, floats.view(np.int32), allowed.numpy(), *hashes, bounds.numpy(), highest, token, largest, least)
    return tuple(map(torch.from_numpy, (highest, token, largest, least)))


def statistics(values: Tensor) -> tuple[Tensor, ...]:
    n_rows, n_ctx, n_neurons = values.shape
    sums = np.zeros((n_rows, 4, n_neurons))
    maximum = np.full(n_neurons, -np.inf, np.float32)
    nonzero = np.zeros(n_neurons, np.int32)
    _statistics(values.numpy(), sums, maximum, nonzero)
    with np.errstate(invalid="ignore"):  # what is not finite stays so, and the collector tells it
        of_all = reduce(Moments.merged, (Moments(n_ctx, of_row) for of_row in sums)).sums
    return tuple(map(torch.from_numpy, (of_all, maximum, nonzero)))


def count_levels(counts: Tensor, values: Tensor, signed: bool) -> None:
    _count_levels(values.float().numpy().view(np.int32), N_POSITIVE if signed else np.int32(0), counts.numpy())


@njit
def hash_of(of_token, of_neuron):
    """As in `priority.priorities`, but uint32."""
    u = np.uint32(of_token ^ of_neuron)
    u = np.uint32(np.uint32(u ^ (u >> SIXTEEN)) * FIRST_FACTOR)
    return np.uint32(np.uint32(u ^ (u >> THIRTEEN)) * SECOND_FACTOR)


@njit
def order_of(value, bits, u):
    """As in `quantiles.order_keys`, from an activation, its bits and its hash."""
    of_zero = np.int32(np.uint32(np.uint32(u * ZERO_FACTOR) >> TEN) & ZERO_MASK)
    ordered = np.int32(bits ^ ((bits >> THIRTY_ONE) & LARGEST)) >> ONE
    return of_zero if value == ZERO else np.int32(ordered)


@njit
def _extremes(values, bits, allowed, of_tokens, of_neurons, bounds, highest, token, largest, least):
    n_rows, n_ctx, n_neurons = values.shape
    hashes, orders = np.empty(NEURONS_AT_ONCE, np.int32), np.empty(NEURONS_AT_ONCE, np.int32)
    for row in range(n_rows):
        for first in range(0, n_neurons, NEURONS_AT_ONCE):
            some = slice(first, min(first + NEURONS_AT_ONCE, n_neurons))
            neurons, high, where, large = of_neurons[some], highest[row, some], token[row, some], largest[row, some]
            for t in range(n_ctx):
                if not allowed[row, t]:
                    continue
                v, b, of_token, this = values[row, t, some], bits[row, t, some], of_tokens[row, t], np.int32(t)
                for j in range(len(v)):
                    u = hash_of(of_token, neurons[j])
                    hashes[j], orders[j] = np.int32(u), order_of(v[j], b[j], u)
                    large[j] = max(large[j], hashes[j])
                    higher = v[j] > high[j]
                    high[j], where[j] = v[j] if higher else high[j], this if higher else where[j]
                for i in range(least.shape[1]):
                    small, low, end = least[row, i, some], bounds[i, some], bounds[i + 1, some]
                    for j in range(len(v)):
                        inside = (orders[j] >= low[j]) & (orders[j] < end[j])
                        small[j] = min(small[j], hashes[j] if inside else LARGEST)


@njit
def _statistics(values, sums, maximum, nonzero):
    n_rows, n_ctx, n_neurons = values.shape
    for row in range(n_rows):
        for first in range(0, n_neurons, NEURONS_AT_ONCE):
            some = slice(first, min(first + NEURONS_AT_ONCE, n_neurons))
            mean, second, third, fourth = sums[row, 0, some], sums[row, 1, some], sums[row, 2, some], sums[row, 3, some]
            high, count = maximum[some], nonzero[some]
            for t in range(n_ctx):
                v = values[row, t, some]
                for j in range(len(v)):
                    mean[j] += np.float64(v[j])
                    high[j] = max(high[j], v[j])
                    count[j] += np.int32(v[j] != ZERO)
            mean /= n_ctx
            for t in range(n_ctx):
                v = values[row, t, some]
                for j in range(len(v)):
                    d = np.float64(v[j]) - mean[j]
                    d2 = d * d
                    second[j] += d2
                    third[j] += d2 * d
                    fourth[j] += d2 * d2


@njit
def _count_levels(bits, zero, counts):
    n_tokens, n_neurons = bits.shape
    levels = np.empty(NEURONS_AT_ONCE, np.int32)
    sign_mask = np.int32(-1 if zero else 0)
    for first in range(0, n_neurons, NEURONS_AT_ONCE):
        some = slice(first, min(first + NEURONS_AT_ONCE, n_neurons))
        for t in range(n_tokens):
            b = bits[t, some]
            for j in range(len(b)):  # as in quantiles.level_counts
                size, sign = b[j] & LARGEST, (b[j] >> THIRTY_ONE) & sign_mask
                level = min(min(max((size >> SHIFT) - LOWEST, 0), N_POSITIVE - 1) + 1, size)
                levels[j] = zero + ((level ^ sign) - sign)
            for j in range(len(b)):
                counts[first + j, levels[j]] += 1
