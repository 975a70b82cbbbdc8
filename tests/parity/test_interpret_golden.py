"""Quantisation, excerpt ranks and scores equal the numbers that the published code gave."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.interpret.excerpts import SELECTIONS
from pipeline.interpret.expected import from_top
from pipeline.interpret.scoring import correlations, quantise, statuses


@pytest.fixture(scope="module")
def golden():
    return np.load(Path(__file__).parents[1] / "data" / "interp_official_golden.npz")


@pytest.mark.parametrize("name, factor", [("int", 1), ("int_max_half", 0.5), ("int_max_zero", 0)])
def test_quantisation(golden, name, factor):
    assert np.array_equal(quantise(golden["norm/raw"], golden["norm/max"] * factor), golden[f"norm/{name}"])


def test_correlation_over_excerpts_of_different_lengths(golden):
    lengths, true, predicted = (golden[f"score/{name}"] for name in ("lengths", "true", "pred"))
    ends = np.cumsum(lengths)
    mask = np.arange(64) < lengths[:, None]
    padded = [np.full(mask.shape, 99.0) for _ in range(2)]
    for target, values in zip(padded, (true, predicted), strict=True):
        target[mask] = values
    assert ends[-1] == len(true)
    score = correlations(*(values.reshape(1, -1) for values in (*padded, mask)))
    assert score[0] == pytest.approx(golden["score/corr_r2_absdev"][0], abs=1e-12)


def test_undefined_correlations_are_statuses_not_numbers(golden):
    assert np.isnan(golden["score/all_zero_true_corr"]) and np.isnan(golden["score/constant_pred_corr"])
    varied = np.linspace(0, 1, 30)[None]
    constant = np.full((1, 30), 0.1)  # whose variance rounds to something above zero
    everywhere = np.ones((1, 30), bool)
    assert np.isnan(correlations(np.zeros((1, 30)), varied, everywhere)).all()
    assert np.isnan(correlations(varied, constant, everywhere)).all()
    assert statuses(np.zeros((1, 30)), varied, everywhere) == ["silent"]
    assert statuses(varied, constant, everywhere) == ["constant prediction"]
    assert statuses(varied, varied, everywhere) == ["scored"]


def test_openai_excerpts(golden):
    openai = next(selection for selection in SELECTIONS if selection.name == "openai")
    random, top = openai.score
    assert list(openai.explain[0].ranks) == golden["split_openai/explain_ids"].tolist()
    assert [1000 + rank for rank in random.ranks] + list(top.ranks) == golden["split_openai/score_ids"].tolist()
    assert set(random.metrics) == {"top_and_random", "random_only"} and top.metrics == ("top_and_random",)


def test_expected_activation_from_the_top_five(golden):
    ours = from_top(golden["ev/token_value"], golden["ev/logit"])
    np.testing.assert_allclose(ours, golden["ev/expected"], atol=1e-12)
    assert ours[0] == 0  # no number among them: published as 0
