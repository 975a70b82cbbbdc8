"""Comparing two sweeps: intervals where there are data for them, and a word where there are none or where unlike things meet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.artifacts import evaluation
from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.scores import NEURON_SCHEMA, write_scores
from pipeline.artifacts.store import Store
from pipeline.report.compare import _score_row, compare
from tests.synthetic_artifacts import hash_of
from tests.synthetic_sweep import fresh_store

NOBODY = np.full(40, np.nan)
SCORES = np.random.default_rng(0).uniform(0, 60, 500)


def score_row(a: dict[int, np.ndarray], b: dict[int, np.ndarray], paired: bool) -> dict[str, Any]:
    return _score_row("crate-2l", "random_only", a, b, paired, "", np.random.default_rng(0))


@pytest.mark.parametrize("paired", [True, False])
def test_a_layer_without_scored_neurons_is_left_out_and_told(paired: bool) -> None:
    some = np.where(np.arange(40) % 4 == 3, np.nan, np.arange(40.0))
    noise = np.random.default_rng(0).standard_normal(40)
    row = score_row({0: some, 1: NOBODY}, {0: some + 100 + noise, 1: some}, paired)
    assert row["difference"] == pytest.approx(100 + np.nanmean(np.where(np.isnan(some), np.nan, noise)))
    assert np.isfinite([row["low"], row["high"]]).all() and row["low"] <= 100 <= row["high"]
    assert "1 of 2 layers have no scored neuron in one of the runs" in row["note"]
    nothing = score_row({0: NOBODY}, {0: some}, paired)
    assert [nothing[key] for key in ("a", "b", "difference", "low", "high")] == [None] * 5


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("n_scored", [1, 5, 19])
def test_few_scored_neurons_have_a_difference_and_no_interval(n_scored: int, paired: bool) -> None:
    few = np.where(np.arange(40) < n_scored, np.arange(40.0), np.nan)
    row = score_row({0: few}, {0: few + 0.5 + few**2}, paired)
    assert row["difference"] is not None and row["low"] is None and row["high"] is None
    assert "no interval: fewer than 20 neurons" in row["note"] and f"{n_scored} of 40" in row["note"]


def test_pairs_are_of_neurons_that_both_have_and_say_how_many() -> None:
    """Equal scores, of which one run lacks the harder half: nothing differs."""
    half = np.where(SCORES < 30, np.nan, SCORES)
    there = int((~np.isnan(half)).sum())
    for a, b in ((SCORES, half), (half, SCORES)):
        row = score_row({0: a}, {0: b}, True)
        assert row["difference"] == 0 and row["a"] == row["b"] == pytest.approx(np.nanmean(half))
        assert f"scored in both: {there} of 500" in row["note"]
        assert "500 of 500" in row["note"] and f"{there} of 500" in row["note"]
    assert row["low"] is None and "all alike" in row["note"]


def test_pairs_of_noise_leave_zero_out_as_often_as_they_may() -> None:
    """95 % intervals, of layers of neurons with a common part: within three standard errors of one in twenty."""
    rng, missed = np.random.default_rng(0), 0
    for _ in range(400):
        common = [rng.beta(2, 5, 30) for _ in range(3)]
        a, b = ({n: 100 * (own + 0.05 * rng.standard_normal(30)) for n, own in enumerate(common)} for _ in range(2))
        row = score_row(a, b, True)
        missed += not row["low"] <= 0 <= row["high"]
    assert 0.017 <= missed / 400 <= 0.083


def publish(store: Store, stage: str, name: str, write: Any, settings: Any = None, inputs: Any = None) -> Artifact:
    fingerprint = f"{hash_of(stage + name):032x}"[:32]
    making = store.making_folder(fingerprint)
    summary = write(making)
    recipe = {"stage": stage, "version": 1, "fingerprint": fingerprint}
    return store.publish(making, recipe | {"settings": settings or {}, "inputs": inputs or {}}, summary, {})


def evaluated(store: Store, name: str, losses: list[float], tokens: list[int], **recipe: Any) -> Artifact:
    def write(folder: Path) -> dict[str, Any]:
        totals = evaluation.DomainTotals(tuple(f"domain {n}" for n in range(len(losses))))
        weights = np.array(tokens, float)
        totals.sums[:] = [weights * losses, weights, 4 * weights]
        evaluation.write_evaluation(folder, totals, [], [])
        return {"val_loss": totals.loss, "bits_per_byte": totals.bits_per_byte}

    return publish(store, "evaluate", name, write, **recipe)


def loss_row(a: Artifact, b: Artifact, **others: tuple[Artifact, Artifact]) -> dict[str, Any]:
    runs = [{"m/evaluate": made} | {f"m/{k}": pair[n] for k, pair in others.items()} for n, made in enumerate((a, b))]
    return compare(*runs)[0]


def test_losses_have_an_interval_over_domains_or_the_reason_why_not(tmp_path: Path) -> None:
    store, tokens = fresh_store(tmp_path), [100, 200, 300, 400]
    base = evaluated(store, "base", [3.0, 4.0, 5.0, 6.0], tokens)
    mixed = evaluated(store, "mixed", [2.5, 4.5, 5.0, 6.5], tokens)
    row = loss_row(base, mixed)
    assert row["low"] < 0 < row["difference"] < row["high"]
    assert row["note"] == "over 4 domains of this text; another seed is not in it"
    row = loss_row(base, evaluated(store, "shifts", [3.1, 4.1, 5.1, 6.1], tokens))
    assert row["difference"] == pytest.approx(0.1) and row["low"] is None
    assert row["note"] == "no interval: the same difference in all 4 domains"
    few, fewer = evaluated(store, "few", [3.0, 4.0], [1, 1]), evaluated(store, "fewer", [3.0, 5.0], [1, 1])
    assert loss_row(few, fewer)["note"] == "no interval: fewer than 3 domains" and loss_row(few, fewer)["low"] is None
    assert loss_row(base, base)["note"] == "same artifact" and loss_row(base, base)["low"] is None


def test_losses_on_other_text_have_no_difference_and_on_more_of_it_no_interval(tmp_path: Path) -> None:
    store, losses = fresh_store(tmp_path), [3.0, 4.0, 5.0]
    base, other = evaluated(store, "base", losses, [10, 20, 30]), evaluated(store, "other", losses, [10, 20, 31])
    row = loss_row(base, other)
    assert (row["difference"], row["low"]) == (None, None) and row["a"] and "other text" in row["note"]
    some, more = (
        evaluated(store, f"{n} of one", losses, [n, n, n], inputs={"tokens": "t" * 32}, settings={"val_tokens": 3 * n})
        for n in (10, 20)
    )
    row = loss_row(some, more)
    assert row["difference"] == pytest.approx(0) and row["low"] is None
    assert "30 and 60 tokens of the same text" in row["note"] and "other val_tokens: 30; 60" in row["note"]


def scored(
    store: Store, name: str, neurons: np.ndarray, scores: np.ndarray, excerpts: int = 10, **recipe: Any
) -> Artifact:
    """An interpret artifact of one layer: `scores` (neurons,) of `neurons`, NaN for refused ones."""

    def write(folder: Path) -> dict[str, Any]:
        missing = np.isnan(scores)
        columns = {"site": ["code-l0"] * len(neurons), "layer": np.zeros(len(neurons), int), "neuron": neurons}
        columns |= {"metric": ["random_only"] * len(neurons), "score": pa.array(scores, mask=missing)}
        columns |= {"status": np.where(missing, "refused", "scored")}
        columns |= {"n_excerpts": np.full(len(neurons), excerpts)}
        columns |= {f.name: pa.nulls(len(neurons), f.type) for f in NEURON_SCHEMA if f.name not in columns}
        write_scores(folder, [pa.table(columns).select(NEURON_SCHEMA.names)], [])
        return {"judge": "made up"}

    return publish(store, "interpret", name, write, **recipe)


def made(store: Store, stage: str, name: str, **recipe: Any) -> Artifact:
    def write(folder: Path) -> dict[str, Any]:
        (folder / "empty").touch()
        return {}

    return publish(store, stage, name, write, **recipe)


def test_scores_of_other_neurons_are_two_samples_and_not_pairs(tmp_path: Path) -> None:
    """Neuron i scores i in both runs; the runs judged other neurons of the same model."""
    store = fresh_store(tmp_path)
    model, rng = made(store, "pretrain", "model"), np.random.default_rng(0)
    first, second = (np.sort(rng.choice(1000, 300, replace=False)) for _ in range(2))
    runs = [
        {"m/pretrain": model, "m/interpret": scored(store, f"run {n}", own, own / 1000)}
        for n, own in enumerate((first, second))
    ]
    (row,) = compare(*runs)
    assert "two samples" in row["note"] and row["low"] < 0 < row["high"] and row["high"] - row["low"] > 5
    jumbled = rng.permutation(first)  # the same neurons, written in another order
    (row,) = compare(runs[0], runs[0] | {"m/interpret": scored(store, "jumbled", jumbled, jumbled / 1000)})
    assert row["difference"] == 0 and "pairs of neurons, scored in both: 300 of 300" in row["note"]


def test_unlike_models_and_ways_of_judging_are_named(tmp_path: Path) -> None:
    store, neurons, rng = fresh_store(tmp_path), np.arange(50), np.random.default_rng(0)

    def run(name: str, rate: float, top: int, step: str, protocol: str) -> dict[str, Artifact]:
        records = {"activations": {"top": top}, "checkpoint_step": step}
        return {
            "m/pretrain": made(store, "pretrain", str(rate), settings={"pretrain": {"learning_rate": rate}}),
            "m/activations": made(store, "activations", name, settings=records),
            "m/interpret": scored(store, name, neurons, rng.random(50), settings={"interpret": {"protocol": protocol}}),
        }

    base = run("base", 0.1, 5, "last", "corrected")
    (row,) = compare(base, run("excerpts", 0.1, 1, "last", "paper"))
    assert "pairs" in row["note"] and "other activations.top: 5; 1" in row["note"]
    assert "other interpret.protocol: corrected; paper" in row["note"]
    (row,) = compare(base, run("step", 0.1, 5, "4", "corrected"))
    assert "two samples" in row["note"] and "other checkpoint_step: last; 4" in row["note"]
    (row,) = compare(base, run("training", 0.2, 5, "last", "corrected"))
    assert "two samples" in row["note"] and "other pretrain.learning_rate: 0.1; 0.2" in row["note"]
    fewer = {"m/interpret": scored(store, "fewer", neurons, rng.random(50), excerpts=6)}
    (row,) = compare(base, base | fewer)
    assert "a score is of 10.0 and of 6.0 excerpts on average" in row["note"]
    (row,) = compare(base, base)
    assert row["note"] == "same artifact" and row["low"] is None
