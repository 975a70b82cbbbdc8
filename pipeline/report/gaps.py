"""How far CRATE and GPT-2 are apart, trained alike: in loss, in mean score, in the variance of scores over layers.

The interval is over the widest units there are. With two seeds or more of each it is over seeds, and speaks of trainings. With
one it is over neurons, and speaks of these models alone; a loss has none then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline import intervals
from pipeline.intervals import FEWEST_LAYERS, FEWEST_NEURONS, Estimate
from pipeline.report.pairs import Pair
from pipeline.report.study import Rows

LayerRows = dict[int, dict[str, Any]]  # layer -> a model's row of the table of layer scores


@dataclass(frozen=True)
class Gap:
    """Two numbers, and CRATE's minus GPT-2's with its interval, or why there is none."""

    crate: float  # mean over seeds
    gpt2: float
    seeds: tuple[int, int]  # trained of CRATE, of GPT-2
    difference: Estimate | None
    why: str = ""  # there is no difference

    @property
    def over_seeds(self) -> bool:
        return min(self.seeds) > 1

    @property
    def higher(self) -> str | None:
        """The architecture whose number is the larger one, by the interval too; None where that cannot be said."""
        if self.difference is None or not self.difference.is_apart:
            return None
        if (self.difference.value > 0) != (
            self.crate > self.gpt2
        ):  # what the sampling of neurons adds decides the order
            return None
        return "crate" if self.difference.value > 0 else "gpt2"


def loss_gap(pair: Pair) -> Gap:
    """Nats a token, over seeds."""
    losses = [[float(cell.val_loss or 0) for cell in cells] for cells in (pair.crate, pair.gpt2)]
    seeds = len(pair.crate), len(pair.gpt2)
    difference = _over_seeds(*losses)
    why = "their losses are all alike" if min(seeds) > 1 else "what another seed would give is not known"
    return Gap(float(np.mean(losses[0])), float(np.mean(losses[1])), seeds, difference, "" if difference else why)


@dataclass(frozen=True)
class ScoreGaps:
    """Of the layers that are scored in every model of a pair. Correlations; variances of correlations."""

    layers: tuple[int, ...]
    n_layers: int  # of the models
    scored: tuple[tuple[int, int], tuple[int, int]]  # (scored neurons, all that were asked for) of CRATE, of GPT-2
    excerpts: tuple[float | None, float | None]  # that a scored neuron of those layers has on average
    mean: Gap | None  # None where no layer is scored in all
    variance: Gap | None  # None for fewer than FEWEST_LAYERS of them


def score_gaps(pair: Pair, rows: Rows) -> ScoreGaps:
    """`rows` are those of one metric and family in the table of layer scores."""
    sides = [[_layers_of(cell.name, rows) for cell in cells] for cells in (pair.crate, pair.gpt2)]
    models = [model for side in sides for model in side]
    layers = tuple(n for n in sorted(models[0]) if all(n in own and own[n]["mean"] is not None for own in models))
    scored = tuple(
        (
            sum(r["n_scored"] for own in side for r in own.values()),
            sum(r["n_neurons"] for own in side for r in own.values()),
        )
        for side in sides
    )
    return ScoreGaps(
        layers,
        pair.crate[0].model.n_layer,
        (scored[0], scored[1]),
        (_excerpts(sides[0], layers), _excerpts(sides[1], layers)),
        _gap(sides, layers, _mean, intervals.over_layers) if layers else None,
        _gap(sides, layers, _variance, intervals.variance_over_layers) if len(layers) >= FEWEST_LAYERS else None,
    )


def _excerpts(side: Sequence[LayerRows], layers: Sequence[int]) -> float | None:
    rows = [own[n] for own in side for n in layers if own[n].get("excerpts")]
    weights = [row["n_scored"] for row in rows]
    return float(np.average([row["excerpts"] for row in rows], weights=weights)) if rows else None


def _layers_of(cell: str, rows: Rows) -> LayerRows:
    return {row["layer"]: row for row in rows if row["cell"] == cell}


def _mean(means: Sequence[float]) -> float:
    return float(np.mean(means))


def _variance(means: Sequence[float]) -> float:
    return float(np.var(means))


def _gap(
    sides: Sequence[Sequence[LayerRows]],
    layers: Sequence[int],
    number_of: Callable[[Sequence[float]], float],
    estimate_of: Callable[[Sequence[Estimate | None], Sequence[int]], Estimate | None],
) -> Gap:
    """`number_of` layers' means is what is shown, `estimate_of` them what is compared."""
    numbers = [float(np.mean([number_of([own[n]["mean"] for n in layers]) for own in side])) for side in sides]
    found = [
        [estimate_of([_estimate(own[n]) for n in layers], [own[n]["n_scored"] for n in layers]) for own in side]
        for side in sides
    ]
    seeds = len(sides[0]), len(sides[1])
    if min(seeds) > 1:
        there = [[estimate.value for estimate in side if estimate] for side in found]
        complete = all(estimate for side in found for estimate in side)
        difference = _over_seeds(there[0], there[1]) if complete else None
    else:
        of_sides = [intervals.combined(side, [1 / len(side)] * len(side)) for side in found]
        difference = intervals.difference(of_sides[0], of_sides[1])
    return Gap(numbers[0], numbers[1], seeds, difference, "" if difference else _why(sides, layers))


def _why(sides: Sequence[Sequence[LayerRows]], layers: Sequence[int]) -> str:
    """There is no interval: in what the scored neurons of some model are not enough."""
    fewest = min(sum(own[n]["n_scored"] for n in layers) for side in sides for own in side)
    if fewest < FEWEST_NEURONS:
        return f"a model has {fewest} scored neuron{'s' if fewest != 1 else ''}, and fewer than {FEWEST_NEURONS} say too little"
    return "a layer has a single scored neuron, or equal scores"


def _estimate(row: dict[str, Any]) -> Estimate | None:
    return intervals.of_moments(row["mean"], row["std"], row["n_scored"])


def _over_seeds(crate: Sequence[float], gpt2: Sequence[float]) -> Estimate | None:
    return intervals.difference(intervals.of_values(crate), intervals.of_values(gpt2))
