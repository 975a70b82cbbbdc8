"""What is gathered of one site while its activations stream by: statistics, and candidates for excerpts.

Everything gathered is independent of the order of the batches, so that parts from several workers can be put together.
"""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING

from pipeline.activations.block import Block
from pipeline.activations.corpus import Corpus
from pipeline.activations.flat_candidates import FlatCandidates
from pipeline.activations.moments import Moments, MomentsTree
from pipeline.activations.priority import name_hashes
from pipeline.activations.row_candidates import RowCandidates
from pipeline.activations.scan import statistics
from pipeline.activations.wanted import Wanted
from pipeline.errors import ArtifactError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class SiteCollector:
    """Everything of one site."""

    def __init__(self, site: str, corpus: Corpus, wanted: Wanted, edges: dict[int, Tensor]) -> None:
        """`edges` by width: order keys (neurons, inner edges) int32 of the quantile bins."""
        import torch

        some = next(iter(edges.values()))
        device, n_neurons = some.device, len(some)
        self.site, self.corpus = site, corpus
        of_neurons = torch.from_numpy(name_hashes(wanted.seed, site, n_neurons)).to(device)
        self.candidates: list[RowCandidates | FlatCandidates] = []
        for span in corpus.spans:
            if corpus.config.protocol == "corrected":
                self.candidates.append(RowCandidates(span, wanted, edges[span.width], of_neurons))
            else:
                n_tokens = span.n_rows * corpus.n_ctx
                self.candidates.append(FlatCandidates(site, span, wanted, edges[span.width], of_neurons, n_tokens))
        self.moments = MomentsTree()
        self.maximum = torch.full((n_neurons,), -torch.inf, device=device)
        self.nonzero = torch.zeros(n_neurons, dtype=torch.int64, device=device)

    def add(self, batch: int, block: Block) -> None:
        self._add_statistics(batch, block.values[: max(0, self.corpus.n_rows - block.first_row)])
        for candidates in self.candidates:
            n_rows = min(len(block.values), candidates.span.n_rows - block.first_row)
            if n_rows <= 0:
                continue
            if isinstance(candidates, FlatCandidates):
                candidates.add(block, n_rows)
            else:
                rows = range(block.first_row, block.first_row + n_rows)
                candidates.add(block, [self.corpus.places(row, candidates.span.width) for row in rows])

    def _add_statistics(self, batch: int, values: Tensor) -> None:
        if not len(values):
            return
        found = statistics(values)
        if not bool(found.sums[:, 0].isfinite().all()):
            raise ArtifactError(
                f"the activations of {self.site} are not finite, in batch {batch}",
                fix="The model overflows on this text: train it again with a lower learning rate, or set "
                "activations.precision: fp32.",
            )
        of_rows = (Moments(values.shape[1], sums) for sums in found.sums.cpu().numpy())
        self.moments.add(batch, reduce(Moments.merged, of_rows))
        self.maximum = self.maximum.maximum(found.maximum.amax(0))
        self.nonzero += found.nonzero.sum(0)

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
