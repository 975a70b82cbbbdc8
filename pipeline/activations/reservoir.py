"""The best few excerpts of every group (a neuron, or a quantile bin of a neuron), with their activations.

Keys are int64 and smaller is better; they hold the token's position in their lower half, so no two of a group are equal and
what is kept does not depend on the order of arrival.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor

EMPTY = 2**63 - 2  # key of a free place
NONE = 2**63 - 1  # key of a candidate that is none: never takes a place
POSITION_BITS = 32
POSITION_MASK = (1 << POSITION_BITS) - 1


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
        """(neurons, bins) int32: a candidate with a larger priority has no chance."""
        return (self.worst >> POSITION_BITS).int()

    def offer(self, keys: Tensor, excerpts: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        """Candidates' keys (neurons, bins, m), NONE where there is none.

        `excerpts(neurons, which, positions)` gives the activations (n, width) of those that are kept: candidate `which` of m.
        """
        import torch

        neurons, bins = (keys.amin(2) < self.worst).nonzero(as_tuple=True)
        if not len(neurons):
            return
        capacity = self.keys.shape[2]
        both = self.keys.new_empty((len(neurons), capacity + keys.shape[2]))
        both[:, :capacity], both[:, capacity:] = self.keys[neurons, bins], keys[neurons, bins]
        best = both.topk(capacity, largest=False, sorted=False)
        kept = torch.zeros_like(both, dtype=torch.bool).scatter_(1, best.indices, True)
        # As many leave a group as enter it: listed group by group, they can be exchanged one for one.
        leaving, places = (~kept[:, :capacity]).nonzero(as_tuple=True)
        _, which = kept[:, capacity:].nonzero(as_tuple=True)
        neurons_in, bins_in = neurons[leaving], bins[leaving]
        new = keys[neurons_in, bins_in, which]
        self.keys[neurons_in, bins_in, places] = new
        self.activations[neurons_in, bins_in, places] = excerpts(neurons_in, which, new & POSITION_MASK)
        self.worst[neurons, bins] = best.values.amax(1)


def merge(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The best of several reservoirs' (keys, activations), in order: keys (neurons, bins, capacity) ascending."""
    keys = np.concatenate([part[0] for part in parts], axis=2)
    order = np.argsort(keys, axis=2, kind="stable")[:, :, : parts[0][0].shape[2]]
    activations = np.concatenate([part[1] for part in parts], axis=2) if len(parts) > 1 else parts[0][1]
    return np.take_along_axis(keys, order, 2), np.take_along_axis(activations, order[..., None], 2)
