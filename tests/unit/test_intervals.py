"""Intervals cover what they say: simulated means, differences, layers, seeds and domains with a known truth."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from pipeline.intervals import (
    FEWEST_DOMAINS,
    FEWEST_NEURONS,
    Estimate,
    bootstrap_means,
    combined,
    difference,
    of_moments,
    of_resamples,
    of_values,
    over_domains,
    over_layers,
    variance_over_layers,
)

NOMINAL, TOLERANCE = 0.95, 0.03
Draw = Callable[[np.random.Generator, int], np.ndarray]


def skewed(rng: np.random.Generator, n: int) -> np.ndarray:
    """Like neurons' correlations: most are small, some high. Mean 2 / 7."""
    return rng.beta(2, 5, n)


def tied(rng: np.random.Generator, n: int) -> np.ndarray:
    """The same in steps of a tenth: many are equal. Its mean is that of a large sample."""
    return np.round(skewed(rng, n), 1)


TRUTH = {skewed: 2 / 7, tied: float(tied(np.random.default_rng(1), 4_000_000).mean())}


def covered(interval_of: Callable[[np.random.Generator], Estimate | None], truth: float, draws: int = 800) -> float:
    """The share of intervals that hold the truth; every draw has one."""
    rng = np.random.default_rng(0)
    ends = [found.interval for found in (interval_of(rng) for _ in range(draws)) if found]
    assert len(ends) > 0.99 * draws
    return float(np.mean([low <= truth <= high for low, high in ends]))


@pytest.mark.parametrize("draw", [skewed, tied])
@pytest.mark.parametrize("resamples", [20, 1000])
@pytest.mark.parametrize("n", [FEWEST_NEURONS, 100])
def test_a_mean_over_neurons_from_resamples_few_or_many(draw: Draw, resamples: int, n: int) -> None:
    def interval_of(rng: np.random.Generator) -> Estimate | None:
        scores = draw(rng, n)
        estimate = of_resamples(float(scores.mean()), bootstrap_means(scores, resamples, rng), n)
        return over_layers([estimate], [n])

    assert covered(interval_of, TRUTH[draw]) == pytest.approx(NOMINAL, abs=TOLERANCE)


@pytest.mark.parametrize(("n", "least", "most"), [(FEWEST_NEURONS, 0.55, 0.7), (100, 0.87, 0.95), (500, 0.92, 0.98)])
def test_where_most_score_none_few_neurons_are_not_enough_as_the_docs_say(n: int, least: float, most: float) -> None:
    def interval_of(rng: np.random.Generator) -> Estimate | None:
        return of_values(np.where(rng.random(n) < 0.05, 0.8, 0.0) + rng.normal(0, 0.01, n))

    assert least < covered(interval_of, 0.04) < most


@pytest.mark.parametrize("layers, neurons", [(2, 10), (3, 20), (12, 2), (12, 50)])
def test_a_mean_over_layers_of_unlike_spread(layers: int, neurons: int) -> None:
    scales = np.linspace(0.2, 1.0, layers)

    def interval_of(rng: np.random.Generator) -> Estimate | None:
        samples = [scale * skewed(rng, neurons) for scale in scales]
        return over_layers([of_values(sample) for sample in samples], [neurons] * layers)

    assert covered(interval_of, float(scales.mean()) * 2 / 7) == pytest.approx(NOMINAL, abs=TOLERANCE)


@pytest.mark.parametrize("layers, neurons", [(3, 20), (3, 200), (12, 20), (12, 100)])
@pytest.mark.parametrize("spread", [0.0, 0.05, 0.1])
def test_a_difference_of_variances_over_layers_is_on_the_safe_side(layers: int, neurons: int, spread: float) -> None:
    """Two models whose layers differ by `spread` and by 0.1; where they do not differ at all the interval is too wide."""
    depth = np.linspace(-1, 1, layers)

    def interval_of(rng: np.random.Generator) -> Estimate | None:
        models = [[of_values(skewed(rng, neurons) + s * by) for by in depth] for s in (spread, 0.1)]
        return difference(*(variance_over_layers(model, [neurons] * layers) for model in models))

    assert 0.92 <= covered(interval_of, float((spread**2 - 0.1**2) * np.var(depth)), 1000) <= 0.999


@pytest.mark.parametrize("n", [2, 3, 5])
def test_a_mean_over_seeds(n: int) -> None:
    assert covered(lambda rng: of_values(3 + 0.01 * rng.standard_normal(n)), 3) == pytest.approx(NOMINAL, abs=0.02)


@pytest.mark.parametrize("n, m", [(2, 2), (2, 3), (3, 3), (5, 5), (2, 10)])
def test_a_difference_of_seeds_never_covers_less(n: int, m: int) -> None:
    """With two seeds Welch's interval is on the safe side; it is never far on the other one."""

    def interval_of(rng: np.random.Generator) -> Estimate | None:
        return difference(of_values(3 + 0.01 * rng.standard_normal(n)), of_values(2 + 0.02 * rng.standard_normal(m)))

    assert 0.925 <= covered(interval_of, 1) <= 0.99


@pytest.mark.parametrize("n, m", [(20, 20), (20, 200), (500, 40)])
def test_a_difference_of_two_samples_of_neurons(n: int, m: int) -> None:
    def interval_of(rng: np.random.Generator) -> Estimate | None:
        return difference(of_values(skewed(rng, n)), of_values(0.5 * skewed(rng, m)))

    assert covered(interval_of, 1 / 7) == pytest.approx(NOMINAL, abs=TOLERANCE)


@pytest.mark.parametrize("n", [20, 100])
def test_pairs_of_neurons(n: int) -> None:
    def interval_of(rng: np.random.Generator) -> Estimate | None:
        first = skewed(rng, n)
        return of_values(np.clip(first + 0.05 + 0.1 * rng.standard_normal(n), -1, 2) - first)

    assert covered(interval_of, 0.05) == pytest.approx(NOMINAL, abs=TOLERANCE)


WEIGHTS: dict[str, Callable[[int], np.ndarray]] = {
    "alike": np.ones,
    "unlike": lambda n: np.arange(1, n + 1) ** 1.5,
    "one large": lambda n: np.array([20.0, *[1.0] * (n - 1)]),
}


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("n", [3, 5, 10, 22])
def test_a_weighted_mean_over_domains(n: int, weights: str) -> None:
    """Differences with some skew, which vary more where the domain is small."""
    weight = WEIGHTS[weights](n)

    def interval_of(rng: np.random.Generator) -> tuple[float, float] | tuple[None, None]:
        spread = (rng.gamma(6, 1, n) - 6) / weight**0.25
        return over_domains(0.01 * spread, weight, rng)

    rng = np.random.default_rng(0)
    ends = [interval_of(rng) for _ in range(500)]
    assert np.mean([low <= 0 <= high for low, high in ends]) == pytest.approx(NOMINAL, abs=0.04)


def test_equal_weights_give_students_interval() -> None:
    values = np.random.default_rng(0).standard_normal(5)
    found = over_domains(values, np.full(5, 7.0), np.random.default_rng(0))
    expected = of_values(values)
    assert expected and found == pytest.approx(expected.interval, abs=0.1 * expected.error)


def test_a_heavy_domain_widens_the_interval() -> None:
    values = np.array([0.1, -0.1, 0.2, -0.2, 0.0])
    ends = [over_domains(values, np.array([weight, 1, 1, 1, 1.0]), np.random.default_rng(0)) for weight in (1, 50)]
    widths = [high - low for low, high in ends if low is not None and high is not None]
    assert len(widths) == 2 and widths[1] > 1.3 * widths[0]


def test_units_that_are_too_few_or_alike_have_no_interval() -> None:
    rng = np.random.default_rng(0)
    assert of_values([]) is of_values([3.0]) is of_values([3.0, 3.0]) is of_values([0.1 + 0.2, 0.3]) is None
    assert of_moments(1.0, 0.5, 1) is None
    assert of_resamples(0.3, np.full(20, 0.3), 50) is of_resamples(0.3, rng.random(1), 50) is None
    assert over_domains(rng.random(FEWEST_DOMAINS - 1), np.ones(FEWEST_DOMAINS - 1), rng) == (None, None)
    assert over_domains(np.full(9, 0.1) + 1e-16 * rng.random(9), np.arange(1.0, 10), rng) == (None, None)
    some = of_values(rng.random(FEWEST_NEURONS))
    assert over_layers([some], [FEWEST_NEURONS - 1]) is None and over_layers([], []) is None
    assert (
        variance_over_layers([some, some], [50, 50]) is None
        and variance_over_layers([some, some, None], [50] * 3) is None
    )
    assert over_layers([some, None], [FEWEST_NEURONS, 1]) is difference(some, None) is combined([], []) is None


def test_fewer_resamples_make_no_narrower_interval() -> None:
    scores = skewed(np.random.default_rng(0), 200)
    widths = []
    for resamples in (5, 20, 1000):
        rng = np.random.default_rng(1)
        found = [of_resamples(0.3, bootstrap_means(scores, resamples, rng), 200) for _ in range(50)]
        widths.append(np.mean([e.interval[1] - e.interval[0] for e in found if e]))
    assert widths == sorted(widths, reverse=True)
    exact = of_values(scores)
    assert exact and widths[-1] == pytest.approx(exact.interval[1] - exact.interval[0], rel=0.02)
    assert np.isnan(scores).sum() == 0 and len(bootstrap_means(np.full(3, np.nan), 20, np.random.default_rng(0))) == 0
