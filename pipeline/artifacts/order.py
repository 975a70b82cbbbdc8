"""Which windows make up the batch of a step: a pure function of (seed, step), with no index file and no state.

Every epoch is a permutation of all windows. It is computed place by place, by a small cipher (a Feistel network on the
window numbers, walked until it lands inside the range), so that a run can start at any step for the same price, and the
whole state of the data order is one integer: the step. Batches are global; a worker takes its share of one.

*Source:* Black & Rogaway 2002, "Ciphers with arbitrary finite domains" (cycle walking); the mixer is splitmix64's.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

ROUNDS = 8  # of the cipher: small ranges need more than the usual four to look random


def count_windows(n_tokens: int, n_ctx: int) -> int:
    """Windows of a split: each has n_ctx inputs, and the token after its last one as the last target."""
    return max(0, (n_tokens - 1) // n_ctx)


def window_ids(seed: int, step: int, batch_windows: int, n_windows: int) -> NDArray[np.int64]:
    """The `batch_windows` windows of step `step` (from 0), in [0, n_windows). A batch may reach into the next epoch."""
    if n_windows <= 0:
        raise ValueError(f"no windows to order: n_windows = {n_windows}")
    places = np.arange(batch_windows, dtype=np.uint64) + np.uint64(step * batch_windows)
    epochs, places = np.divmod(places, np.uint64(n_windows))
    return _permute(places, epochs, seed, n_windows).astype(np.int64)


def share_of(ids: NDArray[np.int64], rank: int, world_size: int) -> NDArray[np.int64]:
    """The part of a global batch that worker `rank` takes; the shares of all workers, joined in order, are the batch."""
    return np.array_split(ids, world_size)[rank]


def chain(previous: str, ids: NDArray[np.int64]) -> str:
    """A rolling hash of all windows consumed so far; start with "". Equal hashes: equal data in equal order."""
    return hashlib.sha256(bytes.fromhex(previous) + np.asarray(ids, dtype="<i8").tobytes()).hexdigest()


def _permute(places: NDArray[np.uint64], epochs: NDArray[np.uint64], seed: int, n: int) -> NDArray[np.uint64]:
    bits = max(2, (n - 1).bit_length())
    key = _mix(_mix(np.full_like(epochs, np.uint64(seed))) ^ epochs)
    keys = np.stack([_mix(key + np.uint64(round_number)) for round_number in range(ROUNDS)])
    result = places.copy()
    outside = np.ones(len(result), dtype=bool)
    while outside.any():  # the cipher permutes the next power of two: at most two walks a number on average
        result[outside] = _feistel(result[outside], keys[:, outside], bits)
        outside = result >= n
    return result


def _feistel(values: NDArray[np.uint64], keys: NDArray[np.uint64], bits: int) -> NDArray[np.uint64]:
    left_bits, right_bits = np.uint64(bits // 2), np.uint64(bits - bits // 2)
    left, right = values >> right_bits, values & _mask(right_bits)
    for key in keys:  # an even number: the halves end with the widths they began with
        left, right = right, left ^ (_mix(right ^ key) & _mask(left_bits))
        left_bits, right_bits = right_bits, left_bits
    return (left << right_bits) | right


def _mask(bits: np.uint64) -> np.uint64:
    return (np.uint64(1) << bits) - np.uint64(1)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finalizer: every bit of the input changes every bit of the output."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
