"""Candidates for excerpts, protocol `paper`: any token of the text, whose rows are one flat stream; excerpts may overlap, cross
documents and rows, and be short at the ends.

*Source:* the released crate-lm code, but for its unseeded choices, which are hashes here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.activations.block import Block
from pipeline.activations.corpus import Span
from pipeline.activations.priority import BITS, name_hashes, priorities
from pipeline.activations.quantiles import bin_bounds, descending, order_keys
from pipeline.activations.reservoir import NONE, POSITION_BITS, Reservoir
from pipeline.activations.scan import extremes
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
        self._bounds = bin_bounds(edges, span.n_bins)
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

        rows = block.values[:n_rows]
        values, of_tokens = rows.flatten(0, 1), block.of_tokens(self.seed, n_rows)
        positions = torch.arange(block.first, block.first + len(values), device=values.device)
        allowed = torch.ones_like(of_tokens, dtype=torch.bool)
        found = extremes(rows, allowed, of_tokens, self._of_neurons, self._bounds)
        margin = self.span.width // 2
        windows = block.flat_by_neuron(margin).unfold(1, self.span.width, 1)  # (neurons, starts, width)

        def excerpts(neurons: Tensor, _: Tensor, chosen: Tensor) -> Tensor:
            return windows[neurons, chosen - block.first]  # the margin is what an excerpt begins before its token

        self.random.offer(self._drawn(block.first, len(values)), excerpts)
        self.top.offer(self._highest(values, positions, found.highest.amax(0)), excerpts)
        least = found.least.amin(0)
        self.quantile.offer(self._smallest(values, positions, of_tokens.flatten(), least), excerpts)

    def _drawn(self, first: int, length: int) -> Tensor:
        """Keys (neurons, 1, draws) of the random excerpts that fall into these tokens; their priority is their number."""
        import torch

        inside = (self._draws >= first) & (self._draws < first + length)
        numbers = torch.arange(self._draws.shape[1], device=self._draws.device)
        return torch.where(inside, (numbers << POSITION_BITS) | self._draws, NONE)[:, None]

    def _highest(self, values: Tensor, positions: Tensor, highest: Tensor) -> Tensor:
        """Keys (neurons, 1, k) of the tokens with the highest activations; `highest` (neurons,) is the very highest."""
        import torch

        count = min(self.top.keys.shape[2], len(values))
        keys = torch.full((values.shape[1], 1, count), NONE, device=values.device)
        hopeful = (descending(highest) <= self.top.worst_priority()[:, 0]).nonzero()[:, 0]
        for neurons in hopeful.split(GROUPS_AT_ONCE):
            of_tokens = (descending(values[:, neurons].T).long() << POSITION_BITS) | positions
            keys[neurons, 0] = of_tokens.topk(count, largest=False, sorted=False).values
        return keys

    def _smallest(self, values: Tensor, positions: Tensor, of_tokens: Tensor, least: Tensor) -> Tensor:
        """Keys (neurons, bins, k) of the tokens in each quantile bin with the smallest hashes; `least` (bins, neurons) is the
        very smallest."""
        import torch

        count = min(self.quantile.keys.shape[2], len(values))
        keys = torch.full((values.shape[1], self.span.n_bins, count), NONE, device=values.device)
        hopeful = (self.quantile.worst_priority() >= least.T).nonzero()
        for neurons, bins in (group.T for group in hopeful.split(GROUPS_AT_ONCE)):
            h = priorities(of_tokens, self._of_neurons[neurons])
            order = order_keys(values[:, neurons], h)
            outside = (order < self._bounds[bins, neurons]) | (order >= self._bounds[bins + 1, neurons])
            of_tokens_inside = ((h.long() << POSITION_BITS) | positions[:, None]).masked_fill_(outside, NONE)
            keys[neurons, bins] = of_tokens_inside.T.topk(count, largest=False, sorted=False).values
        return keys
