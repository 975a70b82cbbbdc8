"""From neurons' scores to a layer's and a model's: means, variances over layers, intervals, always beside their coverage.

Two conventions for a model's mean. `corrected` takes all layers. `paper` is the published tables': layer scores are first rounded
to 0.1 point (a point is 0.01 of correlation), and a model's last layer is left out from six layers on, whichever were read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.interpret.scoring import Status
from pipeline.intervals import Estimate, bootstrap_means, of_resamples, over_layers

PAPER_LEAVES_OUT_LAST_FROM = 6  # layers


def layer_row(scores: np.ndarray, statuses: Sequence[str], estimate: Estimate | None) -> dict[str, Any]:
    """Statistics of one layer and metric. `scores` (neurons,) is NaN for neurons without one; `estimate` is of their mean.

    `low` and `high` are None where the scored neurons are too few or all alike.
    """
    scored = scores[~np.isnan(scores)]
    counts = Counter(statuses)
    low, high = interval([estimate], [len(scored)])
    return {
        "mean": mean(scores),
        "low": low,
        "high": high,
        "std": float(scored.std()) if len(scored) else None,
        "n_scored": len(scored),
        "n_neurons": len(scores),
        **{f"n_{s.replace(' ', '_')}": counts[s] for s in Status if s != Status.SCORED},
    }


def mean(values: np.ndarray) -> float | None:
    """Mean without NaN; None when nothing is left."""
    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else None


def layer_estimate(scores: np.ndarray, resamples: int, rng: np.random.Generator) -> Estimate | None:
    """Of a layer's mean score, over neurons drawn anew."""
    value = mean(scores)
    if value is None:
        return None
    return of_resamples(value, bootstrap_means(scores, resamples, rng), int(np.count_nonzero(~np.isnan(scores))))


def interval(estimates: Sequence[Estimate | None], counts: Sequence[int]) -> tuple[float, float] | tuple[None, None]:
    """The 95 % interval of the mean over layers, each of `counts` scored neurons; no further than scores can go."""
    found = over_layers(estimates, counts)
    if found is None:
        return None, None
    low, high = found.interval
    return max(low, -1.0), min(high, 1.0)


def paper_mean_and_variance(layer_scores: Sequence[float | None]) -> tuple[float, float] | tuple[None, None]:
    """Mean and population variance over layers as the paper's tables have them; correlations in, correlations out.

    `layer_scores` has all of the model's layers, None for one without a score or not read: the last is left out by its place.

    *Source:* shown to reproduce every mean and variance of the published table from the published layer scores, to rounding.
    """
    kept = layer_scores[:-1] if len(layer_scores) >= PAPER_LEAVES_OUT_LAST_FROM else layer_scores
    return mean_and_variance([round(100 * score, 1) / 100 for score in kept if score is not None])


def mean_and_variance(layer_scores: Sequence[float]) -> tuple[float, float] | tuple[None, None]:
    """Mean and population variance over layers."""
    if not len(layer_scores):
        return None, None
    return float(np.mean(layer_scores)), float(np.var(layer_scores))


def model_summary(rows: Sequence[dict[str, Any]], estimates: Sequence[Estimate | None], n_layer: int) -> dict[str, Any]:
    """One metric over the layers read of a model of `n_layer`: their `rows`, in order, and `estimates` of their means.

    A layer without any scored neuron is left out of the means and shows in `n_layers_scored`.
    """
    scored = [row["mean"] for row in rows if row["mean"] is not None]
    value, variance = mean_and_variance(scored)
    means = {row["layer"]: row["mean"] for row in rows}
    paper_value, paper_variance = paper_mean_and_variance([means.get(layer) for layer in range(n_layer)])
    there = [(e, row["n_scored"]) for e, row in zip(estimates, rows, strict=True) if row["mean"] is not None]
    low, high = interval([e for e, _ in there], [count for _, count in there])
    neurons = sum(row["n_neurons"] for row in rows)
    return {
        "mean": value,
        "variance": variance,
        "low": low,
        "high": high,
        "coverage": sum(row["n_scored"] for row in rows) / neurons if neurons else 0.0,
        "n_neurons": neurons,
        "n_layers": len(rows),
        "n_layers_of_model": n_layer,
        "n_layers_scored": len(scored),
        "mean_paper": paper_value,
        "variance_paper": paper_variance,
    }
