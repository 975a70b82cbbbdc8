"""Comparing two sweeps: intervals where there are data for them, and a word where there are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.artifacts import evaluation
from pipeline.artifacts.store import Artifact, Store
from pipeline.report.compare import _score_row, compare
from tests.synthetic_sweep import SyntheticSweep, fresh_store

NOBODY = np.full(8, np.nan)


def score_row(a: dict[int, np.ndarray], b: dict[int, np.ndarray], paired: bool) -> dict[str, Any]:
    return _score_row("crate-2l", "random_only", a, b, paired, "", np.random.default_rng(0))


@pytest.mark.parametrize("paired", [True, False])
def test_a_layer_without_scored_neurons_is_left_out_and_told(paired: bool) -> None:
    some = np.array([1.0, 2.0, np.nan, 3.0, np.nan, 2.0, 1.0, 3.0])
    row = score_row({0: some, 1: NOBODY}, {0: some + 1, 1: some}, paired)
    assert (row["a"], row["b"], row["difference"]) == pytest.approx((2, 3, 1))
    assert np.isfinite([row["low"], row["high"]]).all() and row["low"] <= 1 <= row["high"]
    assert "1 of 2 layers have no scored neuron in one of the runs" in row["note"]
    nothing = score_row({0: NOBODY}, {0: some}, paired)
    assert [nothing[key] for key in ("a", "b", "difference", "low", "high")] == [None] * 5


@pytest.mark.parametrize("paired", [True, False])
def test_one_scored_neuron_of_many_makes_no_warning(paired: bool) -> None:
    one = NOBODY.copy()
    one[3] = 2.0
    row = score_row({0: one}, {0: one + 0.5}, paired)
    assert row["difference"] == pytest.approx(0.5)
    assert (row["low"], row["high"]) == pytest.approx((0.5, 0.5))


def evaluated(store: Store, name: str, losses: list[float], tokens: list[int]) -> Artifact:
    def write(folder: Path) -> dict[str, Any]:
        totals = evaluation.DomainTotals(tuple(f"domain {n}" for n in range(len(losses))))
        weights = np.array(tokens, float)
        totals.sums[:] = [weights * losses, weights, 4 * weights]
        evaluation.write_evaluation(folder, totals, [], [])
        return {"val_loss": totals.loss, "bits_per_byte": totals.bits_per_byte}

    sweep = SyntheticSweep(store, name=name)
    return sweep.publish("evaluate", name, write)


def test_losses_have_an_interval_over_domains_or_the_reason_why_not(tmp_path: Path) -> None:
    store, tokens = fresh_store(tmp_path), [100, 200, 300, 400]
    base = evaluated(store, "base", [3.0, 4.0, 5.0, 6.0], tokens)
    shifts = evaluated(store, "shifts", [3.1, 4.1, 5.1, 6.1], tokens)
    mixed = evaluated(store, "mixed", [2.5, 4.5, 5.0, 6.5], tokens)
    few, other = evaluated(store, "few", [3.0, 4.0], [1, 1]), evaluated(store, "other", [3.0, 4.0], [1, 2])

    def loss_row(a: Artifact, b: Artifact) -> dict[str, Any]:
        return compare({"m/evaluate": a}, {"m/evaluate": b})[0]

    row = loss_row(base, shifts)
    assert (row["low"], row["high"], row["difference"]) == pytest.approx((0.1, 0.1, 0.1))
    row = loss_row(base, mixed)
    assert row["low"] < 0 < row["difference"] < row["high"] and row["note"] == "over 4 domains"
    assert loss_row(few, other)["note"] == "no interval: measured on other text"
    assert loss_row(base, base)["note"] == "same artifact" and loss_row(base, base)["low"] is None
