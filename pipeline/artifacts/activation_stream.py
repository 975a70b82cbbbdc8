"""Activations of several taps, shuffled within a buffer, made on the fly and never stored.

The buffer is filled whole, with the windows that `order.py` gives for this filling, and emptied in an order that depends on
the seed and the filling alone. So the batch of any step is a pure function of (seed, step), a run goes on from any step for
the price of one filling, and memory is one buffer a tap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.artifacts.order import window_ids
from pipeline.artifacts.tokens import TokenSplit
from pipeline.transfer import to_device

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from crate_model.model import LanguageModel


def forward_to(model: LanguageModel, ids: Tensor, points: Sequence[str]) -> dict[str, Tensor]:
    """The values at taps within blocks, (batch, t, width) each, from a forward pass that stops after the last of their layers."""
    return dict(forward_through(model, ids, points))


def forward_through(model: LanguageModel, ids: Tensor, points: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """`forward_to` layer by layer: each tap as soon as its block is done, so that no more than one block's values are held."""
    import torch

    from crate_model import taps

    last = max(int(point.split(".")[1]) for point in points)
    with torch.no_grad(), taps.read(model, points) as values:
        x = model.embed(ids, torch.arange(ids.shape[1], device=ids.device)[None])
        for block in model.blocks[: last + 1]:
            x = block(x)
            for point in list(values):
                yield point, values.pop(point)


@dataclass(frozen=True)
class ActivationStream:
    """Batches of float32 activations, (batch_tokens, width) a tap, of the windows of a split in a seeded random order."""

    model: LanguageModel
    split: TokenSplit
    points: tuple[str, ...]  # taps within blocks: `blocks.0.code`
    seed: int
    batch_tokens: int
    buffer_tokens: int  # rounded to whole windows, at least one
    batch_rows: int  # windows a forward pass
    device: torch.device

    @property
    def buffer_windows(self) -> int:
        return max(1, self.buffer_tokens // self.model.config.n_ctx)

    def batches(self, start: int = 0) -> Iterator[dict[str, Tensor]]:
        """The batches from step `start` on, without end. A batch is valid until the next one is asked for."""
        import torch

        filled = self.buffer_windows * self.model.config.n_ctx
        filling, used = divmod(start * self.batch_tokens, filled)
        buffers = self._fill(filling, {})
        order = self._order(filling, filled)
        while True:
            parts: list[dict[str, Tensor]] = []
            wanted = self.batch_tokens
            while wanted:
                if used == filled:
                    filling, used = filling + 1, 0
                    buffers, order = self._fill(filling, buffers), self._order(filling, filled)
                rows = order[used : used + wanted]
                parts.append({point: buffer[rows] for point, buffer in buffers.items()})
                wanted -= len(rows)
                used += len(rows)
            yield parts[0] if len(parts) == 1 else {p: torch.cat([part[p] for part in parts]) for p in self.points}

    def _order(self, filling: int, n: int) -> Tensor:
        return to_device(np.random.default_rng((self.seed, filling)).permutation(n), self.device)

    def _fill(self, filling: int, buffers: dict[str, Tensor]) -> dict[str, Tensor]:
        """Overwrite `buffers` (made when empty) with the activations of the windows of this filling."""
        import torch

        n_ctx = self.model.config.n_ctx
        windows = window_ids(self.seed, filling, self.buffer_windows, self.split.n_windows(n_ctx))
        for first in range(0, len(windows), self.batch_rows):
            ids = self.split.windows(windows[first : first + self.batch_rows], n_ctx)[:, :-1]
            values = forward_to(self.model, to_device(ids, self.device), self.points)
            for point, value in values.items():
                rows = value.flatten(0, 1)
                if point not in buffers:
                    buffers[point] = rows.new_empty((self.buffer_windows * n_ctx, rows.shape[1]), dtype=torch.float32)
                buffers[point][first * n_ctx : first * n_ctx + len(rows)] = rows
        return buffers
