"""What is looked for among all activations of a batch: one pass of one kernel, in which each number is read once.

A GPU runs Triton kernels, a CPU the same loops compiled by numba; both are bound by memory, where the operations of torch would
read and write each number dozens of times. The plain forms here run on any other device and on a GPU on which Triton does not
work, and say what the kernels compute. None of them makes the host wait: sizes follow from those of the arguments, and no result
is looked at. Activations are float32 on a CPU; elsewhere they may be bfloat16 too, and are looked at as float32.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from pipeline.activations.priority import LARGEST, SMALLEST, priorities
from pipeline.activations.quantiles import level_counts, order_keys

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Extremes:
    """Of each row and neuron, over the row's allowed tokens. Where none is allowed: -inf, 0, SMALLEST and LARGEST."""

    highest: Tensor  # (rows, neurons) float32 activation
    token: Tensor  # (rows, neurons) int32: the first token of the row that has it
    largest: Tensor  # (rows, neurons) int32: largest hash
    least: Tensor  # (rows, bins, neurons) int32: smallest hash in each quantile bin, LARGEST in an empty one


@dataclass(frozen=True)
class Statistics:
    """Of each neuron, over all tokens."""

    sums: Tensor  # (4, neurons) float64: the mean, and the sums of (x - mean)^2, ^3 and ^4
    maximum: Tensor  # (neurons,) float32
    nonzero: Tensor  # (neurons,) int32: how many are


def extremes(values: Tensor, allowed: Tensor, of_tokens: Tensor, of_neurons: Tensor, bounds: Tensor) -> Extremes:
    """Of activations `values` (rows, n_ctx, neurons) at tokens that are `allowed` (rows, n_ctx) bool.

    `of_tokens` (rows, n_ctx) and `of_neurons` (neurons,) int32 are what `priorities` makes hashes from; `bounds` (bins + 1,
    neurons) int32 the order keys between which the bins lie.
    """
    kernels = _kernels(values)
    if kernels is None:
        return plain_extremes(values.float(), allowed, of_tokens, of_neurons, bounds)
    return Extremes(*kernels.extremes(values.contiguous(), allowed, of_tokens, of_neurons, bounds.contiguous()))


def statistics(values: Tensor) -> Statistics:
    """Of activations (rows, n_ctx, neurons)."""
    kernels = _kernels(values)
    if kernels is None:
        return plain_statistics(values.float())
    return Statistics(*kernels.statistics(values.contiguous()))


def count_levels(counts: Tensor, values: Tensor, signed: bool) -> None:
    """Add the histogram of activations (tokens, neurons) to `counts` (neurons, levels) int32."""
    kernels = _kernels(values)
    if kernels is None:
        counts += level_counts(values.float(), signed)
    else:
        kernels.count_levels(counts, values.contiguous(), signed)


def _kernels(values: Tensor) -> ModuleType | None:
    if values.is_cuda:
        from crate_model.ops.precision import why_no_triton

        if why_no_triton():  # and it has warned
            return None
        from pipeline.activations import scan_triton

        return scan_triton
    if values.device.type == "cpu":
        from pipeline.activations import scan_numba

        return scan_numba
    return None


def plain_extremes(values: Tensor, allowed: Tensor, of_tokens: Tensor, of_neurons: Tensor, bounds: Tensor) -> Extremes:
    import torch

    h, outside = priorities(of_tokens, of_neurons), ~allowed[:, :, None]
    order = order_keys(values, h)
    highest = (values + 0.0).masked_fill(outside, -torch.inf).max(1)
    first = ((values == highest.values[:, None]) & ~outside).int().argmax(1)
    in_bins = [
        h.masked_fill(outside | (order < low) | (order >= high), LARGEST).amin(1)
        for low, high in itertools.pairwise(bounds)
    ]
    largest = h.masked_fill(outside, SMALLEST).amax(1)
    return Extremes(highest.values, first.int(), largest, torch.stack(in_bins, 1))


def plain_statistics(values: Tensor) -> Statistics:
    import torch

    flat = values.flatten(0, 1)
    mean = flat.double().mean(0)
    d = flat.double() - mean
    sums = torch.stack([mean, *((d**power).sum(0) for power in (2, 3, 4))])
    return Statistics(sums, flat.amax(0), (flat != 0).sum(0).int())
