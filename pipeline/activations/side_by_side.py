"""Sites whose neurons lie side by side in one tensor, so that one launch looks at many layers.

A GPU takes as long to start a kernel as to run it on a layer of a small model, and a group's launches are as many as a layer's. A
CPU gains nothing: there each site stays alone, and no more than one layer's activations are held. What is found of a neuron does
not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.activations.block import Batch, Block
from pipeline.activations.priority import name_hashes
from pipeline.activations.sites import Reader, Site

if TYPE_CHECKING:
    import torch
    from torch import Tensor

GROUP_BYTES = 5 * 10**9  # of activations side by side on a GPU: 12 layers of 3,072 neurons on 32 rows of 1,024 tokens


@dataclass(frozen=True)
class Group:
    sites: tuple[Site, ...]  # all signed, or none

    @property
    def n_neurons(self) -> int:
        return sum(site.n_neurons for site in self.sites)

    @property
    def signed(self) -> bool:
        return self.sites[0].signed

    def parts(self) -> Iterator[tuple[Site, slice]]:
        """Each site, and where its neurons are among the group's."""
        end = 0
        for site in self.sites:
            end += site.n_neurons
            yield site, slice(end - site.n_neurons, end)

    def hashes(self, seed: int, of: str = "", each: int = 1) -> np.ndarray:
        """(neurons, each) int32: `name_hashes` under every site's name, and what `of` adds to it."""
        of_sites = [name_hashes(seed, site.name + of, site.n_neurons * each) for site in self.sites]
        return np.concatenate(of_sites).reshape(-1, each)

    def block(self, values: Iterator[Tensor], n_ctx: int, margin: int = 0) -> Block:
        """The next activations (rows, n_ctx, neurons), one site's after the other's, side by side."""
        import torch

        first = next(values).flatten(0, 1)
        dtype = torch.float32 if first.device.type == "cpu" else first.dtype
        if len(self.sites) == 1 and not margin:
            return Block(first.to(dtype), margin, n_ctx)
        text = first.new_empty((len(first) + 2 * margin, self.n_neurons), dtype=dtype)
        inside = text[margin : margin + len(first)]
        for _, part in self.parts():
            inside[:, part] = first if part.start == 0 else next(values).flatten(0, 1)
        text[:margin].zero_(), text[margin + len(first) :].zero_()
        return Block(text, margin, n_ctx)


def groups_of(sites: Sequence[Site], tokens: int, device: torch.device) -> list[Group]:
    """Neighbouring sites together, as far as their activations on a batch of so many tokens may fill memory."""
    from crate_model.ops.precision import why_no_triton

    # Torch's own operations, which a GPU without Triton takes, need room for many times what they read.
    room = 0 if device.type == "cpu" or why_no_triton() else GROUP_BYTES // (4 * tokens)
    groups: list[list[Site]] = []
    for site in sites:
        if groups and sum(other.n_neurons for other in groups[-1]) + site.n_neurons <= room:
            groups[-1].append(site)
        else:
            groups.append([site])
    return [Group(tuple(group)) for group in groups]


def read_blocks(reader: Reader, groups: Sequence[Group], batch: Batch, margin: int = 0) -> Iterator[Block]:
    """A block a group, each as soon as the forward pass has its last layer."""
    values = (value for _, value in reader.read(batch.ids))
    return (group.block(values, batch.ids.shape[1], margin) for group in groups)
