"""Random choice that depends on nothing but what is chosen: a hash of (seed, neuron, token) decides who is drawn.

Whoever computes it, in whatever order, gets the same sample. The hash is one to one over the tokens of a neuron, so that the
token can be told from its hash: a minimum over tokens needs no search for where it was.

*Source:* the finalizer of MurmurHash3 by Austin Appleby, applied to token and neuron in turn.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

BITS = 0xFFFFFFFF
LARGEST, SMALLEST = 2**31 - 1, -(2**31)
FIRST_FACTOR, SECOND_FACTOR = 0x85EBCA6B, 0xC2B2AE35


def token_hashes(seed: int, positions: np.ndarray) -> np.ndarray:
    """A well-mixed int32 for every position (n,) of val, no two alike."""
    return _scramble(positions.astype(np.uint64) ^ np.uint64(_salt(seed, "tokens"))).astype(np.uint32).view(np.int32)


def name_hashes(seed: int, what: str, n: int) -> np.ndarray:
    """A well-mixed int32 for each of n things of a kind (the neurons of a site, the batches of a corpus)."""
    salted = np.arange(n, dtype=np.uint64) ^ np.uint64(_salt(seed, what))
    return _scramble(salted).astype(np.uint32).view(np.int32)


def priorities(of_tokens: Tensor, of_neurons: Tensor) -> Tensor:
    """Priorities (..., tokens, neurons) int32 from the hashes of tokens (..., tokens) and neurons (neurons,)."""
    h = of_tokens[..., None] ^ of_neurons
    h ^= (h >> 16).bitwise_and_(0xFFFF)  # torch shifts keep the sign: the mask makes them logical
    h *= FIRST_FACTOR - 2**32
    h ^= (h >> 13).bitwise_and_(0x7FFFF)
    h *= SECOND_FACTOR - 2**32
    return h


def positions_of(priority: Tensor, of_neurons: Tensor, seed: int) -> Tensor:
    """The positions (...) int64 of the tokens that have these priorities (...) for neurons with these hashes (...)."""
    return (_unscramble(_unscramble(priority) ^ of_neurons).long() & BITS) ^ _salt(seed, "tokens")


def _salt(seed: int, what: str) -> int:
    return zlib.crc32(f"{seed}/{what}".encode())


def _scramble(x: np.ndarray) -> np.ndarray:
    """The finalizer on uint64 holding 32-bit values."""
    x = x ^ (x >> np.uint64(16))
    x = x * np.uint64(FIRST_FACTOR) & np.uint64(BITS)
    x = x ^ (x >> np.uint64(13))
    return x * np.uint64(SECOND_FACTOR) & np.uint64(BITS)


def _unscramble(x: Tensor) -> Tensor:
    """The finalizer's inverse on int32, whose products wrap around; the masks are as in `priorities`."""
    x = x * _signed(pow(SECOND_FACTOR, -1, 2**32))
    x = x ^ (x >> 13).bitwise_and_(0x7FFFF) ^ (x >> 26).bitwise_and_(0x3F)
    x = x * _signed(pow(FIRST_FACTOR, -1, 2**32))
    return x ^ (x >> 16).bitwise_and_(0xFFFF)


def _signed(factor: int) -> int:
    """A factor of 32 bits as the int32 that has the same bits."""
    return factor - 2**32 if factor >= 2**31 else factor
