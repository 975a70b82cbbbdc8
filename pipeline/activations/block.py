"""One batch of one site's activations, with what the candidates of both widths need of it, computed once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from pipeline.activations.priority import priorities, token_hashes

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
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

    def parts(self, n_bytes: int) -> Iterator[Block]:
        """The block in pieces of whole rows, whose hashes take about `n_bytes` of memory."""
        n_rows, n_ctx, n_neurons = self.values.shape
        size = max(1, n_bytes // (4 * n_ctx * n_neurons))
        for row in range(0, n_rows, size):
            yield Block(self.values[row : row + size], self.first + row * n_ctx)

    def hashes(self, row: int, seed: int, of_neurons: Tensor) -> Tensor:
        """Hashes (n_ctx, neurons) int32 of a row's tokens."""
        import torch

        if row not in self._hashed:
            n_ctx = self.values.shape[1]
            of_tokens = token_hashes(seed, np.arange(n_ctx) + self.first + row * n_ctx)
            self._hashed[row] = priorities(torch.from_numpy(of_tokens).to(self.values.device), of_neurons)
        return self._hashed[row]

    @cached_property
    def _hashed(self) -> dict[int, Tensor]:
        return {}

    def flat_by_neuron(self, margin: int) -> Tensor:
        """(neurons, margin + tokens + margin): all rows as one text, with `margin` tokens of the neighbours or zeros."""
        import torch

        flat = self.values.flatten(0, 1)
        nothing = flat.new_zeros((margin, flat.shape[1]))
        before = nothing if self.before is None else self.before[-margin:]
        after = nothing if self.after is None else self.after[:margin]
        return torch.cat([before, flat, after]).T.contiguous()
