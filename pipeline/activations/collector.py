"""What is gathered of one site while its activations stream by: statistics, and candidates for excerpts.

Everything gathered is independent of the order of the batches, so that parts from several workers can be put together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.activations.corpus import Places, Span
from pipeline.activations.moments import MomentsTree, of_values
from pipeline.activations.priority import LARGEST, SMALLEST, name_hashes, positions_of, priorities, token_hashes
from pipeline.activations.quantiles import order_keys
from pipeline.activations.reservoir import NONE, POSITION_BITS, Reservoir

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


class RowCandidates:
    """Candidates for the excerpts of one width, protocol `corrected`: of every row at most one for the top excerpts, one for
    the random ones and one a quantile bin."""

    def __init__(self, span: Span, wanted: Wanted, edges: Tensor, of_neurons: Tensor) -> None:
        """`edges` (neurons, bins - 1) int32: order keys at which the quantile bins above the first begin."""
        n_neurons, device = len(edges), edges.device
        self.span, self.seed = span, wanted.seed
        self.top = Reservoir(n_neurons, 1, wanted.top, span.width, device)
        self.random = Reservoir(n_neurons, 1, SPARE * wanted.random, span.width, device)
        self.quantile = Reservoir(n_neurons, span.n_bins, SPARE * wanted.per_quantile, span.width, device)
        self._edges = edges.T.contiguous()
        self._of_neurons = of_neurons

    def reservoirs(self) -> dict[str, Reservoir]:
        return {"top": self.top, "random": self.random, "quantile": self.quantile}

    def add(self, values: Tensor, hashed: list[Hashed], places: list[Places], first: int) -> None:
        """Rows (rows, n_ctx, neurons) of activations; `first` is the position of their first token."""
        import torch

        n_rows, n_ctx, _ = values.shape
        top, random, quantile = (
            torch.full((*r.worst.shape, n_rows), NONE, device=values.device) for r in self.reservoirs().values()
        )
        starts = torch.from_numpy(np.stack([place.starts for place in places])).to(values.device)
        for index, (row, (h, order), place) in enumerate(zip(values, hashed, places, strict=True)):
            if len(place.positions) < n_ctx:
                inside = torch.from_numpy(place.positions).to(values.device)
                row, h, order = row[inside], h[inside], order[inside]
            if len(row):
                self._add_top(row, place, first + index * n_ctx, top[:, 0, index])
                self._add_hashed(~h.amax(0)[:, None], self.random, random[:, :, index])
                self._add_hashed(self._least(h, order), self.quantile, quantile[:, :, index])

        windows = values.transpose(1, 2).contiguous().unfold(2, self.span.width, 1)  # (rows, neurons, starts, width)

        def excerpts(neurons: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
            return windows[rows, neurons, starts[rows, positions - first - rows * n_ctx]]

        for reservoir, keys in zip(self.reservoirs().values(), (top, random, quantile), strict=True):
            reservoir.offer(keys, excerpts)

    def _add_top(self, row: Tensor, place: Places, first: int, keys: Tensor) -> None:
        """Key of the row's highest activation, the first among equals."""
        import torch

        highest = row.amax(0)
        bits = (highest + 0.0).view(torch.int32)
        priority = ~(bits ^ ((bits >> 31) & LARGEST))  # descending
        neurons = (priority <= self.top.worst_priority()[:, 0]).nonzero()[:, 0]
        where = (row[:, neurons] == highest[neurons]).int().argmax(0)
        positions = first + torch.from_numpy(place.positions).to(row.device)[where]
        keys[neurons] = (priority[neurons].long() << POSITION_BITS) | positions

    def _add_hashed(self, priority: Tensor, reservoir: Reservoir, keys: Tensor) -> None:
        """Keys of priorities (neurons, bins) that are hashes, or inverted hashes for the random excerpts."""
        neurons, bins = (priority <= reservoir.worst_priority()).nonzero(as_tuple=True)
        chosen = priority[neurons, bins]
        hashes = ~chosen if reservoir is self.random else chosen
        positions = positions_of(hashes, self._of_neurons[neurons], self.seed)
        keys[neurons, bins] = ((chosen.long() << POSITION_BITS) | positions).masked_fill(chosen == LARGEST, NONE)

    def _least(self, h: Tensor, order: Tensor) -> Tensor:
        """The smallest hash (neurons, bins) of the tokens in each quantile bin, LARGEST where there is no token.

        The largest hashes are the random sample, the smallest serve the bins: so the two do not coincide. Masks are whole
        numbers of all ones or zeros, which is several times faster than `where`.
        """
        import torch

        below = [(order - edge).bitwise_right_shift_(31) for edge in self._edges]  # all ones: below the edge
        least = []
        for bin_ in range(len(below) + 1):
            outside = None
            if bin_:
                outside = below[bin_ - 1]
            if bin_ < len(below):
                above = ~below[bin_]
                outside = above if outside is None else above.bitwise_or_(outside)
            assert outside is not None
            least.append(torch.maximum(h, outside ^ SMALLEST).amin(0))
        return torch.stack(least, 1)


Hashed = tuple["Tensor", "Tensor"]  # of a row (n_ctx, neurons): its tokens' hashes and order keys


class SiteCollector:
    """Everything of one site."""

    def __init__(self, site: str, spans: tuple[Span, ...], wanted: Wanted, edges: list[Tensor]) -> None:
        import torch

        device, n_neurons = edges[0].device, len(edges[0])
        self._seed = wanted.seed
        self._of_neurons = torch.from_numpy(name_hashes(wanted.seed, site, n_neurons)).to(device)
        self.candidates = [
            RowCandidates(span, wanted, e, self._of_neurons) for span, e in zip(spans, edges, strict=True)
        ]
        self.moments = MomentsTree()
        self.maximum = torch.full((n_neurons,), -torch.inf, device=device)
        self.nonzero = torch.zeros(n_neurons, dtype=torch.int64, device=device)

    def add(self, batch: int, first_row: int, values: Tensor, places: list[list[Places]]) -> None:
        """A batch's activations (rows, n_ctx, neurons) float32; `places` by span and row."""
        n_rows, n_ctx, _ = values.shape
        hashed = [self._hashed(row, (first_row + index) * n_ctx) for index, row in enumerate(values)]
        for candidates, of_span in zip(self.candidates, places, strict=True):
            inside = min(n_rows, candidates.span.n_rows - first_row)
            if inside > 0:
                candidates.add(values[:inside], hashed[:inside], of_span[:inside], first_row * n_ctx)
        self._add_statistics(batch, values[: max(0, self.candidates[0].span.n_rows - first_row)])

    def _hashed(self, row: Tensor, first: int) -> Hashed:
        import torch

        of_tokens = token_hashes(self._seed, np.arange(first, first + len(row)))
        h = priorities(torch.from_numpy(of_tokens).to(row.device), self._of_neurons)
        return h, order_keys(row, h)

    def _add_statistics(self, batch: int, values: Tensor) -> None:
        import torch

        if not len(values):
            return
        whole = of_values(values[0])
        for row in values[1:]:
            whole = whole.merged(of_values(row))
        self.moments.add(batch, whole)
        for row in values:
            self.maximum = self.maximum.maximum(row.amax(0))
            size = row.view(torch.int32) & LARGEST
            self.nonzero += len(row) + ((size - 1) >> 31).sum(0, dtype=torch.int32)  # -1 a zero

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that was gathered, by name, on the CPU."""
        import torch

        gathered = {"maximum": self.maximum, "nonzero": self.nonzero}
        for candidates in self.candidates:
            for kind, reservoir in candidates.reservoirs().items():
                gathered[f"{candidates.span.width}/{kind}/keys"] = reservoir.keys
                gathered[f"{candidates.span.width}/{kind}/activations"] = reservoir.activations
        for (height, index), moments in self.moments.nodes.items():
            gathered[f"moments/{height}/{index}/{moments.n}"] = torch.from_numpy(moments.sums)
        return {name: tensor.cpu().contiguous() for name, tensor in gathered.items()}
