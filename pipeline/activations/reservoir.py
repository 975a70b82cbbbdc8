"""The best few excerpts of every group (a neuron, or a quantile bin of a neuron), with their activations.

Keys are int64 and smaller is better; they hold the token's position in their lower half, so no two of a group are equal and
what is kept does not depend on the order of arrival.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor

EMPTY = 2**63 - 1  # key of a free place
POSITION_BITS = 32


def make_keys(priorities: Tensor, positions: Tensor) -> Tensor:
    """Keys from int32 priorities (smaller is better, may be negative) and positions below 2^32."""
    return (priorities.long() << POSITION_BITS) | positions


class Reservoir:
    """Keeps the `capacity` best of `n_neurons` x `n_bins` groups."""

    def __init__(
        self, n_neurons: int, n_bins: int, capacity: int, width: int, device: torch.device | str = "cpu"
    ) -> None:
        import torch

        self.keys = torch.full((n_neurons, n_bins, capacity), EMPTY, dtype=torch.int64, device=device)
        self.activations = torch.zeros((n_neurons, n_bins, capacity, width), device=device)
        self.worst = torch.full((n_neurons, n_bins), EMPTY, dtype=torch.int64, device=device)

    def worst_priority(self) -> Tensor:
        """(neurons, bins) int32: a candidate whose priority is larger has no chance."""
        return (self.worst >> POSITION_BITS).int()

    def offer(self, neurons: Tensor, bins: Tensor, keys: Tensor, row: Tensor, starts: Tensor) -> None:
        """Candidates (m,), at most one a group, from one row (n_ctx, neurons) of activations; excerpts begin at `starts` (m,)."""
        import torch

        better = keys < self.worst[neurons, bins]
        neurons, bins, keys, starts = (t[better] for t in (neurons, bins, keys, starts))
        if not len(keys):
            return
        place = self.keys[neurons, bins].argmax(-1)
        self.keys[neurons, bins, place] = keys
        tokens = starts[:, None] + torch.arange(self.activations.shape[-1], device=keys.device)
        self.activations[neurons, bins, place] = row[tokens, neurons[:, None]]
        self.worst[neurons, bins] = self.keys[neurons, bins].amax(-1)


def merge(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The best of several reservoirs' (keys, activations), in order: keys (neurons, bins, capacity) ascending."""
    keys = np.concatenate([part[0] for part in parts], axis=2)
    order = np.argsort(keys, axis=2, kind="stable")[:, :, : parts[0][0].shape[2]]
    activations = np.concatenate([part[1] for part in parts], axis=2) if len(parts) > 1 else parts[0][1]
    return np.take_along_axis(keys, order, 2), np.take_along_axis(activations, order[..., None], 2)
