"""`python -m pipeline neuron`: one neuron's statistics and excerpts, before and after it is judged, by layer or by site."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest

from pipeline.artifacts.records import Records, histogram_edges
from pipeline.artifacts.scores import NEURON_SCHEMA, write_scores
from pipeline.artifacts.store import Store
from pipeline.cli import main
from pipeline.report.one_neuron import facts, histogram
from tests.unit import activation_cases as cases

RECORDED = {"tokens": "tokens", "cell/activations": "activations", "cell/features": "activations"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A run whose neurons are recorded and not judged."""
    store = Store(tmp_path_factory.mktemp("store"))
    inputs = {"tokens": cases.tokens_artifact(store, 3000), "pretrain": cases.model_artifact(store)}
    plan(store, RECORDED, inputs | {"activations": cases.extract(store, cases.settings(), inputs)})
    return store


def plan(store: Store, steps: dict[str, str], made: dict[str, Any], run: str = "run") -> None:
    read = {"inputs": {"tokens": made["tokens"].fingerprint}}
    recipes = {step: read | {"stage": stage, "fingerprint": made[stage].fingerprint} for step, stage in steps.items()}
    waiting = {f"cell/{name}": {"stage": name, "fingerprint": "0" * 32} for name in ("interpret", "interpret_features")}
    store.write_note(run, "plan.json", json.dumps({"steps": waiting | recipes}).encode())


def neuron(store: Store, *arguments: str, run: str = "run") -> int:
    return main(["neuron", "--run", run, "--store", str(store.root), "--cell", "cell", *arguments])


@pytest.mark.parametrize("arguments", [["--layer", "1"], ["--layer", "code-l1"], ["--layer", "1", "--features"]])
def test_a_neuron_is_shown_before_it_is_judged(store, capsys, arguments):
    assert neuron(store, *arguments, "--index", "5", "--excerpts", "2") == 0
    told = capsys.readouterr().out
    record = Records(store.all_of("activations")[0]).neuron(1, 5)
    assert told.startswith(f"code-l1, neuron 5  {facts(record.statistics)}\n")
    assert histogram(record.statistics["histogram"]) in told
    assert "top, 16 tokens (7)" in told and "quantile 0, 4 tokens" in told and "Anthropic" not in told


def test_its_scores_are_shown_once_it_is_judged(store, capsys):
    folder = store.making_folder("judged")
    row = {name: None for name in NEURON_SCHEMA.names} | {
        "site": "code-l1", "layer": 1, "neuron": 5, "metric": "anthropic", "score": 0.25, "status": "scored"
    }  # fmt: skip
    write_scores(folder, [pa.Table.from_pylist([row | {"explanation": "roots"}])], [])
    judged = cases.publish(store, "interpret", folder, {"judge": "a test"})
    made = {name: store.all_of(name)[0] for name in ("tokens", "activations")}
    plan(store, RECORDED | {"cell/interpret": "interpret"}, made | {"interpret": judged}, run="judged")
    assert neuron(store, "--layer", "1", "--index", "5", run="judged") == 0
    assert "Anthropic: 25.0  roots\njudge: a test\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "what"),
    [(["7", "--index", "0"], "no layer 7"), (["x", "--index", "0"], "no site 'x'"), (["0", "--index", "99"], "99")],
)
def test_what_is_not_there_is_told_in_two_lines(store, capsys, arguments, what):
    assert neuron(store, "--layer", *arguments) == 2
    told = capsys.readouterr().err
    assert what in told and len(told.splitlines()) == 2


def test_a_neurons_facts_and_histogram_as_text():
    told = facts(
        {"fraction_nonzero": 0.25, "maximum": 3, "mean": 0.5, "variance": 2, "skewness": 1.5, "kurtosis": None}
    )
    assert told == "fires on 25 % of tokens, at most 3, mean 0.5, variance 2, skewness 1.5, kurtosis -"
    counts = [0] * len(histogram_edges())
    assert histogram([10, 30, *counts[2:]]) == "25 % below 0, 75 % zero"
    one = histogram_edges().tolist().index(1.0)
    counts[1], counts[one - 1], counts[one], counts[one + 2] = 85, 1, 4, 10
    assert histogram(counts) == "0 % below 0, 85 % zero, from 0.5 ▁▄ █ to 8, a bar for each doubling"
