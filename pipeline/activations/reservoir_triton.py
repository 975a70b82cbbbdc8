"""The kernels of `reservoir.py` for a GPU: a program takes a bin of a few neurons, and holds the keys that are kept for them.

A candidate's excerpt is read only when it enters: what a mask leaves out costs no memory's time. A later candidate may take an
earlier one's place in the same launch; both are written by the same threads, in this order.
"""

import triton
import triton.language as tl
from torch import Tensor

from pipeline.activations import keys
from pipeline.activations.reservoir import Excerpts, Tokens
from pipeline.activations.scan_triton import LARGEST, SMALLEST, hash_of, order_of

NEURONS, TOKENS, WARPS = 16, 32, 4  # of a tile; tokens where all are candidates
NONE, POSITION_MASK = tl.constexpr(keys.NONE), tl.constexpr(keys.POSITION_MASK)
NO_PLACE = tl.constexpr(-(2**63))  # better than any key: never the worst of those that are kept


def keep(kept: Tensor, activations: Tensor, keys: Tensor, excerpts: Excerpts) -> None:
    n_neurons, n_bins, capacity, width = activations.shape
    keep_kernel[(triton.cdiv(n_neurons, NEURONS), n_bins)](
        kept, activations, excerpts.text, excerpts.starts, excerpts.first, n_neurons, n_bins, capacity, width,
        keys, len(keys), **_tiles(activations),
    )  # fmt: skip


def keep_tokens(
    kept: Tensor, activations: Tensor, tokens: Tokens, bounds: Tensor, by_activation: bool, excerpts: Excerpts
) -> None:
    n_neurons, n_bins, capacity, width = activations.shape
    keep_tokens_kernel[(triton.cdiv(n_neurons, NEURONS), n_bins)](
        kept, activations, excerpts.text, excerpts.starts, excerpts.first, n_neurons, n_bins, capacity, width,
        tokens.values, tokens.of_tokens, tokens.of_neurons, bounds, len(tokens.values),
        by_activation=by_activation, tile_tokens=TOKENS, **_tiles(activations),
    )  # fmt: skip


def _tiles(activations: Tensor) -> dict[str, int]:
    capacity, width = map(triton.next_power_of_2, activations.shape[2:])
    return {"tile_neurons": NEURONS, "tile_kept": capacity, "tile_width": width, "num_warps": WARPS}


@triton.jit
def load_kept(kept_ptr, groups, capacity, here, tile_kept: tl.constexpr):
    places = tl.arange(0, tile_kept)[None, :]
    held = here[:, None] & (places < capacity)
    return tl.load(kept_ptr + groups[:, None] * capacity + places, mask=held, other=NO_PLACE)


@triton.jit
def store_kept(kept_ptr, kept, groups, capacity, here, tile_kept: tl.constexpr):
    places = tl.arange(0, tile_kept)[None, :]
    held = here[:, None] & (places < capacity)
    tl.store(kept_ptr + groups[:, None] * capacity + places, kept, mask=held)


@triton.jit
def put(
    key, kept, groups, neurons, activations_ptr, text_ptr, starts_ptr, first, n_neurons, capacity, width,
    tile_kept: tl.constexpr, tile_width: tl.constexpr,
):  # fmt: skip
    """Put each neuron's candidate in the place of the worst that is kept, where it is better. Returns what is kept then."""
    places, offsets = tl.arange(0, tile_kept)[None, :], tl.arange(0, tile_width)[None, :]
    worst = tl.max(kept, 1)
    enters = key < worst
    place = tl.min(tl.where(kept == worst[:, None], places, tile_kept), 1)  # several are empty at first
    begin = tl.load(starts_ptr + (key & POSITION_MASK) - first, mask=enters, other=0)
    copied = enters[:, None] & (offsets < width)
    excerpt = text_ptr + (begin[:, None] + offsets) * n_neurons + neurons[:, None]
    into = activations_ptr + (groups * capacity + place)[:, None] * width + offsets
    tl.store(into, tl.load(excerpt, mask=copied, other=0.0).to(tl.float32), mask=copied)
    return tl.where(enters[:, None] & (places == place[:, None]), key[:, None], kept)


@triton.jit
def keep_kernel(
    kept_ptr, activations_ptr, text_ptr, starts_ptr, first, n_neurons, n_bins, capacity, width, keys_ptr, n_offered,
    tile_neurons: tl.constexpr, tile_kept: tl.constexpr, tile_width: tl.constexpr,
):  # fmt: skip
    neurons = (tl.program_id(0) * tile_neurons + tl.arange(0, tile_neurons)).to(tl.int64)
    bin_ = tl.program_id(1)
    here, groups = neurons < n_neurons, neurons * n_bins + bin_
    kept = load_kept(kept_ptr, groups, capacity, here, tile_kept)
    for i in range(n_offered):
        key = tl.load(keys_ptr + (i * n_bins + bin_) * n_neurons + neurons, mask=here, other=NONE)
        kept = put(
            key, kept, groups, neurons, activations_ptr, text_ptr, starts_ptr, first, n_neurons, capacity, width,
            tile_kept, tile_width,
        )  # fmt: skip
    store_kept(kept_ptr, kept, groups, capacity, here, tile_kept)


@triton.jit
def keep_tokens_kernel(
    kept_ptr, activations_ptr, text_ptr, starts_ptr, first, n_neurons, n_bins, capacity, width,
    values_ptr, of_tokens_ptr, of_neurons_ptr, bounds_ptr, n_tokens,
    by_activation: tl.constexpr, tile_tokens: tl.constexpr, tile_neurons: tl.constexpr, tile_kept: tl.constexpr,
    tile_width: tl.constexpr,
):  # fmt: skip
    neurons = (tl.program_id(0) * tile_neurons + tl.arange(0, tile_neurons)).to(tl.int64)
    bin_ = tl.program_id(1)
    here, groups = neurons < n_neurons, neurons * n_bins + bin_
    kept = load_kept(kept_ptr, groups, capacity, here, tile_kept)
    of_neurons = tl.load(of_neurons_ptr + neurons, mask=here, other=0).to(tl.uint32, bitcast=True)
    low = tl.load(bounds_ptr + bin_ * n_neurons + neurons, mask=here, other=LARGEST)
    end = tl.load(bounds_ptr + (bin_ + 1) * n_neurons + neurons, mask=here, other=SMALLEST)
    for begin in range(0, n_tokens, tile_tokens):
        tokens = (begin + tl.arange(0, tile_tokens)).to(tl.int64)
        there = tokens < n_tokens
        where = values_ptr + tokens[:, None] * n_neurons + neurons[None, :]
        values = tl.load(where, mask=there[:, None] & here[None, :], other=0.0).to(tl.float32) + 0.0  # -0 becomes 0
        of_tokens = tl.load(of_tokens_ptr + tokens, mask=there, other=0).to(tl.uint32, bitcast=True)
        u = hash_of(of_tokens[:, None], of_neurons[None, :])
        order = order_of(values, u)
        if by_activation:
            bits = values.to(tl.int32, bitcast=True)
            priority = ~(bits ^ ((bits >> 31) & LARGEST))  # as in quantiles.descending
        else:
            priority = u.to(tl.int32, bitcast=True)
        inside = there[:, None] & (order >= low[None, :]) & (order < end[None, :])
        key = tl.where(inside, (priority.to(tl.int64) << 32) | (first + tokens)[:, None], NONE)
        best = tl.min(key, 0)
        # Each neuron's best of the tile in turn, until no neuron has one that is good enough: mostly at once.
        while tl.max((best < tl.max(kept, 1)).to(tl.int32), 0) > 0:
            kept = put(
                best, kept, groups, neurons, activations_ptr, text_ptr, starts_ptr, first, n_neurons, capacity, width,
                tile_kept, tile_width,
            )  # fmt: skip
            key = tl.where(key == best[None, :], NONE, key)
            best = tl.min(key, 0)
    store_kept(kept_ptr, kept, groups, capacity, here, tile_kept)
