"""Mean, variance, skewness and kurtosis that can be merged, with the same bits however the batches were shared out.

A batch's sums are merged along a fixed binary tree over the batch numbers: node (h, i) covers batches [i * 2^h, (i + 1) * 2^h).
Two finished neighbours become their parent at once, so that few nodes are held, and any division of the batches over workers
ends in the same tree.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Moments:
    """Of n values a neuron: `sums` (4, neurons) float64 holds the mean and the sums of (x - mean)^2, ^3 and ^4."""

    n: int
    sums: np.ndarray

    def merged(self, other: Moments) -> Moments:
        """Of both sets of values. *Source:* Pébay 2008, SAND2008-6212."""
        n = self.n + other.n
        (mean, a2, a3, a4), (other_mean, b2, b3, b4) = self.sums, other.sums
        p, q = self.n / n, other.n / n
        delta = other_mean - mean
        scale = self.n * q  # n_a n_b / n
        m2 = a2 + b2 + delta**2 * scale
        m3 = a3 + b3 + delta**3 * scale * (p - q) + 3 * delta * (p * b2 - q * a2)
        m4 = a4 + b4 + delta**4 * scale * (p * p - p * q + q * q)
        m4 = m4 + 6 * delta**2 * (p * p * b2 + q * q * a2) + 4 * delta * (p * b3 - q * a3)
        return Moments(n, np.stack([mean + delta * q, m2, m3, m4]))

    def variance(self) -> np.ndarray:
        """Unbiased, (neurons,)."""
        return self.sums[1] / max(1, self.n - 1)

    def skewness(self) -> np.ndarray:
        """Third standardised moment (neurons,), NaN where the variance is 0."""
        return self._standardised(2, 1.5)

    def kurtosis(self) -> np.ndarray:
        """Fourth standardised moment (neurons,), 3 for a normal distribution; NaN where the variance is 0."""
        return self._standardised(3, 2.0)

    def _standardised(self, row: int, power: float) -> np.ndarray:
        spread = np.where(self.sums[1] > 0, self.sums[1] / self.n, np.nan)
        return self.sums[row] / self.n / spread**power


class MomentsTree:
    """Moments of many batches, any of them at any time."""

    def __init__(self) -> None:
        self.nodes: dict[tuple[int, int], Moments] = {}

    def add(self, batch: int, moments: Moments) -> None:
        self.put(0, batch, moments)

    def put(self, height: int, index: int, moments: Moments) -> None:
        """Add a node, and merge it with its sibling, and so on up the tree."""
        while (sibling := (height, index ^ 1)) in self.nodes:
            other = self.nodes.pop(sibling)
            moments = other.merged(moments) if index & 1 else moments.merged(other)
            height, index = height + 1, index >> 1
        self.nodes[height, index] = moments

    def total(self) -> Moments:
        """Of all batches. What the tree's right edge left unpaired is merged from left to right."""
        rest = sorted(self.nodes.items(), key=lambda item: item[0][1] << item[0][0])
        total = rest[0][1]
        for _, moments in rest[1:]:
            total = total.merged(moments)
        return total
