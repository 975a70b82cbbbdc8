"""What is gathered of sites side by side while their activations stream by: statistics, and candidates for excerpts.

Everything gathered is independent of the order of the batches, so that parts from several workers can be put together. It stays
where it is gathered, on a GPU say, until a shard is read; the moments alone go to the host at once, a batch behind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.activations.block import Batch, Block
from pipeline.activations.corpus import Corpus
from pipeline.activations.flat_candidates import FlatCandidates
from pipeline.activations.moments import Moments, MomentsTree
from pipeline.activations.row_candidates import RowCandidates
from pipeline.activations.scan import statistics
from pipeline.activations.side_by_side import Group
from pipeline.activations.wanted import Wanted
from pipeline.errors import ArtifactError
from pipeline.transfer import Arriving, to_device

if TYPE_CHECKING:
    from torch import Tensor


class Collector:
    """Everything of one group of sites."""

    def __init__(self, group: Group, corpus: Corpus, wanted: Wanted, edges: dict[int, Tensor]) -> None:
        """`edges` by width: order keys (neurons, inner edges) int32 of the quantile bins."""
        import torch

        device = next(iter(edges.values())).device
        self.group, self.corpus = group, corpus
        of_neurons = to_device(group.hashes(wanted.seed)[:, 0], device)
        self.candidates: list[RowCandidates | FlatCandidates] = []
        for span in corpus.spans:
            if corpus.config.protocol == "corrected":
                self.candidates.append(RowCandidates(span, wanted, edges[span.width], of_neurons))
            else:
                n_tokens = span.n_rows * corpus.n_ctx
                self.candidates.append(FlatCandidates(group, span, wanted, edges[span.width], of_neurons, n_tokens))
        self.moments = MomentsTree()
        self._arriving: list[tuple[int, int, Arriving]] = []  # batch, tokens, sums: of the last batch
        self.maximum = torch.full((group.n_neurons,), -torch.inf, device=device)
        self.nonzero = torch.zeros(group.n_neurons, dtype=torch.int64, device=device)

    def add(self, batch: Batch, block: Block) -> None:
        """Raises ArtifactError for activations that are not finite, of the batch before."""
        row = batch.first // self.corpus.n_ctx
        earlier, self._arriving = self._arriving, []
        self._add_statistics(batch, block.values[: max(0, self.corpus.n_rows - row)])
        for candidates in self.candidates:
            n_rows = min(len(batch.ids), candidates.span.n_rows - row)
            if n_rows > 0:
                candidates.add(batch, block, n_rows)
        self._put_into_tree(earlier)  # now that the GPU has this batch to go on with

    def _add_statistics(self, batch: Batch, values: Tensor) -> None:
        if not len(values):
            return
        found = statistics(values)
        self._arriving.append((batch.number, values[..., 0].numel(), Arriving(found.sums)))
        self.maximum = self.maximum.maximum(found.maximum)
        self.nonzero += found.nonzero

    def _put_into_tree(self, arriving: list[tuple[int, int, Arriving]]) -> None:
        for batch, n_tokens, of_batch in arriving:
            sums = of_batch.numpy()
            finite = np.isfinite(sums[0])
            if not finite.all():
                bad = next(site.name for site, part in self.group.parts() if not finite[part].all())
                raise ArtifactError(
                    f"the activations of {bad} are not finite, in batch {batch}",
                    fix="The model overflows on this text: train it again with a lower learning rate, or set "
                    "activations.precision: fp32.",
                )
            self.moments.add(batch, Moments(n_tokens, sums))

    def tensors(self) -> dict[str, Tensor]:
        """All that was gathered, by "site:name", on the CPU. Raises ArtifactError like `add`."""
        import torch

        self._put_into_tree(self._arriving)
        self._arriving = []
        gathered = {"maximum": self.maximum, "nonzero": self.nonzero}
        for candidates in self.candidates:
            for kind, reservoir in candidates.reservoirs().items():
                gathered[f"{candidates.span.width}/{kind}/keys"] = reservoir.keys
                gathered[f"{candidates.span.width}/{kind}/activations"] = reservoir.activations
        tensors: dict[str, Tensor] = {}
        for site, part in self.group.parts():
            tensors |= {f"{site.name}:{name}": tensor[part].cpu().contiguous() for name, tensor in gathered.items()}
            for (height, index), moments in self.moments.nodes.items():
                sums = torch.from_numpy(moments.sums[:, part]).contiguous()
                tensors[f"{site.name}:moments/{height}/{index}/{moments.n}"] = sums
        return tensors
