"""The kernels of `reservoir.py` for a CPU, compiled by numba when they are first called."""

from __future__ import annotations

import numpy as np
from numba import njit
from torch import Tensor

from pipeline.activations.keys import POSITION_BITS, POSITION_MASK
from pipeline.activations.reservoir import Excerpts, Tokens
from pipeline.activations.scan_numba import LARGEST, NEURONS_AT_ONCE, THIRTY_ONE, ZERO, hash_of, order_of

BITS, POSITIONS = np.int64(POSITION_BITS), np.int64(POSITION_MASK)


def keep(kept: Tensor, activations: Tensor, keys: Tensor, excerpts: Excerpts) -> None:
    text, starts = excerpts.text.numpy(), excerpts.starts.numpy()
    _keep(kept.numpy(), activations.numpy(), keys.numpy(), text, starts, excerpts.first)


def keep_tokens(
    kept: Tensor, activations: Tensor, tokens: Tokens, bounds: Tensor, by_activation: bool, excerpts: Excerpts
) -> None:
    floats = tokens.values.numpy()
    hashes = tokens.of_tokens.numpy().view(np.uint32), tokens.of_neurons.numpy().view(np.uint32)
    _keep_tokens(
        kept.numpy(), activations.numpy(), floats, floats.view(np.int32), *hashes, bounds.numpy(), by_activation,
        excerpts.text.numpy(), excerpts.starts.numpy(), excerpts.first,
    )  # fmt: skip


@njit
def _worst(places):
    """Where the worst is. Loops are written out here: numba takes seconds to compile numpy's functions."""
    worst = 0
    for i in range(1, len(places)):
        worst = i if places[i] > places[worst] else worst
    return worst


@njit
def _put(key, worst, places, excerpts, text, neuron, start):
    """Put a candidate in the place of the worst that is kept. Returns the place of the worst one now."""
    places[worst] = key
    for i in range(excerpts.shape[1]):
        excerpts[worst, i] = text[start + i, neuron]
    return _worst(places)


@njit
def _offer(key, places, excerpts, text, neuron, start):
    """Keep a candidate if it is good enough. Returns the priority of the worst that is kept."""
    worst = _worst(places)
    if key < places[worst]:
        worst = _put(key, worst, places, excerpts, text, neuron, start)
    return places[worst] >> BITS


@njit
def _keep(kept, activations, keys, text, starts, first):
    n_neurons, n_bins, _ = kept.shape
    for neuron in range(n_neurons):
        for bin_ in range(n_bins):
            places, excerpts = kept[neuron, bin_], activations[neuron, bin_]
            worst = _worst(places)
            for i in range(len(keys)):
                key = keys[i, bin_, neuron]
                if key < places[worst]:
                    start = starts[(key & POSITIONS) - first]
                    worst = _put(key, worst, places, excerpts, text, neuron, start)


@njit
def _keep_tokens(
    kept, activations, values, bits, of_tokens, of_neurons, bounds, by_activation, text, starts, first
):  # fmt: skip
    n_neurons, n_bins, _ = kept.shape
    priorities, orders = np.empty(NEURONS_AT_ONCE, np.int32), np.zeros(NEURONS_AT_ONCE, np.int32)
    worst = np.empty((n_bins, NEURONS_AT_ONCE), np.int32)
    for begin in range(0, n_neurons, NEURONS_AT_ONCE):
        some = slice(begin, min(begin + NEURONS_AT_ONCE, n_neurons))
        n_some = some.stop - begin
        for i in range(n_bins):
            for j in range(n_some):
                places = kept[begin + j, i]
                worst[i, j] = places[_worst(places)] >> BITS
        for t in range(len(values)):
            _rank(values[t, some], bits[t, some], of_tokens[t], of_neurons[some], by_activation, priorities, orders)
            for i in range(n_bins):
                low, end, worst_of_bin = bounds[i, some], bounds[i + 1, some], worst[i]
                n_hopeful = 0
                for j in range(n_some):
                    inside = (orders[j] >= low[j]) & (orders[j] < end[j])
                    n_hopeful += inside & (priorities[j] <= worst_of_bin[j])
                if not n_hopeful:  # mostly
                    continue
                for j in range(n_some):
                    if (priorities[j] <= worst_of_bin[j]) & (orders[j] >= low[j]) & (orders[j] < end[j]):
                        neuron, key = begin + j, (np.int64(priorities[j]) << BITS) | (first + t)
                        places, excerpts = kept[neuron, i], activations[neuron, i]
                        worst_of_bin[j] = _offer(key, places, excerpts, text, neuron, starts[t])


@njit
def _rank(values, bits, of_token, of_neurons, by_activation, priorities, orders):
    """A token's priorities for some neurons, and order keys where they count."""
    for j in range(len(values)):
        if by_activation:  # as in quantiles.descending
            b = np.int32(0) if values[j] == ZERO else bits[j]
            priorities[j] = ~(b ^ ((b >> THIRTY_ONE) & LARGEST))
        else:
            u = hash_of(of_token, of_neurons[j])
            priorities[j], orders[j] = np.int32(u), order_of(values[j], bits[j], u)
