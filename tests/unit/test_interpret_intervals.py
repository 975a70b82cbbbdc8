"""A model's mean score and its interval: as many resamples as the configuration names, nominal coverage with few and many."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.artifacts.tokens import TokenSplit
from pipeline.artifacts.vocabulary import token_strings
from pipeline.config import InterpretConfig
from pipeline.interpret.excerpts import Chosen
from pipeline.interpret.layer import Judged, score_site
from pipeline.interpret.reading import read_excerpts, sites_of
from pipeline.interpret.statistics import interval, layer_estimate, layer_row, model_summary
from pipeline.interpret.token_table import TokenTableJudge
from tests.interpret_world import planted, settings

TRUTH = 2 / 7


def summary_of(layers: list[np.ndarray], resamples: int, rng: np.random.Generator) -> tuple[dict, list[dict]]:
    estimates = [layer_estimate(scores, resamples, rng) for scores in layers]
    statuses = [["silent" if np.isnan(score) else "scored" for score in scores] for scores in layers]
    rows = [layer_row(*each) for each in zip(layers, statuses, estimates, strict=True)]
    rows = [row | {"layer": layer} for layer, row in enumerate(rows)]
    return model_summary(rows, estimates, len(layers)), rows


@pytest.mark.parametrize("resamples", [20, 1000])
@pytest.mark.parametrize("n_layers, n_neurons", [(1, 25), (3, 8), (12, 100)])
def test_intervals_of_model_means_cover_the_truth(n_layers: int, n_neurons: int, resamples: int) -> None:
    """Skewed scores, some of them missing."""
    rng, held = np.random.default_rng(0), []
    for _ in range(400):
        layers = [rng.beta(2, 5, n_neurons) for _ in range(n_layers)]
        for scores in layers:
            scores[: n_neurons // 10] = np.nan
        found, rows = summary_of(layers, resamples, rng)
        held.append(found["low"] <= TRUTH <= found["high"])
        assert all((row["low"] is None) == (row["n_scored"] < 20) for row in rows)
    assert 0.92 <= np.mean(held) <= 0.985


def test_few_neurons_or_equal_ones_have_a_mean_and_no_interval() -> None:
    rng = np.random.default_rng(0)
    for layers in (
        [rng.random(19)],  # too few
        [np.full(100, 0.5)],  # no spread
        [rng.random(50), np.array([0.5])],  # nothing is known of the second layer's spread
        [np.array([0.5] + [np.nan] * 50)],
    ):
        found, _ = summary_of(layers, 1000, rng)
        assert found["mean"] is not None and found["low"] is None and found["high"] is None
    nothing, _ = summary_of([np.full(30, np.nan)], 20, rng)
    assert [nothing[key] for key in ("mean", "low", "high")] == [None] * 3
    one_is_empty, _ = summary_of([rng.random(30), np.full(30, np.nan)], 20, rng)
    assert one_is_empty["low"] is not None and one_is_empty["n_layers_scored"] == 1


def test_one_resample_is_accepted_and_says_nothing_of_spread() -> None:
    found, _ = summary_of([np.random.default_rng(0).random(50)], 1, np.random.default_rng(0))
    assert found["mean"] is not None and found["low"] is None


def test_an_interval_ends_where_scores_end() -> None:
    scores = np.array([1.0] * 22 + [-0.9] * 2)
    low, high = interval([layer_estimate(scores, 1000, np.random.default_rng(0))], [24])
    assert high == 1 and low is not None and low < scores.mean()


def test_a_sample_grows_until_its_interval_is_narrow(tmp_path: Path) -> None:
    """Thirty neurons, judged one by one by a token table with noise in it: twenty scored ones are the least."""
    tokens, records, _ = planted(tmp_path, n_layers=1, n_neurons=30, n_tokens=4000)

    class Noisy(TokenTableJudge):
        def judge(self, chosen: Chosen, rng: np.random.Generator, controls: int) -> Judged:
            judged = super().judge(chosen, rng, controls)
            noise = rng.random() * 3 * rng.standard_normal(judged.predicted.shape)
            return replace(judged, predicted=judged.predicted + noise)

    def neurons(half_width: float) -> int:
        site = sites_of(records)[0]
        asked = settings(InterpretConfig(half_width=half_width, metrics=("random_only",)))
        excerpts = read_excerpts(records, site, np.arange(30), asked.activations)
        judge = Noisy(token_strings(), chunk=1)
        result = score_site(asked, site, excerpts, TokenSplit(tokens, "val"), judge)
        return result.rows["random_only"]["n_neurons"]

    assert (neurons(0.0), neurons(1.0), neurons(1e-3)) == (30, 20, 30)
    assert 20 < neurons(0.09) < 30


def test_drawing_ends_once_every_interval_is_narrow_and_still_covers() -> None:
    """Neurons come five at a time until the interval of half a tenth: what it then says holds about as often as it should."""
    rng, held, counts = np.random.default_rng(0), [], []
    for _ in range(200):
        scores = rng.beta(2, 5, 400)
        for n in range(5, 400, 5):
            low, high = interval([layer_estimate(scores[:n], 200, rng)], [n])
            if low is not None and high is not None and high - low <= 0.1:
                held.append(low <= TRUTH <= high)
                counts.append(n)
                break
    assert len(held) == 200 and min(counts) >= 20 and np.mean(held) >= 0.88
