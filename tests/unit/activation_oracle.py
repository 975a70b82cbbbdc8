"""The records of one neuron by brute force: all activations in memory, everything sorted, one token and one neuron at a time.

Written from the definitions in docs/activations.md, in plain Python and numpy, sharing no code with what it checks.
"""

from __future__ import annotations

import functools
import math
import zlib
from bisect import bisect_right
from dataclasses import dataclass

import numpy as np

MASK = 0xFFFFFFFF


def scramble(x: int) -> int:
    x ^= x >> 16
    x = x * 0x85EBCA6B & MASK
    x ^= x >> 13
    return x * 0xC2B2AE35 & MASK


def signed(x: int) -> int:
    return x - 2**32 if x >= 2**31 else x


@functools.cache
def salt(seed: int, what: str) -> int:
    return zlib.crc32(f"{seed}/{what}".encode())


@functools.lru_cache(1 << 13)
def token_hash(seed: int, site: str, neuron: int, position: int) -> int:
    return scramble(scramble(position ^ salt(seed, "tokens")) ^ scramble(neuron ^ salt(seed, site)))


def level(value: float) -> float:
    """A positive number's step among the 16 of its power of two, as the lower end of that step."""
    exponent = min(max(math.floor(math.log2(value)), -24), 15)
    if value < 2.0**-24:
        return 2.0**-24
    return 2.0**exponent * (1 + min(math.floor((value / 2.0**exponent - 1) * 16), 15) / 16)


def place_value(value: float, h: int) -> float:
    """Where a token stands in the order: at its activation, or, at zero, by hash in a fictitious range below all of them."""
    if value != 0:
        return value
    return ((h * 0x9E3779B1 & MASK) >> 10 & (2**22 - 1)) / 2**22 * 1e-37


def edges(values: np.ndarray, shares: list[float]) -> list[float]:
    """Places in the order with these shares of the values below them, straight within a step."""
    found = []
    ordered = sorted(values.tolist())
    steps: dict[float, int] = {}
    for value in ordered:
        steps[0.0 if value == 0 else level(value)] = steps.get(0.0 if value == 0 else level(value), 0) + 1
    for share in shares:
        wanted, below = share * len(ordered), 0
        for low in sorted(steps):
            if below + steps[low] > wanted:
                part = (wanted - below) / steps[low]
                octave = 2.0 ** math.floor(math.log2(low)) if low else 0.0
                grain = octave / 2**22  # edges have one bit less than a float32
                inside = math.floor(part * octave / 16 / grain) * grain if low else part * 1e-37
                found.append(low + inside)
                break
            below += steps[low]
    return found


@dataclass(frozen=True)
class Text:
    n_ctx: int
    document_starts: tuple[int, ...]
    n_tokens: int  # of val

    @functools.cache  # noqa: B019 lives as long as the test
    def part(self, position: int) -> tuple[int, int]:
        """The part of its document that lies in its row."""
        row = position // self.n_ctx
        start = max(s for s in self.document_starts if s <= position)
        later = [s for s in self.document_starts if s > position]
        return max(start, row * self.n_ctx), min(min(later, default=self.n_tokens), (row + 1) * self.n_ctx)


def corrected(
    values: np.ndarray,
    measured: np.ndarray,
    text: Text,
    site: str,
    neuron: int,
    width: int,
    shares: list[float],
    counts: tuple[int, int, int],
    seed: int,
) -> dict[tuple[str, int], list[tuple[int, int]]]:
    """(start, centre) of the excerpts by kind and bin, in order of rank. `values` (tokens,), `measured` those of the pilot."""
    top, random, per_quantile = counts
    borders = edges(measured, shares)
    rows: dict[int, list[tuple[int, float, int, int]]] = {}  # row -> (position, activation, hash, bin)
    for position, value in enumerate(values.tolist()):
        begin, end = text.part(position)
        if end - begin >= width:
            h = token_hash(seed, site, neuron, position)
            bin_ = bisect_right(borders, place_value(value, h))
            rows.setdefault(position // text.n_ctx, []).append((position, value, signed(h), bin_))
    best = sorted(min((-v, p) for p, v, _, _ in tokens) for tokens in rows.values())[:top]
    chosen = {("top", -1): [p for _, p in best]}
    taken = {p // text.n_ctx for _, p in best}
    drawn = sorted((max((h, p) for p, _, h, _ in tokens) for tokens in rows.values()), reverse=True)[: 2 * random]
    free = [p for _, p in drawn if p // text.n_ctx not in taken][:random]
    chosen["random", -1] = free
    taken |= {p // text.n_ctx for p in free}
    lists = []
    for bin_ in range(len(shares) + 1):
        of_rows = [[(h, p) for p, _, h, b in tokens if b == bin_] for tokens in rows.values()]
        lists.append([p for _, p in sorted(min(tokens) for tokens in of_rows if tokens)[: 2 * per_quantile]])
    for _ in range(per_quantile):
        for bin_, candidates in enumerate(lists):
            for p in candidates:
                if p // text.n_ctx not in taken:
                    chosen.setdefault(("quantile", bin_), []).append(p)
                    taken.add(p // text.n_ctx)
                    break
    # within a bin, excerpts are ranked by their hashes
    for key in chosen:
        if key[0] == "quantile":
            chosen[key].sort(key=lambda p: signed(token_hash(seed, site, neuron, p)))
    result = {}
    for key, positions in chosen.items():
        result[key] = []
        for p in positions:
            begin, end = text.part(p)
            start = min(max(p - width // 2, begin), end - width)
            result[key].append((start, p - start))
    return result


def paper(
    values: np.ndarray,
    site: str,
    neuron: int,
    width: int,
    shares: list[float],
    n_bins: int,
    counts: tuple[int, int, int],
    seed: int,
) -> dict[tuple[str, int], list[tuple[int, int]]]:
    """As `corrected`, for the published protocol: all tokens, no document or row is minded."""
    top, random, per_quantile = counts
    n = len(values)
    borders = edges(values, shares)
    hashes = [token_hash(seed, site, neuron, p) for p in range(n)]
    bins = [bisect_right(borders, place_value(v, h)) for v, h in zip(values.tolist(), hashes, strict=True)]
    chosen = {("top", -1): sorted(range(n), key=lambda p: (-values[p], p))[:top]}
    first = neuron * random
    draws = [scramble((first + r) ^ salt(seed, f"{site}/{width}/draws")) for r in range(random)]
    chosen["random", -1] = [draw * n >> 32 for draw in draws]
    for bin_ in range(n_bins):
        inside = sorted((signed(hashes[p]), p) for p in range(n) if bins[p] == bin_)
        chosen["quantile", bin_] = [p for _, p in inside[:per_quantile]]
    return {
        key: [(max(p - width // 2, 0), p - max(p - width // 2, 0)) for p in positions]
        for key, positions in chosen.items()
        if positions
    }
