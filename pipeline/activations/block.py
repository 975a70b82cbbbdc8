"""A batch of text and the activations on it, as the kernels read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.activations.corpus import Corpus
from pipeline.activations.priority import token_hashes
from pipeline.transfer import to_device

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Neighbouring rows of text on the device, with all that every layer's gathering asks about them."""

    number: int
    first: int  # position in val of the first token
    ids: Tensor  # (rows, n_ctx) int64
    of_tokens: Tensor  # (rows, n_ctx) int32 hashes
    allowed: dict[int, Tensor]  # by width of excerpts, (rows, n_ctx) bool: may one be chosen for this token
    starts: dict[int, Tensor]  # by width, (rows, n_ctx) int64: its first token, counted from the batch's first

    @classmethod
    def of(cls, corpus: Corpus, number: int, seed: int, device: torch.device) -> Batch:
        positions, shape = corpus.positions(number), (-1, corpus.n_ctx)
        allowed, starts = {}, {}
        for span in corpus.spans:
            begins, fits = corpus.excerpt_starts(positions, span.width)
            allowed[span.width] = to_device(fits.reshape(shape), device)
            starts[span.width] = to_device((begins - positions[0]).reshape(shape), device)
        of_tokens = to_device(token_hashes(seed, positions).reshape(shape), device)
        ids = to_device(corpus.ids(number), device)
        return cls(number, int(positions[0]), ids, of_tokens, allowed, starts)


@dataclass(frozen=True)
class Block:
    """Activations on a batch, of sites whose neurons lie side by side: float32, or on a GPU in the precision of the pass.

    `text` (margin + tokens + margin, neurons) has the batch's rows one after the other, and around them `margin` tokens of the
    neighbouring batches, for excerpts that cross into them (protocol `paper`): zeros, where there is no neighbour.
    """

    text: Tensor
    margin: int
    n_ctx: int

    @property
    def values(self) -> Tensor:
        """The batch alone: (rows, n_ctx, neurons)."""
        return self.text[self.margin : len(self.text) - self.margin].unflatten(0, (-1, self.n_ctx))

    def join(self, after: Block) -> None:
        """Tell both blocks, which follow one another in the text, of the other's nearest tokens."""
        margin = self.margin
        self.text[len(self.text) - margin :] = after.text[margin : 2 * margin]
        after.text[:margin] = self.text[len(self.text) - 2 * margin : len(self.text) - margin]
