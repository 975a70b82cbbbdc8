"""95 % intervals of means and differences, each over units of one kind: neurons, layers of neurons, seeds, domains.

An `Estimate` is a number with its standard error and the degrees of freedom of that error; sums of independent estimates are
estimates again (Welch and Satterthwaite), so that layers, differences and both together need no further formula. Units that
are too few, or all alike, have no estimate: an interval without width is chance, not certainty.

*Sources:* Student's t; Satterthwaite, Biometrics Bulletin 2 (1946); Welch, Biometrika 34 (1947).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

QUANTILE = 0.975  # of two sides that together leave out 5 %
FEWEST_NEURONS = 20  # in all layers together; scores are skewed, and Student's t of fewer covers too little
FEWEST_LAYERS = 3  # whose variance is spoken of
FEWEST_DOMAINS = 3
NO_SPREAD = 1e-9  # a standard error of nats or points that is rounding
STUDENTIZED = 10_000  # draws from which the critical value of weighted domains is read


@dataclass(frozen=True)
class Estimate:
    """A mean or a difference, in the unit of its values."""

    value: float
    error: float  # standard error
    freedom: float  # degrees of freedom of the error

    @property
    def interval(self) -> tuple[float, float]:
        """Low and high end of the 95 % interval."""
        from scipy.stats import t

        half = float(t.ppf(QUANTILE, self.freedom)) * self.error
        return self.value - half, self.value + half

    @property
    def is_apart(self) -> bool:
        """Whether the interval leaves out 0."""
        low, high = self.interval
        return low > 0 or high < 0


def of_moments(mean: float, std: float, count: int) -> Estimate | None:
    """Of the mean of `count` values whose population standard deviation is `std`; None for fewer than two, or equal ones."""
    if count < 2:
        return None
    return _spread(mean, std / (count - 1) ** 0.5, count - 1)


def of_values(values: Sequence[float] | np.ndarray) -> Estimate | None:
    """Of the mean of independent values, of seeds for example; None for fewer than two, or equal ones."""
    return of_moments(float(np.mean(values)), float(np.std(values)), len(values)) if len(values) else None


def bootstrap_means(values: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Means (resamples,) of the values that are no NaN, drawn anew with replacement; empty when there are none."""
    there = values[~np.isnan(values)]
    if not len(there):
        return np.empty(0)
    draws = rng.integers(0, len(there), (resamples, len(there)), dtype=np.int32)
    return there[draws].mean(axis=1)


def of_resamples(mean: float, means: np.ndarray, count: int) -> Estimate | None:
    """Of the mean of `count` values from its resampled `means`: their spread, put right for its bias, is the standard error.

    Few resamples know the error less well: they take degrees of freedom away, so that 20 are as honest as 1000.
    """
    if count < 2 or len(means) < 2:
        return None
    error = float(np.std(means, ddof=1)) * (count / (count - 1)) ** 0.5
    return _spread(mean, error, 1 / (1 / (count - 1) + 1 / (len(means) - 1)))


def combined(estimates: Sequence[Estimate | None], weights: Sequence[float]) -> Estimate | None:
    """The weighted sum of independent estimates; None where one of them is missing."""
    there = [estimate for estimate in estimates if estimate]
    if not there or len(there) < len(estimates):
        return None
    parts = np.array([(weight * estimate.error) ** 2 for weight, estimate in zip(weights, there, strict=True)])
    value = sum(weight * estimate.value for weight, estimate in zip(weights, there, strict=True))
    freedom = parts.sum() ** 2 / (parts**2 / [estimate.freedom for estimate in there]).sum() if parts.any() else 1.0
    return _spread(float(value), float(parts.sum() ** 0.5), float(freedom))


def difference(a: Estimate | None, b: Estimate | None) -> Estimate | None:
    """A minus B, of two independent samples."""
    return combined((a, b), (1, -1))


def over_layers(layers: Sequence[Estimate | None], counts: Sequence[int]) -> Estimate | None:
    """Of the mean over layers, each the mean of `counts` neurons, over neurons drawn anew in every layer.

    None where the neurons are fewer than FEWEST_NEURONS together, or a layer has a single one or equal ones.
    """
    return combined(layers, [1 / len(layers)] * len(layers)) if sum(counts) >= FEWEST_NEURONS else None


def variance_over_layers(layers: Sequence[Estimate | None], counts: Sequence[int]) -> Estimate | None:
    """Of the population variance over these layers' true means: what the sampling of neurons adds to it is taken off.

    By the delta method; where layers hardly differ its interval is wider than it need be. None for fewer than FEWEST_LAYERS, or
    where `over_layers` has none.
    """
    mean = over_layers(layers, counts) if len(layers) >= FEWEST_LAYERS else None
    there = [layer for layer in layers if layer]
    if mean is None:
        return None
    apart = np.array([layer.value - mean.value for layer in there])
    errors = np.array([layer.error for layer in there])
    spread = combined(there, (2 * apart / len(there)).tolist())
    value = float(np.mean(apart**2) - np.mean(errors**2) * (1 - 1 / len(there)))
    return Estimate(value, spread.error, spread.freedom) if spread else None


def over_domains(
    differences: np.ndarray, weights: np.ndarray, rng: np.random.Generator
) -> tuple[float, float] | tuple[None, None]:
    """The interval of the weighted mean of `differences` (domains,), over other domains of the same kind, with such weights.

    The error is robust to domains that vary differently, and its critical value is that of normal differences with the same
    weights: Student's for equal ones, larger where few domains outweigh the others. None for fewer than FEWEST_DOMAINS, or
    equal differences.
    """
    share = weights / weights.sum()
    error = float(_weighted_error(differences[None], share)[0]) if len(share) >= FEWEST_DOMAINS else 0.0
    if error <= NO_SPREAD:
        return None, None
    drawn = rng.standard_normal((STUDENTIZED, len(share)))
    studentized = np.abs(drawn @ share) / _weighted_error(drawn, share)
    mean, half = float(differences @ share), float(np.quantile(studentized, 2 * QUANTILE - 1)) * error
    return mean - half, mean + half


def _weighted_error(values: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Standard errors (rows,) of weighted means of `values` (rows, n): unbiased where all values vary alike."""
    residuals = values - (values @ share)[:, None]
    return np.sqrt((residuals**2 * (share**2 / (1 - 2 * share + (share**2).sum()))).sum(1))


def _spread(value: float, error: float, freedom: float) -> Estimate | None:
    return Estimate(value, error, freedom) if error > NO_SPREAD else None
