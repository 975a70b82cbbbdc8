"""Planted neurons fire on known tokens only: the token table must find them (about 1), and controls must not (about 0)."""

import json

import numpy as np
import pytest
from interpret_world import planted, settings

from pipeline.artifacts.vocabulary import token_strings
from pipeline.config import InterpretConfig
from pipeline.interpret.offline import score_offline
from pipeline.interpret.reading import sampled_neurons, sites_of


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    return planted(tmp_path_factory.mktemp("planted"), n_layers=1, n_neurons=24)


@pytest.fixture(scope="module")
def scored(artifacts):
    tokens, records, _ = artifacts
    return score_offline(settings(), tokens, records, sites_of(records)[0])


@pytest.mark.parametrize("metric", ["top_and_random", "random_only", "anthropic"])
def test_perfect_judge_scores_one_and_controls_zero(scored, metric):
    row = scored.rows[metric]
    assert row["n_scored"] == 24 and row["mean"] == pytest.approx(1, abs=0.01)
    assert row["low"] is row["high"] is None  # equal scores: no spread to make an interval of
    assert abs(row["null_shuffled"]) < 0.15 and abs(row["null_other"]) < 0.15
    assert row["null_empty"] is None  # an empty table predicts a constant


@pytest.mark.parametrize("metric", ["top_and_random", "random_only", "anthropic"])
def test_a_metric_asked_for_alone_is_the_same_and_alone(artifacts, scored, metric):
    """No other metric is made of the excerpts that happen to be at hand."""
    tokens, records, _ = artifacts
    alone = score_offline(settings(InterpretConfig(metrics=(metric,))), tokens, records, sites_of(records)[0])
    assert list(alone.rows) == [metric] and alone.rows[metric]["mean"] == scored.rows[metric]["mean"]
    assert set(alone.neurons["n_tokens"].to_pylist()) == set(
        row["n_tokens"] for row in scored.neurons.to_pylist() if row["metric"] == metric
    )


def test_every_neuron_has_a_status_and_failures_have_no_score(scored):
    rows = scored.neurons.to_pylist()
    assert len(rows) == 3 * 24
    for row in rows:
        assert (row["score"] is not None) == (row["status"] == "scored")
    for metric, summary in scored.rows.items():
        mine = [row["status"] for row in rows if row["metric"] == metric]
        assert summary["n_scored"] == mine.count("scored") and summary["n_silent"] == mine.count("silent")


def test_explanations_name_the_planted_tokens_in_order_of_strength(artifacts, scored):
    fires = artifacts[2][0]
    for row in scored.neurons.to_pylist():
        strongest_first = sorted(fires[row["neuron"]].items(), key=lambda item: -item[1])
        expected = ", ".join(
            f"{json.dumps(token_strings()[token])} {strength:.1f}" for token, strength in strongest_first
        )
        assert row["explanation"] == f"fires on {expected}"


def test_same_seed_same_scores_and_a_sample_is_part_of_a_larger_one(artifacts):
    tokens, records, _ = artifacts
    site = sites_of(records)[0]
    once, again = (score_offline(settings(seed=3), tokens, records, site).neurons for _ in range(2))
    assert once.equals(again)
    few, more = sampled_neurons(site, 5, 0), sampled_neurons(site, 9, 0)
    assert np.array_equal(more[:5], few) and len(set(more.tolist())) == 9
    sampled = score_offline(settings(InterpretConfig(neurons_per_layer=5), 3), tokens, records, site)
    assert sampled.neurons["neuron"].to_pylist()[:5] == sampled_neurons(site, 5, 3).tolist()
