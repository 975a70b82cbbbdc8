"""Candidates for excerpts, protocol `corrected`: of every row at most one for the top excerpts, one for the random ones and one
a quantile bin, inside a document."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.activations.block import Block
from pipeline.activations.corpus import Places, Span
from pipeline.activations.priority import LARGEST, positions_of
from pipeline.activations.quantiles import bin_bounds, descending
from pipeline.activations.reservoir import NONE, POSITION_BITS, Reservoir
from pipeline.activations.scan import Extremes, extremes
from pipeline.activations.wanted import SPARE, Wanted

if TYPE_CHECKING:
    from torch import Tensor


class RowCandidates:
    def __init__(self, span: Span, wanted: Wanted, edges: Tensor, of_neurons: Tensor) -> None:
        """`edges` (neurons, inner edges) int32: order keys at which the quantile bins above the first begin."""
        n_neurons, device = len(edges), edges.device
        self.span, self.seed = span, wanted.seed
        self.top = Reservoir(n_neurons, 1, wanted.top, span.width, device)
        self.random = Reservoir(n_neurons, 1, SPARE * wanted.random, span.width, device)
        self.quantile = Reservoir(n_neurons, span.n_bins, SPARE * wanted.per_quantile, span.width, device)
        self._bounds = bin_bounds(edges, span.n_bins)
        self._of_neurons = of_neurons

    def reservoirs(self) -> dict[str, Reservoir]:
        return {"top": self.top, "random": self.random, "quantile": self.quantile}

    def add(self, block: Block, places: list[Places]) -> None:
        """Rows of a block, as many as there are `places`."""
        import torch

        n_rows, n_ctx, device = len(places), block.values.shape[1], block.values.device
        allowed = np.zeros((n_rows, n_ctx), bool)
        for row, place in zip(allowed, places, strict=True):
            row[place.positions] = True
        of_tokens = block.of_tokens(self.seed, n_rows)
        found = extremes(
            block.values[:n_rows], torch.from_numpy(allowed).to(device), of_tokens, self._of_neurons, self._bounds
        )
        begins = block.first + n_ctx * torch.arange(n_rows, device=device)
        starts = torch.from_numpy(np.stack([place.starts for place in places])).to(device)
        windows = block.values.unfold(1, self.span.width, 1)  # (rows, starts, neurons, width)

        def excerpts(neurons: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
            return windows[rows, starts[rows, positions - begins[rows]], neurons]

        # Random excerpts have the largest hashes where the bins have the smallest, so that the two samples do not coincide.
        self.top.offer(self._highest(found, begins), excerpts)
        self.random.offer(self._hashed(~found.largest.T[:, None], self.random, inverted=True), excerpts)
        self.quantile.offer(self._hashed(found.least.permute(2, 1, 0), self.quantile), excerpts)

    def _highest(self, found: Extremes, begins: Tensor) -> Tensor:
        """Keys (neurons, 1, rows) of each row's highest activation, the first among equals."""
        keys = (descending(found.highest).long() << POSITION_BITS) | (begins[:, None] + found.token)
        return keys.masked_fill_(found.highest.isneginf(), NONE).T[:, None]

    def _hashed(self, priority: Tensor, reservoir: Reservoir, inverted: bool = False) -> Tensor:
        """Keys (neurons, bins, rows) of tokens told from their priorities, which are hashes or inverted ones; NONE for those
        without a chance, and where there is no token."""
        import torch

        keys = torch.full(priority.shape, NONE, device=priority.device)
        hopeful = (priority <= reservoir.worst_priority()[:, :, None]) & (priority < LARGEST)
        neurons, chosen = hopeful.nonzero()[:, 0], priority[hopeful]
        positions = positions_of(~chosen if inverted else chosen, self._of_neurons[neurons], self.seed)
        keys[hopeful] = (chosen.long() << POSITION_BITS) | positions
        return keys
