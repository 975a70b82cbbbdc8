"""The best few excerpts of every group (a neuron, or a quantile bin of a neuron), with their activations.

They stay on the device where they were found, and a better candidate takes the place of the worst: by a kernel of Triton on a
GPU, of numba on a CPU. The plain forms here sort; they run on any other device, and say what the kernels do. As in `scan.py`,
nothing makes the host wait.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from pipeline.activations import scan
from pipeline.activations.keys import EMPTY, NONE, POSITION_MASK, keys_of
from pipeline.activations.priority import priorities
from pipeline.activations.quantiles import descending, order_keys

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Excerpts:
    """The excerpt of the token at position p is `text` (tokens, neurons) from row `starts[p - first]` on."""

    text: Tensor
    starts: Tensor  # (tokens,) int64
    first: int


@dataclass(frozen=True)
class Tokens:
    """Tokens of the text, the first at position `Excerpts.first`, with what `priorities` makes hashes from."""

    values: Tensor  # (tokens, neurons)
    of_tokens: Tensor  # (tokens,) int32
    of_neurons: Tensor  # (neurons,) int32


class Reservoir:
    """Keeps the `capacity` best of `n_neurons` x `n_bins` groups, in no order."""

    def __init__(
        self, n_neurons: int, n_bins: int, capacity: int, width: int, device: torch.device | str = "cpu"
    ) -> None:
        import torch

        self.keys = torch.full((n_neurons, n_bins, capacity), EMPTY, dtype=torch.int64, device=device)
        self.activations = torch.zeros((n_neurons, n_bins, capacity, width), device=device)

    def offer(self, keys: Tensor, excerpts: Excerpts) -> None:
        """Candidates that are not kept already, by their keys (m, bins, neurons): NONE where there is none."""
        kernels = _kernels(excerpts.text)
        form = plain_keep if kernels is None else kernels.keep
        form(self.keys, self.activations, keys.contiguous(), excerpts)

    def offer_tokens(self, tokens: Tokens, bounds: Tensor, by_activation: bool, excerpts: Excerpts) -> None:
        """All tokens: each for the bin between whose `bounds` (bins + 1, neurons) its order key lies, if for any. The highest
        activations or else the smallest hashes are the best."""
        kernels = _kernels(excerpts.text)
        form = plain_keep_tokens if kernels is None else kernels.keep_tokens
        in_one_piece = replace(tokens, values=tokens.values.contiguous())
        form(self.keys, self.activations, in_one_piece, bounds, by_activation, excerpts)


def merge(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The best of several reservoirs' (keys, activations), in order: keys (neurons, bins, capacity) ascending."""
    keys = np.concatenate([part[0] for part in parts], axis=2)
    order = np.argsort(keys, axis=2, kind="stable")[:, :, : parts[0][0].shape[2]]
    activations = np.concatenate([part[1] for part in parts], axis=2) if len(parts) > 1 else parts[0][1]
    return np.take_along_axis(keys, order, 2), np.take_along_axis(activations, order[..., None], 2)


def _kernels(values: Tensor) -> ModuleType | None:
    if scan._kernels(values) is None:  # where these do not run, neither do ours
        return None
    if values.is_cuda:
        from pipeline.activations import reservoir_triton

        return reservoir_triton
    from pipeline.activations import reservoir_numba

    return reservoir_numba


def plain_keep(kept: Tensor, activations: Tensor, keys: Tensor, excerpts: Excerpts) -> None:
    import torch

    capacity, width = activations.shape[2:]
    text, starts = excerpts.text, excerpts.starts
    both = torch.cat([kept, keys.permute(2, 1, 0)], 2)
    best = both.topk(capacity, largest=False).indices
    tokens = (
        ((keys & POSITION_MASK) - excerpts.first).clamp_(0, len(starts) - 1).permute(2, 1, 0)
    )  # of no candidate: any token
    rows = (starts[tokens][..., None] + torch.arange(width, device=text.device)).clamp_(0, len(text) - 1)
    neurons = torch.arange(len(kept), device=text.device)[:, None, None, None]
    offered = torch.cat([activations, text[rows, neurons]], 2)
    activations.copy_(offered.gather(2, best[..., None].expand(-1, -1, -1, width)))
    kept.copy_(both.gather(2, best))


def plain_keep_tokens(
    kept: Tensor, activations: Tensor, tokens: Tokens, bounds: Tensor, by_activation: bool, excerpts: Excerpts
) -> None:
    """A bin's best among all tokens are found first."""
    import torch

    values, h = tokens.values.float(), priorities(tokens.of_tokens, tokens.of_neurons)
    order = order_keys(values, h)
    positions = torch.arange(len(values), device=values.device) + excerpts.first
    keys = keys_of(descending(values) if by_activation else h, positions[:, None])
    best = []
    for low, end in itertools.pairwise(bounds):
        inside = keys.masked_fill((order < low) | (order >= end), NONE)
        best.append(inside.topk(min(kept.shape[2], len(values)), 0, largest=False).values)
    plain_keep(kept, activations, torch.stack(best, 1), excerpts)
