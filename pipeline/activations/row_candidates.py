"""Candidates for excerpts, protocol `corrected`: of every row at most one for the top excerpts, one for the random ones and one
a quantile bin, inside a document."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.activations.block import Block
from pipeline.activations.corpus import Places, Span
from pipeline.activations.priority import LARGEST, positions_of, tile_length
from pipeline.activations.quantiles import descending, least_in_bins, order_keys
from pipeline.activations.reservoir import NONE, POSITION_BITS, Reservoir
from pipeline.activations.sieve import Sieve
from pipeline.activations.wanted import SPARE, Wanted

if TYPE_CHECKING:
    from torch import Tensor

PIECE = 64  # tokens of a row among which the highest is looked for at a time


class RowCandidates:
    def __init__(self, span: Span, wanted: Wanted, edges: Tensor, of_neurons: Tensor) -> None:
        """`edges` (neurons, inner edges) int32: order keys at which the quantile bins above the first begin."""
        n_neurons, device = len(edges), edges.device
        self.span, self.seed = span, wanted.seed
        self.top = Reservoir(n_neurons, 1, wanted.top, span.width, device)
        self.random = Reservoir(n_neurons, 1, SPARE * wanted.random, span.width, device)
        self.quantile = Reservoir(n_neurons, span.n_bins, SPARE * wanted.per_quantile, span.width, device)
        self._edges = edges.T.contiguous()
        self._of_neurons = of_neurons

    def reservoirs(self) -> dict[str, Reservoir]:
        return {"top": self.top, "random": self.random, "quantile": self.quantile}

    def add(self, block: Block, places: list[Places]) -> None:
        """Rows of a block, as many as there are `places`."""
        import torch

        n_ctx, device = block.values.shape[1], block.values.device
        top, random, quantile = (
            torch.full((*r.worst.shape, len(places)), NONE, device=device) for r in self.reservoirs().values()
        )
        sieve = Sieve(self.quantile.worst_priority(), self._edges, self.span.edges, n_ctx)
        everyone = torch.arange(len(self._of_neurons), device=device)
        for index, place in enumerate(places):
            row, h = block.values[index], block.hashes(index, self.seed, self._of_neurons)
            positions = torch.from_numpy(place.positions).to(device)
            if len(positions) < n_ctx:
                row, h = row[positions], h[positions]
            positions += block.first + index * n_ctx
            if len(row):
                self._add_top(row, positions, top[:, 0, index])
                random[:, :, index] = self._hashed(~h.amax(0)[:, None], self.random, everyone)
                quantile[:, :, index], unsure = sieve.keys(row, h, positions)
                if len(unsure):
                    quantile[unsure, :, index] = self._hashed(self._least(row, h, unsure), self.quantile, unsure)
        starts = torch.from_numpy(np.stack([place.starts for place in places])).to(device)
        windows = block.values.unfold(1, self.span.width, 1)  # (rows, starts, neurons, width)

        def excerpts(neurons: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
            return windows[rows, starts[rows, positions - block.first - rows * n_ctx], neurons]

        for reservoir, keys in zip(self.reservoirs().values(), (top, random, quantile), strict=True):
            reservoir.offer(keys, excerpts)

    def _least(self, row: Tensor, h: Tensor, neurons: Tensor) -> Tensor:
        """The smallest hash (m, bins) in each quantile bin of some neurons (m,), LARGEST where there is no token."""
        import torch

        edges = self._edges
        if len(neurons) < row.shape[1]:
            row, h, edges = row[:, neurons], h[:, neurons], edges[:, neurons]
        tiles = zip(row.split(tile_length(row)), h.split(tile_length(row)), strict=True)
        least = [least_in_bins(hs, order_keys(values, hs), edges, self.span.n_bins) for values, hs in tiles]
        return torch.stack(least).amin(0)

    def _add_top(self, row: Tensor, positions: Tensor, keys: Tensor) -> None:
        """Key of the row's highest activation, the first among equals."""
        import torch

        of_pieces = torch.stack([piece.amax(0) for piece in row.split(PIECE)])
        highest = of_pieces.amax(0)
        priority = descending(highest)
        neurons = (priority <= self.top.worst_priority()[:, 0]).nonzero()[:, 0]
        piece = (of_pieces[:, neurons] == highest[neurons]).int().argmax(0)
        tokens = piece * PIECE + torch.arange(PIECE, device=row.device)[:, None]
        tokens.clamp_(max=len(row) - 1)  # the last piece may be short; its last token again is not the first of equals
        first = (row[tokens, neurons] == highest[neurons]).int().argmax(0)
        keys[neurons] = (priority[neurons].long() << POSITION_BITS) | positions[piece * PIECE + first]

    def _hashed(self, priority: Tensor, reservoir: Reservoir, neurons: Tensor) -> Tensor:
        """Keys (m, bins) of priorities (m, bins) of some neurons (m,), NONE for those without a chance.

        Priorities are hashes; the random excerpts' are inverted, so that theirs are the largest hashes where the bins have the
        smallest, and the two samples do not coincide.
        """
        import torch

        keys = torch.full(priority.shape, NONE, device=priority.device)
        hopeful, bins = (priority <= reservoir.worst_priority()[neurons]).nonzero(as_tuple=True)
        chosen = priority[hopeful, bins]
        hashes = ~chosen if reservoir is self.random else chosen
        positions = positions_of(hashes, self._of_neurons[neurons[hopeful]], self.seed)
        keys[hopeful, bins] = ((chosen.long() << POSITION_BITS) | positions).masked_fill(chosen == LARGEST, NONE)
        return keys
