"""Which neurons are steered where the configuration names none, and which others stand beside them as controls."""

from __future__ import annotations

import random

from pipeline.artifacts.records import Records
from pipeline.artifacts.scores import Scores
from pipeline.config import SteerEdit


def best_neurons(records: Records, scores: Scores, count: int) -> list[SteerEdit]:
    """Clamps of each layer's best-scored neurons to their own maximum over the read tokens; neurons that never fire are left out.

    Scores are those of the first metric; where too few neurons have one, the strongest others follow.
    """
    metric = scores.layers()["metric"][0].as_py()
    edits = []
    for layer in records.layers:
        maxima = live_maxima(records, layer)
        scored = [row["neuron"] for row in scores.best(metric, layer, len(maxima))]
        strongest = sorted(maxima, key=lambda neuron: (-maxima[neuron], neuron))
        chosen = [neuron for neuron in dict.fromkeys(scored + strongest) if neuron in maxima][:count]
        edits += [SteerEdit(layer=layer, neuron=neuron, value=maxima[neuron]) for neuron in chosen]
    return edits


def live_maxima(records: Records, layer: int) -> dict[int, float]:
    """Neurons of a layer that fire at all, with their maximum."""
    table = records.statistics(layer)
    pairs = zip(table["neuron"].to_pylist(), table["maximum"].to_pylist(), strict=True)
    return {neuron: maximum for neuron, maximum in pairs if maximum is not None and maximum > 0}


def control_units(live: list[int], taken: set[int], layer: int, count: int) -> list[int]:
    """`count` units of the layer (fewer if there are not so many) that are not steered themselves; the same ones every time."""
    others = sorted(set(live) - taken)
    return random.Random(f"controls of layer {layer}").sample(others, min(count, len(others)))
