"""Which tokens of a row may have the smallest hash of their quantile bin, and enter a reservoir: told by two comparisons.

A low bin has many tokens, so that only those with a very small hash come into question; a high bin has few, so that it costs
little to look at all of them. Each neuron's bins are parted where the fewest tokens pass. The order of activations is then worked
out for these alone. What is found is exact; where something may have been missed, the neuron is said to be unsure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.activations.priority import LARGEST, SMALLEST, on_cpu, tile_length
from pipeline.activations.quantiles import ZERO_KEYS, key_values, order_keys
from pipeline.activations.reservoir import NONE, POSITION_BITS

if TYPE_CHECKING:
    from torch import Tensor


EXPECTED = 7  # tokens of a bin that pass, on average: a bin of the usual size has none in one row of 1,000
FEW = 0.12  # share of a neuron's tokens below which working out the order of those that pass is faster than of all


class Sieve:
    def __init__(self, worst: Tensor, edges: Tensor, shares: tuple[float, ...], n_ctx: int) -> None:
        """`worst` (neurons, bins): larger hashes have no chance in a bin; `edges` (bins - 1, neurons): order keys where the bins
        above the first begin, with `shares` of the tokens below them; `n_ctx` tokens are in a row."""
        import torch

        self.worst, self.edges = worst, edges.T.contiguous()
        bounds = np.array([0.0, *shares, 1.0])
        passing = np.minimum(EXPECTED / (np.diff(bounds) * n_ctx), 1.0) * (LARGEST - SMALLEST) + SMALLEST
        enough = torch.from_numpy(passing.astype(np.int64)).to(worst.device, torch.int32)
        below = worst.minimum(enough).cummax(1).values  # of the bins up to this one
        cost = (below.double() - SMALLEST) / 2**32 + torch.from_numpy(1 - bounds[1:]).to(worst.device)
        among_zeros = (edges >= 0) & (edges < ZERO_KEYS)  # activations do not tell which zeros lie above
        cost[:, :-1].masked_fill_(among_zeros.T, 2.0)
        best = cost.min(1)
        values = torch.cat([key_values(edges), torch.full_like(edges[:1], torch.inf, dtype=torch.float32)])
        self.highest_hash = below.gather(1, best.indices[:, None])[:, 0]
        self.lowest_value = values.gather(0, best.indices[None])[0]
        is_below = torch.arange(worst.shape[1], device=worst.device) <= best.indices[:, None]
        self._unsure = is_below & (self.highest_hash[:, None] < worst)
        many = best.values >= FEW  # nothing passes of these
        self.highest_hash[many], self.lowest_value[many], self._unsure[many] = SMALLEST, torch.inf, True

    def keys(self, values: Tensor, h: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Keys (neurons, bins) of each bin's token with the smallest hash, NONE where none has a chance; and the neurons (m,) of
        which this cannot be said.

        `values`, `h` (tokens, neurons) are the activations and hashes of tokens at `positions` (tokens,).
        """
        import torch

        passed = self._passed(values, h)
        tokens, neurons = passed // len(self.worst), passed % len(self.worst)
        hashes = h.flatten()[passed]
        order = order_keys(values.flatten()[passed], hashes)
        bins = (order[:, None] >= self.edges[neurons]).sum(1)
        group = neurons * self.worst.shape[1] + bins
        chance = ((hashes <= self.worst.flatten()[group]) & (hashes < LARGEST)).nonzero()[:, 0]
        keys = (hashes[chance].long() << POSITION_BITS) | positions[tokens[chance]]
        least = torch.full((self.worst.numel(),), NONE, device=values.device)
        least = least.scatter_reduce_(0, group[chance], keys, "amin").view(self.worst.shape)
        return least, ((least == NONE) & self._unsure).any(1).nonzero()[:, 0]

    def _passed(self, values: Tensor, h: Tensor) -> Tensor:
        """Indices (m,) of those let through, counted token by token. On a CPU by numpy, several times faster at it than torch."""
        import torch

        if not on_cpu(values):
            return ((h <= self.highest_hash) | (values >= self.lowest_value)).flatten().nonzero()[:, 0]
        n_tokens, n_neurons = values.shape
        size = tile_length(values)
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
