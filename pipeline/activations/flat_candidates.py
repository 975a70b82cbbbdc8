"""Candidates for excerpts, protocol `paper`: any token of the text, whose rows are one flat stream; excerpts may overlap, cross
documents and rows, and be short at the ends.

*Source:* the released crate-lm code, but for its unseeded choices, which are hashes here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.activations.block import Block
from pipeline.activations.corpus import Span
from pipeline.activations.priority import BITS, name_hashes
from pipeline.activations.quantiles import bin_bounds, descending, least_in_bins, order_keys
from pipeline.activations.reservoir import NONE, POSITION_BITS, Reservoir
from pipeline.activations.wanted import Wanted

if TYPE_CHECKING:
    from torch import Tensor

GROUPS_AT_ONCE = 1024  # neurons, or bins of neurons, whose tokens are sorted at a time


class FlatCandidates:
    def __init__(self, site: str, span: Span, wanted: Wanted, edges: Tensor, of_neurons: Tensor, n_tokens: int) -> None:
        """`edges` (neurons, inner edges) int32: order keys at which the quantile bins above the first begin."""
        import torch

        n_neurons, device = len(edges), edges.device
        self.span, self.seed, self.n_tokens = span, wanted.seed, n_tokens
        self.top = Reservoir(n_neurons, 1, wanted.top, span.width, device)
        self.random = Reservoir(n_neurons, 1, wanted.random, span.width, device)
        self.quantile = Reservoir(n_neurons, span.n_bins, wanted.per_quantile, span.width, device)
        self._edges = edges.T.contiguous()
        self._lower, self._upper = bin_bounds(self._edges)
        self._of_neurons = of_neurons
        # Drawn with replacement: the r-th draw of a neuron is a position by hash.
        draws = (
            name_hashes(wanted.seed, f"{site}/{span.width}/draws", n_neurons * wanted.random).astype(np.int64) & BITS
        )
        self._draws = torch.from_numpy((draws * n_tokens >> 32).reshape(n_neurons, wanted.random)).to(device)

    def reservoirs(self) -> dict[str, Reservoir]:
        return {"top": self.top, "random": self.random, "quantile": self.quantile}

    def add(self, block: Block, n_rows: int) -> None:
        """The first `n_rows` rows of a block."""
        import torch

        values = block.values[:n_rows].flatten(0, 1)
        positions = torch.arange(block.first, block.first + len(values), device=values.device)
        margin = self.span.width // 2
        windows = block.flat_by_neuron(margin).unfold(1, self.span.width, 1)  # (neurons, starts, width)

        def excerpts(neurons: Tensor, _: Tensor, chosen: Tensor) -> Tensor:
            return windows[neurons, chosen - block.first]  # the margin is what an excerpt begins before its token

        self.random.offer(self._drawn(block.first, len(values)), excerpts)
        self.top.offer(self._highest(values, positions), excerpts)
        h = torch.cat([block.hashes(row, self.seed, self._of_neurons) for row in range(n_rows)])
        self.quantile.offer(self._smallest(h, order_keys(values, h), positions), excerpts)

    def _drawn(self, first: int, length: int) -> Tensor:
        """Keys (neurons, 1, draws) of the random excerpts that fall into these tokens; their priority is their number."""
        import torch

        inside = (self._draws >= first) & (self._draws < first + length)
        numbers = torch.arange(self._draws.shape[1], device=self._draws.device)
        return torch.where(inside, (numbers << POSITION_BITS) | self._draws, NONE)[:, None]

    def _highest(self, values: Tensor, positions: Tensor) -> Tensor:
        """Keys (neurons, 1, k) of the tokens with the highest activations."""
        import torch

        count = min(self.top.keys.shape[2], len(values))
        keys = torch.full((values.shape[1], 1, count), NONE, device=values.device)
        hopeful = (descending(values.amax(0)) <= self.top.worst_priority()[:, 0]).nonzero()[:, 0]
        for neurons in hopeful.split(GROUPS_AT_ONCE):
            of_tokens = (descending(values[:, neurons].T).long() << POSITION_BITS) | positions
            keys[neurons, 0] = of_tokens.topk(count, largest=False, sorted=False).values
        return keys

    def _smallest(self, h: Tensor, order: Tensor, positions: Tensor) -> Tensor:
        """Keys (neurons, bins, k) of the tokens in each quantile bin with the smallest hashes."""
        import torch

        count = min(self.quantile.keys.shape[2], len(h))
        keys = torch.full((h.shape[1], self.span.n_bins, count), NONE, device=h.device)
        least = least_in_bins(h, order, self._edges, self.span.n_bins)
        hopeful = (least <= self.quantile.worst_priority()).nonzero()
        for neurons, bins in (group.T for group in hopeful.split(GROUPS_AT_ONCE)):
            of_tokens = (h[:, neurons].long() << POSITION_BITS) | positions[:, None]
            outside = (order[:, neurons] < self._lower[bins, neurons]) | (
                order[:, neurons] >= self._upper[bins, neurons]
            )
            keys[neurons, bins] = (
                of_tokens.masked_fill_(outside, NONE).T.topk(count, largest=False, sorted=False).values
            )
        return keys
