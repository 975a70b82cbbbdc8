"""Candidates for excerpts, protocol `corrected`: of every row at most one for the top excerpts, one for the random ones and one
a quantile bin, inside a document."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.activations.block import Batch, Block
from pipeline.activations.corpus import Span
from pipeline.activations.keys import NONE, keys_of
from pipeline.activations.priority import LARGEST, positions_of
from pipeline.activations.quantiles import bin_bounds, descending
from pipeline.activations.reservoir import Excerpts, Reservoir
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

    def add(self, batch: Batch, block: Block, n_rows: int) -> None:
        """The first `n_rows` rows of a batch. Each offers what it has, mostly too late: telling beforehand would be a wait."""
        allowed, of_tokens = batch.allowed[self.span.width][:n_rows], batch.of_tokens[:n_rows]
        found = extremes(block.values[:n_rows], allowed, of_tokens, self._of_neurons, self._bounds)
        excerpts = Excerpts(block.text, batch.starts[self.span.width].flatten(), batch.first)
        # Random excerpts have the largest hashes where the bins have the smallest, so that the two samples do not coincide.
        self.top.offer(self._highest(found, batch), excerpts)
        self.random.offer(self._hashed(~found.largest[:, None], inverted=True), excerpts)
        self.quantile.offer(self._hashed(found.least), excerpts)

    def _highest(self, found: Extremes, batch: Batch) -> Tensor:
        """Keys (rows, 1, neurons) of each row's highest activation, the first among equals."""
        import torch

        n_rows, n_ctx = len(found.token), batch.ids.shape[1]
        begins = torch.arange(n_rows, device=found.token.device) * n_ctx + batch.first
        keys = keys_of(descending(found.highest), begins[:, None] + found.token)
        return keys.masked_fill_(found.highest.isneginf(), NONE)[:, None]

    def _hashed(self, priority: Tensor, inverted: bool = False) -> Tensor:
        """Keys (rows, bins, neurons) of tokens told from their priorities, which are hashes or inverted ones; NONE where there
        is no token."""
        positions = positions_of(~priority if inverted else priority, self._of_neurons, self.seed)
        return keys_of(priority, positions).masked_fill_(priority == LARGEST, NONE)
