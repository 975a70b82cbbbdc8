"""Random choice that depends on nothing but what is chosen: a hash of (seed, neuron, token) decides who is drawn.

Whoever computes it, in whatever order, gets the same sample.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = 2**31 - 1


def mix(seed: int, what: str, values: np.ndarray) -> np.ndarray:
    """A well-mixed uint32 for each whole number (n,). *Source:* splitmix64 (Steele, Lea and Flood 2014)."""
    salt = np.uint64((seed * 0x9E3779B97F4A7C15 + zlib.crc32(what.encode())) % 2**64)
    with np.errstate(over="ignore"):
        z = (np.asarray(values).astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + salt
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(32)).astype(np.uint32)


def priorities(of_tokens: Tensor, of_neurons: Tensor) -> Tensor:
    """Priorities (tokens, neurons) int32 in [0, 2^31), from mixed int32 hashes (tokens,) and (neurons,).

    *Source:* the finalizer of MurmurHash3, in wrapping 32-bit arithmetic, with the shifts made logical by masks.
    """
    h = of_tokens[:, None] ^ of_neurons[None, :]
    h ^= (h >> 16) & 0xFFFF
    h *= -2048144789  # 0x85EBCA6B
    h ^= (h >> 13) & 0x7FFFF
    h *= -1028477387  # 0xC2B2AE35
    return h.bitwise_and_(LARGEST)
