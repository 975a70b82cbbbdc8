"""The kernels of `scan.py` for a GPU: a program takes a row and a few dozen neurons, and goes down the row's tokens in tiles.

Activations may be bfloat16 as well as float32: what is widened in a register need not be read twice as wide from memory. With
TRITON_INTERPRET=1 they run on a CPU, which the tests use.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pipeline.activations import priority, quantiles

# Neurons and tokens of a tile; tokens where every bin is looked at too; warps.
NEURONS, TOKENS, TOKENS_OF_BINS, WARPS = 32, 64, 16, 4
LARGEST, SMALLEST = tl.constexpr(priority.LARGEST), tl.constexpr(priority.SMALLEST)
FIRST_FACTOR, SECOND_FACTOR = tl.constexpr(priority.FIRST_FACTOR), tl.constexpr(priority.SECOND_FACTOR)
ZERO_FACTOR, ZERO_MASK = tl.constexpr(quantiles.ZERO_FACTOR), tl.constexpr(quantiles.ZERO_KEYS - 1)
SHIFT, LOWEST = tl.constexpr(quantiles.SHIFT), tl.constexpr(quantiles.LOWEST)
N_POSITIVE = tl.constexpr(quantiles.N_POSITIVE)


def extremes(
    values: Tensor, allowed: Tensor, of_tokens: Tensor, of_neurons: Tensor, bounds: Tensor
) -> tuple[Tensor, ...]:
    n_rows, n_ctx, n_neurons = values.shape
    n_bins = len(bounds) - 1
    highest = values.new_empty((n_rows, n_neurons), dtype=torch.float32)
    token, largest = (torch.empty_like(highest, dtype=torch.int32) for _ in range(2))
    least = values.new_empty((n_rows, n_bins, n_neurons), dtype=torch.int32)
    extremes_kernel[(n_rows, triton.cdiv(n_neurons, NEURONS))](
        values, allowed.view(torch.int8), of_tokens, of_neurons, bounds, highest, token, largest, least,
        n_ctx, n_neurons, n_bins,
        tile_tokens=TOKENS_OF_BINS, tile_bins=triton.next_power_of_2(n_bins), tile_neurons=NEURONS, num_warps=WARPS,
    )  # fmt: skip
    return highest, token, largest, least


def statistics(values: Tensor) -> tuple[Tensor, ...]:
    n_rows, n_ctx, n_neurons = values.shape
    sums = values.new_empty((n_rows, 4, n_neurons), dtype=torch.float64)
    maximum = values.new_empty((n_rows, n_neurons), dtype=torch.float32)
    nonzero = torch.empty_like(maximum, dtype=torch.int32)
    statistics_kernel[(n_rows, triton.cdiv(n_neurons, NEURONS))](
        values, sums, maximum, nonzero, n_ctx, n_neurons, tile_tokens=TOKENS, tile_neurons=NEURONS, num_warps=WARPS
    )
    return _of_all_rows(sums, n_ctx), maximum.amax(0), nonzero.sum(0, dtype=torch.int32)


def _of_all_rows(sums: Tensor, n_ctx: int) -> Tensor:
    """(4, neurons) from each row's: powers of x - mean, written as (x - the row's mean) + d and multiplied out."""
    mean, second, third, fourth = sums.unbind(1)
    whole = mean.mean(0)
    d = mean - whole
    d2 = d * d
    second_of_all = second + n_ctx * d2
    third_of_all = third + 3 * d * second + n_ctx * d2 * d
    fourth_of_all = fourth + 4 * d * third + 6 * d2 * second + n_ctx * d2 * d2
    return torch.stack([whole, second_of_all.sum(0), third_of_all.sum(0), fourth_of_all.sum(0)])


def count_levels(counts: Tensor, values: Tensor, signed: bool) -> None:
    n_tokens, n_neurons = values.shape
    levels_kernel[(triton.cdiv(n_tokens, TOKENS), triton.cdiv(n_neurons, NEURONS))](
        values, counts, n_tokens, n_neurons, counts.shape[1], signed=signed,
        tile_tokens=TOKENS, tile_neurons=NEURONS, num_warps=WARPS,
    )  # fmt: skip


@triton.jit
def hash_of(of_tokens, of_neurons):
    """As in `priority.priorities`, but uint32."""
    u = of_tokens ^ of_neurons
    u = (u ^ (u >> 16)) * tl.full((), FIRST_FACTOR, tl.uint32)
    return (u ^ (u >> 13)) * tl.full((), SECOND_FACTOR, tl.uint32)


@triton.jit
def order_of(values, u):
    """As in `quantiles.order_keys`, from activations without a negative zero and their hashes."""
    of_zero = ((u * tl.full((), ZERO_FACTOR, tl.uint32)) >> 10) & ZERO_MASK
    bits = values.to(tl.int32, bitcast=True)
    return tl.where(values == 0.0, of_zero.to(tl.int32), (bits ^ ((bits >> 31) & LARGEST)) >> 1)


@triton.jit
def extremes_kernel(
    values_ptr, allowed_ptr, of_tokens_ptr, of_neurons_ptr, bounds_ptr, highest_ptr, token_ptr, largest_ptr, least_ptr,
    n_ctx, n_neurons, n_bins,
    tile_tokens: tl.constexpr, tile_bins: tl.constexpr, tile_neurons: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    neurons = tl.program_id(1) * tile_neurons + tl.arange(0, tile_neurons)
    bins = tl.arange(0, tile_bins)
    here, in_bins = neurons < n_neurons, (bins < n_bins)[:, None] & (neurons < n_neurons)[None, :]
    of_neurons = tl.load(of_neurons_ptr + neurons, mask=here, other=0).to(tl.uint32, bitcast=True)
    of_bins = bounds_ptr + bins[:, None] * n_neurons + neurons[None, :]
    low = tl.load(of_bins, mask=in_bins, other=LARGEST)
    end = tl.load(of_bins + n_neurons, mask=in_bins, other=SMALLEST)
    highest = tl.full((tile_neurons,), float("-inf"), tl.float32)
    first = tl.zeros((tile_neurons,), tl.int32)
    largest = tl.full((tile_neurons,), SMALLEST, tl.int32)
    least = tl.full((tile_bins, tile_neurons), LARGEST, tl.int32)
    for begin in range(0, n_ctx, tile_tokens):
        tokens = begin + tl.arange(0, tile_tokens)
        inside = tokens < n_ctx
        allowed = tl.load(allowed_ptr + row * n_ctx + tokens, mask=inside, other=0) != 0
        of_tokens = tl.load(of_tokens_ptr + row * n_ctx + tokens, mask=inside, other=0).to(tl.uint32, bitcast=True)
        where = values_ptr + (row * n_ctx + tokens)[:, None] * n_neurons + neurons[None, :]
        values = tl.load(where, mask=inside[:, None] & here[None, :], other=0.0)
        values = values.to(tl.float32) + 0.0  # the sum turns -0 into 0

        u = hash_of(of_tokens[:, None], of_neurons[None, :])
        h, order = u.to(tl.int32, bitcast=True), order_of(values, u)

        shown = tl.where(allowed[:, None], values, float("-inf"))
        in_tile = tl.max(shown, 0)
        at = tl.min(tl.where(allowed[:, None] & (shown == in_tile[None, :]), tokens[:, None], LARGEST), 0)
        higher = in_tile > highest
        highest, first = tl.where(higher, in_tile, highest), tl.where(higher, at, first)
        largest = tl.maximum(largest, tl.max(tl.where(allowed[:, None], h, SMALLEST), 0))
        keys = order[:, None, :]
        among = allowed[:, None, None] & (keys >= low[None, :, :]) & (keys < end[None, :, :])
        least = tl.minimum(least, tl.min(tl.where(among, h[:, None, :], LARGEST), 0))
    tl.store(highest_ptr + row * n_neurons + neurons, highest, mask=here)
    tl.store(token_ptr + row * n_neurons + neurons, first, mask=here)
    tl.store(largest_ptr + row * n_neurons + neurons, largest, mask=here)
    tl.store(least_ptr + (row * n_bins + bins)[:, None] * n_neurons + neurons[None, :], least, mask=in_bins)


@triton.jit
def statistics_kernel(
    values_ptr, sums_ptr, maximum_ptr, nonzero_ptr, n_ctx, n_neurons,
    tile_tokens: tl.constexpr, tile_neurons: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    neurons = tl.program_id(1) * tile_neurons + tl.arange(0, tile_neurons)
    here = neurons < n_neurons
    total, maximum = tl.zeros((tile_neurons,), tl.float64), tl.full((tile_neurons,), float("-inf"), tl.float32)
    nonzero = tl.zeros((tile_neurons,), tl.int32)
    for begin in range(0, n_ctx, tile_tokens):
        tokens = begin + tl.arange(0, tile_tokens)
        there = (tokens < n_ctx)[:, None] & here[None, :]
        where = values_ptr + (row * n_ctx + tokens)[:, None] * n_neurons + neurons[None, :]
        values = tl.load(where, mask=there, other=0.0).to(tl.float32)
        total += tl.sum(values.to(tl.float64), 0)
        maximum = tl.maximum(maximum, tl.max(tl.where(there, values, float("-inf")), 0))
        nonzero += tl.sum((values != 0.0).to(tl.int32), 0)
    mean = total / n_ctx
    second, third, fourth = tl.zeros_like(total), tl.zeros_like(total), tl.zeros_like(total)
    for begin in range(0, n_ctx, tile_tokens):
        tokens = begin + tl.arange(0, tile_tokens)
        there = (tokens < n_ctx)[:, None] & here[None, :]
        where = values_ptr + (row * n_ctx + tokens)[:, None] * n_neurons + neurons[None, :]
        values = tl.load(where, mask=there, other=0.0).to(tl.float32)
        d = tl.where(there, values.to(tl.float64) - mean[None, :], 0.0)
        second += tl.sum(d * d, 0)
        third += tl.sum(d * d * d, 0)
        fourth += tl.sum((d * d) * (d * d), 0)
    sums = sums_ptr + row * 4 * n_neurons + neurons
    tl.store(sums, mean, mask=here)
    tl.store(sums + n_neurons, second, mask=here)
    tl.store(sums + 2 * n_neurons, third, mask=here)
    tl.store(sums + 3 * n_neurons, fourth, mask=here)
    tl.store(maximum_ptr + row * n_neurons + neurons, maximum, mask=here)
    tl.store(nonzero_ptr + row * n_neurons + neurons, nonzero, mask=here)


@triton.jit
def levels_kernel(
    values_ptr, counts_ptr, n_tokens, n_neurons, n_levels,
    signed: tl.constexpr, tile_tokens: tl.constexpr, tile_neurons: tl.constexpr,
):  # fmt: skip
    tokens = tl.program_id(0).to(tl.int64) * tile_tokens + tl.arange(0, tile_tokens)
    neurons = tl.program_id(1).to(tl.int64) * tile_neurons + tl.arange(0, tile_neurons)
    there = (tokens < n_tokens)[:, None] & (neurons < n_neurons)[None, :]
    values = tl.load(values_ptr + tokens[:, None] * n_neurons + neurons[None, :], mask=there, other=0.0)
    bits = values.to(tl.float32).to(tl.int32, bitcast=True)
    size = bits & LARGEST  # as in quantiles.level_counts
    level = tl.minimum(tl.maximum((size >> SHIFT) - LOWEST, 0), N_POSITIVE - 1) + 1
    zero = N_POSITIVE if signed else 0
    if signed:
        level = tl.where(bits < 0, -level, level)
    of_neurons = counts_ptr + neurons * n_levels + zero
    tl.atomic_add(of_neurons[None, :] + level, 1, mask=there & (size != 0), sem="relaxed")
    # Most tokens of a sparse code are zeros: these are added up first, or they would all queue for one number.
    zeros = tl.sum((there & (size == 0)).to(tl.int32), 0)
    tl.atomic_add(of_neurons, zeros, mask=zeros > 0, sem="relaxed")
