"""Which tokens may still enter the quantile bins' reservoirs, once these are full: told by two comparisons a token.

A low bin has many tokens, so that only those with a very small hash have a chance; a high bin has few, so that it costs little to
look at all of them. Each neuron's bins are parted where the fewest tokens pass. The sieve lets through every token that has a
chance, and some others; the order of activations is then worked out for these alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.activations.priority import LARGEST, SMALLEST, tile_length
from pipeline.activations.quantiles import ZERO_KEYS, key_values, order_keys
from pipeline.activations.reservoir import NONE, POSITION_BITS

if TYPE_CHECKING:
    from torch import Tensor


class Sieve:
    """`share` is the share of all tokens that it lets through, about."""

    def __init__(self, worst: Tensor, edges: Tensor, shares: tuple[float, ...]) -> None:
        """`worst` (neurons, bins): larger hashes have no chance in a bin; `edges` (bins - 1, neurons): order keys where the bins
        above the first begin, with `shares` of the tokens below them."""
        import torch

        self.worst, self.edges = worst, edges
        below = worst.cummax(1).values  # of the bins up to this one
        passing_below = (below.double() - SMALLEST) / 2**32
        above = torch.tensor([1 - share for share in shares] + [0.0], dtype=torch.float64, device=worst.device)
        passing = passing_below + above
        among_zeros = (edges >= 0) & (edges < ZERO_KEYS)  # activations do not tell which zeros lie above
        passing[:, :-1].masked_fill_(among_zeros.T, 2.0)
        best = passing.min(1)
        self.share = float(best.values.mean())
        values = torch.cat([key_values(edges), torch.full_like(edges[:1], torch.inf, dtype=torch.float32)])
        self.highest_hash = below.gather(1, best.indices[:, None])[:, 0]
        self.lowest_value = values.gather(0, best.indices[None])[0]

    def keys(self, values: Tensor, h: Tensor, positions: Tensor) -> Tensor:
        """Keys (neurons, bins) of each bin's token with the smallest hash, NONE where none has a chance.

        `values`, `h` (tokens, neurons) are the activations and hashes of tokens at `positions` (tokens,).
        """
        import torch

        passed = self._passed(values, h)
        tokens, neurons = passed // len(self.worst), passed % len(self.worst)
        hashes = h.flatten()[passed]
        order = order_keys(values.flatten()[passed], hashes)
        bins = (order >= self.edges[:, neurons]).sum(0)
        group = neurons * self.worst.shape[1] + bins
        chance = ((hashes <= self.worst.flatten()[group]) & (hashes < LARGEST)).nonzero()[:, 0]
        keys = (hashes[chance].long() << POSITION_BITS) | positions[tokens[chance]]
        least = torch.full((self.worst.numel(),), NONE, device=values.device)
        return least.scatter_reduce_(0, group[chance], keys, "amin").view(self.worst.shape)

    def _passed(self, values: Tensor, h: Tensor) -> Tensor:
        """Indices (m,) of those let through, counted token by token. On a CPU by numpy, several times faster at it than torch."""
        import torch

        if values.device.type != "cpu":
            return ((h <= self.highest_hash) | (values >= self.lowest_value)).flatten().nonzero()[:, 0]
        n_tokens, n_neurons = values.shape
        size = tile_length(n_neurons)
        low, high = np.empty((2, size, n_neurons), bool)
        found = []
        for first in range(0, n_tokens, size):
            some = slice(first, min(first + size, n_tokens))
            n = some.stop - first
            np.less_equal(h.numpy()[some], self.highest_hash.numpy(), out=low[:n])
            np.greater_equal(values.numpy()[some], self.lowest_value.numpy(), out=high[:n])
            low |= high
            found.append(np.flatnonzero(low[:n]) + first * n_neurons)
        return torch.from_numpy(np.concatenate(found))
