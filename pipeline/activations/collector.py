"""What is gathered of one site while its activations stream by, row by row: statistics and candidates for excerpts.

Everything gathered is independent of the order of the rows, so that parts from several workers can be put together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.activations.corpus import Places, Span
from pipeline.activations.moments import MomentsTree, of_values
from pipeline.activations.priority import LARGEST, mix, priorities
from pipeline.activations.quantiles import order_keys
from pipeline.activations.reservoir import Reservoir, make_keys

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SPARE = 2  # candidates held for each random or quantile excerpt: some fall away because their row is taken already


@dataclass(frozen=True)
class Wanted:
    """How many excerpts a neuron, and where the randomness comes from."""

    top: int
    random: int
    per_quantile: int
    seed: int


class ExcerptCollector:
    """Candidates for the excerpts of one width, protocol `corrected`: at most one a row for the top, one for the random
    excerpts and one a quantile bin."""

    def __init__(self, site: str, n_neurons: int, span: Span, wanted: Wanted, edges: Tensor) -> None:
        """`edges` (neurons, bins - 1) int32 are the order keys at which the quantile bins above the first begin."""
        import torch

        device = edges.device
        self.span, self.seed = span, wanted.seed
        self.top = Reservoir(n_neurons, 1, wanted.top, span.width, device)
        self.random = Reservoir(n_neurons, 1, SPARE * wanted.random, span.width, device)
        self.quantile = Reservoir(n_neurons, span.n_bins, SPARE * wanted.per_quantile, span.width, device)
        self.edges = edges.T.contiguous()
        outer = torch.full((1, n_neurons), 2**30, dtype=torch.int32, device=device)
        self._lower = torch.cat([-outer, self.edges])
        self._upper = torch.cat([self.edges, outer])
        hashes = mix(wanted.seed, f"{site}/{span.width}", np.arange(n_neurons))
        self._of_neurons = torch.from_numpy(hashes.view(np.int32)).to(device)

    def reservoirs(self) -> dict[str, Reservoir]:
        return {"top": self.top, "random": self.random, "quantile": self.quantile}

    def add(self, row: Tensor, first: int, places: Places) -> None:
        """Activations (n_ctx, neurons) float32 of the row whose first token is `first`."""
        import torch

        if not len(places.positions):
            return
        whole = len(places.positions) == len(row)
        positions = torch.from_numpy(places.positions).to(row.device)
        values = row if whole else row[positions]
        starts = torch.from_numpy(places.starts).to(row.device)
        of_tokens = mix(self.seed, "tokens", places.positions + first).view(np.int32)
        h = priorities(torch.from_numpy(of_tokens).to(row.device), self._of_neurons)
        self._add_top(row, values, first + positions, starts)
        self._add_random(row, h, first + positions, starts)
        self._add_quantiles(row, order_keys(values, h), h, first + positions, starts)

    def _add_top(self, row: Tensor, values: Tensor, positions: Tensor, starts: Tensor) -> None:
        import torch

        highest = values.amax(0)
        bits = (highest + 0.0).view(torch.int32)
        priority = ~(bits ^ ((bits >> 31) & LARGEST))  # descending
        neurons = (priority <= self.top.worst_priority()[:, 0]).nonzero()[:, 0]
        place = (values[:, neurons] == highest[neurons]).int().argmax(0)  # the first of equals
        self._offer(self.top, neurons, torch.zeros_like(neurons), priority[neurons], place, row, positions, starts)

    def _add_random(self, row: Tensor, h: Tensor, positions: Tensor, starts: Tensor) -> None:
        """The largest hashes are the random sample; the smallest serve the quantile bins, so that the two do not coincide."""
        import torch

        highest = h.amax(0)
        priority = LARGEST - highest
        neurons = (priority <= self.random.worst_priority()[:, 0]).nonzero()[:, 0]
        place = (h[:, neurons] == highest[neurons]).int().argmax(0)
        self._offer(self.random, neurons, torch.zeros_like(neurons), priority[neurons], place, row, positions, starts)

    def _add_quantiles(self, row: Tensor, order: Tensor, h: Tensor, positions: Tensor, starts: Tensor) -> None:
        """In each bin, the token of the row with the smallest hash.

        A minimum over all tokens above a bin's lower edge is cheap and never above the bin's own: only where it could be
        kept are the bin's tokens looked at one by one.
        """
        import torch

        least = [h.amin(0)] + [(h | ((order - edge) >> 31)).bitwise_and_(LARGEST).amin(0) for edge in self.edges]
        bins, neurons = (torch.stack(least) <= self.quantile.worst_priority().T).nonzero(as_tuple=True)
        if not len(bins):
            return
        of_bin = (order[:, neurons] >= self._lower[bins, neurons]) & (order[:, neurons] < self._upper[bins, neurons])
        smallest, place = h[:, neurons].masked_fill_(~of_bin, LARGEST).min(0)
        there = of_bin.gather(0, place[None])[0]
        neurons, bins, smallest, place = (t[there] for t in (neurons, bins, smallest, place))
        self._offer(self.quantile, neurons, bins, smallest, place, row, positions, starts)

    @staticmethod
    def _offer(
        reservoir: Reservoir,
        neurons: Tensor,
        bins: Tensor,
        priority: Tensor,
        place: Tensor,
        row: Tensor,
        positions: Tensor,
        starts: Tensor,
    ) -> None:
        reservoir.offer(neurons, bins, make_keys(priority, positions[place]), row, starts[place])


class SiteCollector:
    """Everything of one site."""

    def __init__(self, site: str, n_neurons: int, spans: tuple[Span, ...], wanted: Wanted, edges: list[Tensor]) -> None:
        import torch

        self.excerpts = [
            ExcerptCollector(site, n_neurons, span, wanted, e) for span, e in zip(spans, edges, strict=True)
        ]
        self.moments = MomentsTree()
        device = edges[0].device
        self.maximum = torch.full((n_neurons,), -torch.inf, device=device)
        self.nonzero = torch.zeros(n_neurons, dtype=torch.int64, device=device)

    def add_batch(self, batch: int, values: Tensor) -> None:
        """Statistics of a batch's activations (rows, n_ctx, neurons) float32."""
        if not len(values):
            return
        rows = [of_values(row) for row in values]
        whole = rows[0]
        for moments in rows[1:]:
            whole = whole.merged(moments)
        self.moments.add(batch, whole)
        for row in values:
            self.maximum = self.maximum.maximum(row.amax(0))
            self.nonzero += (row != 0).sum(0)

    def add_row(self, row_index: int, row: Tensor, places: dict[int, Places]) -> None:
        """Candidates for excerpts from one row (n_ctx, neurons); `places` by width, where excerpts may lie in it."""
        for collector in self.excerpts:
            if row_index < collector.span.n_rows:
                collector.add(row, row_index * len(row), places[collector.span.width])

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that was gathered, by name, on the CPU."""
        import torch

        gathered = {"maximum": self.maximum, "nonzero": self.nonzero}
        for collector in self.excerpts:
            for kind, reservoir in collector.reservoirs().items():
                gathered[f"{collector.span.width}/{kind}/keys"] = reservoir.keys
                gathered[f"{collector.span.width}/{kind}/activations"] = reservoir.activations
        for (height, index), moments in self.moments.nodes.items():
            gathered[f"moments/{height}/{index}/{moments.n}"] = torch.from_numpy(moments.sums)
        return {name: tensor.cpu().contiguous() for name, tensor in gathered.items()}
