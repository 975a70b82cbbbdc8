"""One batch of one site's activations, and where in the text it lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.activations.priority import token_hashes

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Block:
    """`values` (rows, n_ctx, neurons) float32; `first` is the position in val of their first token.

    `before` and `after` (tokens, neurons) are the last and the first tokens of the neighbouring batches, for excerpts that cross
    into them (protocol `paper`); None at the ends of the text.
    """

    values: Tensor
    first: int
    before: Tensor | None = None
    after: Tensor | None = None

    @property
    def first_row(self) -> int:
        return self.first // self.values.shape[1]

    def of_tokens(self, seed: int, n_rows: int) -> Tensor:
        """Hashes (n_rows, n_ctx) int32 of the first rows' tokens."""
        import torch

        n_ctx = self.values.shape[1]
        hashes = token_hashes(seed, self.first + np.arange(n_rows * n_ctx)).reshape(n_rows, n_ctx)
        return torch.from_numpy(hashes).to(self.values.device)

    def flat_by_neuron(self, margin: int) -> Tensor:
        """(neurons, margin + tokens + margin): all rows as one text, with `margin` tokens of the neighbours or zeros."""
        import torch

        flat = self.values.flatten(0, 1)
        nothing = flat.new_zeros((margin, flat.shape[1]))
        before = nothing if self.before is None else self.before[-margin:]
        after = nothing if self.after is None else self.after[:margin]
        return torch.cat([before, flat, after]).T.contiguous()
