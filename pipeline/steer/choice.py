"""Which neurons and features are steered where the configuration names none, and which others stand beside them as controls."""

from __future__ import annotations

import random
from collections.abc import Mapping

from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.records import Records
from pipeline.artifacts.saes import Site, read_densities
from pipeline.artifacts.scores import Scores
from pipeline.config import SteerEdit

Live = Mapping[str, Mapping[int, float]]  # site -> the neurons or features that fire at all, with their maximum
OFTEN = 10  # tokens that a chosen feature fires on at least


def live_neurons(records: Records) -> dict[str, dict[int, float]]:
    """By site (`code-l0`). Records of another tap than the neurons' have none."""
    found = {}
    for site in [name for name in records.sites if name.startswith("code-l")]:
        table = records.statistics(site)
        pairs = zip(table["neuron"].to_pylist(), table["maximum"].to_pylist(), strict=True)
        found[site] = {neuron: maximum for neuron, maximum in pairs if maximum is not None and maximum > 0}
    return found


def live_features(autoencoders: Artifact, often: int = 1) -> dict[str, dict[int, float]]:
    """By site (`code-l0-16x`), those that fire on at least `often` of the measured tokens."""
    found: dict[str, dict[int, float]] = {}
    for row in read_densities(autoencoders).to_pylist():
        if row["n_fired"] >= often:
            found.setdefault(row["site"], {})[row["feature"]] = row["maximum"]
    return found


def best_neurons(live: Live, scores: Scores, count: int) -> list[SteerEdit]:
    """Clamps of each layer's best-scored neurons to their own maximum over the read tokens.

    Scores are those of the first metric; where too few neurons have one, the strongest others follow.
    """
    metric = scores.layers()["metric"][0].as_py()
    edits = []
    for site, maxima in live.items():
        layer = int(site.rpartition("-l")[2])
        scored = [row["neuron"] for row in scores.best(metric, layer, len(maxima), site)]
        chosen = [neuron for neuron in dict.fromkeys(scored + _strongest(maxima)) if neuron in maxima][:count]
        edits += [SteerEdit(layer=layer, neuron=neuron, value=maxima[neuron]) for neuron in chosen]
    return edits


def strongest_features(live: Live, sites: Mapping[str, Site], count: int) -> list[SteerEdit]:
    """Clamps of each autoencoder's strongest features to their own maximum over the measured tokens, error kept."""
    return [
        SteerEdit(layer=sites[name].layer, neuron=feature, value=maxima[feature], site=name)
        for name, maxima in live.items()
        for feature in _strongest(maxima)[:count]
    ]


def _strongest(maxima: Mapping[int, float]) -> list[int]:
    return sorted(maxima, key=lambda unit: (-maxima[unit], unit))


def control_units(live: Mapping[int, float], taken: set[int], site: str, steered: int, count: int) -> list[int]:
    """`count` live units of a site (fewer if there are not so many) that are not `taken`, for the unit that is `steered`.

    They are those whose own maximum is nearest to its: at its values a weaker unit would be driven far beyond all that it ever
    does. The same ones every time; among equals others for another unit, so that edits do not stand on the same few.
    """
    others, maximum = sorted(set(live) - taken), live.get(steered, 0.0)
    random.Random(f"controls of {site} {steered}").shuffle(others)
    return sorted(others, key=lambda unit: abs(live[unit] - maximum))[:count]
