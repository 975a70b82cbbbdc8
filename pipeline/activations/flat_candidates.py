"""Candidates for excerpts, protocol `paper`: any token of the text, whose rows are one flat stream; excerpts may overlap, cross
documents and rows, and be short at the ends.

*Source:* the released crate-lm code, but for its unseeded choices, which are hashes here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.activations.block import Batch, Block
from pipeline.activations.corpus import Span
from pipeline.activations.keys import NONE, keys_of
from pipeline.activations.priority import BITS
from pipeline.activations.quantiles import bin_bounds
from pipeline.activations.reservoir import Excerpts, Reservoir, Tokens
from pipeline.activations.side_by_side import Group
from pipeline.activations.wanted import Wanted
from pipeline.transfer import to_device

if TYPE_CHECKING:
    from torch import Tensor


class FlatCandidates:
    def __init__(
        self, group: Group, span: Span, wanted: Wanted, edges: Tensor, of_neurons: Tensor, n_tokens: int
    ) -> None:
        """`edges` (neurons, inner edges) int32: order keys at which the quantile bins above the first begin."""
        n_neurons, device = len(edges), edges.device
        self.span = span
        self.top = Reservoir(n_neurons, 1, wanted.top, span.width, device)
        self.random = Reservoir(n_neurons, 1, wanted.random, span.width, device)
        self.quantile = Reservoir(n_neurons, span.n_bins, wanted.per_quantile, span.width, device)
        self._all, self._bounds = bin_bounds(edges[:, :0], 1), bin_bounds(edges, span.n_bins)
        self._of_neurons = of_neurons
        # Drawn with replacement: the r-th draw of a neuron is a position by hash.
        draws = group.hashes(wanted.seed, f"/{span.width}/draws", wanted.random).astype(np.int64) & BITS
        self._draws = to_device((draws * n_tokens >> 32).T, device)  # (draws, neurons)

    def reservoirs(self) -> dict[str, Reservoir]:
        return {"top": self.top, "random": self.random, "quantile": self.quantile}

    def add(self, batch: Batch, block: Block, n_rows: int) -> None:
        """The first `n_rows` rows of a batch."""
        import torch

        values = block.values[:n_rows].flatten(0, 1)
        tokens = Tokens(values, batch.of_tokens[:n_rows].flatten(), self._of_neurons)
        # The token in the middle. At the ends of the text an excerpt begins or ends in the margin, and is cut off later.
        starts = torch.arange(len(values), device=values.device) + (block.margin - self.span.width // 2)
        excerpts = Excerpts(block.text, starts, batch.first)
        self.random.offer(self._drawn(batch.first, len(values)), excerpts)
        self.top.offer_tokens(tokens, self._all, True, excerpts)
        self.quantile.offer_tokens(tokens, self._bounds, False, excerpts)

    def _drawn(self, first: int, length: int) -> Tensor:
        """Keys (draws, 1, neurons) of the random excerpts that fall into these tokens; their priority is their number."""
        import torch

        outside = (self._draws < first) | (self._draws >= first + length)
        numbers = torch.arange(len(self._draws), device=self._draws.device)
        return keys_of(numbers[:, None], self._draws).masked_fill_(outside, NONE)[:, None]
