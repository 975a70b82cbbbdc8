"""The whole way with language models as judges: in this process, as Ray actors, and for real."""

import json

import pytest
from interpret_world import planted
from interpret_world import settings as interpret_settings

from pipeline.artifacts.scores import Scores
from pipeline.artifacts.store import Store
from pipeline.config import InterpretConfig, RuntimeConfig
from pipeline.interpret.judges import in_this_process
from pipeline.interpret.offline import score_offline
from pipeline.interpret.online import score_sites_online
from pipeline.interpret.reading import sites_of
from pipeline.interpret.stage import INTERPRET
from pipeline.stage import Context
from pipeline.tracking import TrackerSpec

WIDTHS = {12: 0, 8: 11}  # short long ones, so that a judge without a GPU is done in seconds
WORDS = tuple(range(2000, 2032))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judged")
    return (Store(folder), *planted(folder, n_layers=1, n_neurons=3, n_tokens=4000, widths=WIDTHS, vocabulary=WORDS))


def settings_of(model, **config):
    both = {"explainer": "transformers", "explainer_model": model.name, "max_explanation_tokens": 8}
    return interpret_settings(InterpretConfig(**both | {"control_neurons": 1} | config), 7, window=12)


def context(store, fingerprint, **runtime):
    return Context(
        store, RuntimeConfig(threads_per_worker=1, **runtime), "run", "c/interpret", fingerprint, TrackerSpec()
    )


def scored(world, settings, fingerprint, start=in_this_process):
    store, tokens, records, _ = world
    where = context(store, fingerprint)
    progress = where.progress(3, "neurons")
    return score_sites_online(settings, tokens, records, sites_of(records), where, progress, start)


@pytest.fixture(scope="module")
def in_process(world, tiny_judge):
    return scored(world, settings_of(tiny_judge), "a" * 32)


def test_every_neuron_is_judged_on_every_metric(in_process):
    (site,), facts = in_process
    rows = site.neurons.to_pylist()
    assert len(rows) == 9 and {row["metric"] for row in rows} == {"top_and_random", "random_only", "anthropic"}
    for row in rows:
        assert (row["score"] is not None) == (row["status"] == "scored")
        assert row["status"] in ("scored", "unparsed", "refused") and row["n_tokens"] > 0
    # 2 explanations and 10 + 47 simulations a neuron (equal excerpts once), and the controls'.
    assert 3 * 40 < facts["cost"]["calls"] <= 3 * 59 + 2 * 57 and facts["cost"]["tokens_in"] > 10_000
    assert "explains" in facts["judge"] and "own prompts" in facts["judge"]


def test_run_again_asks_nothing_and_scores_the_same(world, tiny_judge, in_process):
    (site,), facts = in_process

    class Unasked:
        """Knows what it is, and cannot answer."""

        def __init__(self, made):
            self.model, self.identity = made.model, made.identity
            self.metric_suffix, self.excerpts_a_request = "", 1 << 20

        def explain(self, prompts):
            assert not list(prompts)
            return iter(())

        def simulate(self, requests):
            assert not list(requests)
            return iter(())

    def start(specs):
        return tuple(Unasked(made) for made in in_this_process(specs))

    (again,), cost = scored(world, settings_of(tiny_judge), "b" * 32, start)
    assert again.neurons.equals(site.neurons) and cost["judge"] == facts["judge"]


def test_actors_give_what_this_process_gives(world, tiny_judge, in_process, ray_cluster, tmp_path):
    _, tokens, records, _ = world
    (site,), facts = in_process
    where = context(Store(tmp_path), "c" * 32, judge_workers=1)  # an empty store: everything is asked anew
    summary = INTERPRET.run(settings_of(tiny_judge), {"tokens": tokens, "activations": records}, tmp_path, where)
    import pyarrow.parquet as pq

    theirs = pq.read_table(tmp_path / "neurons.parquet").to_pylist()
    for ours, row in zip(site.neurons.to_pylist(), theirs, strict=True):
        for name in ("neuron", "metric", "status", "explanation", "n_tokens"):
            assert row[name] == ours[name]
        if ours["score"] is not None:
            assert row["score"] == pytest.approx(ours["score"], abs=1e-3)
    assert summary["judge"] == facts["judge"] and summary["cost"]["calls"] == facts["cost"]["calls"]
    json.dumps(summary, allow_nan=False)


def test_offline_tasks_give_what_this_process_gives(world, ray_cluster, tmp_path):
    store, tokens, records, _ = world
    settings = interpret_settings(seed=7, window=12)
    summary = INTERPRET.run(settings, {"tokens": tokens, "activations": records}, tmp_path, context(store, "d" * 32))
    alone = score_offline(settings, tokens, records, sites_of(records)[0])
    published = store.making_folder("published")
    for name in ("neurons.parquet", "scores.parquet"):
        (published / name).write_bytes((tmp_path / name).read_bytes())
    recipe = {"stage": "interpret", "version": 1, "fingerprint": "d" * 32, "settings": {}, "inputs": {}}
    scores = Scores(store.publish(published, recipe, summary, {}))
    assert scores.judge == "token table (offline, no LLM)"
    for metric in InterpretConfig().metrics:
        mine = [row for row in alone.neurons.to_pylist() if row["metric"] == metric]
        assert scores.neurons(metric).to_pylist() == mine
        best = scores.best(metric, 0, 2)
        assert [row["score"] for row in best] == sorted((row["score"] for row in mine), reverse=True)[:2]
    (layer,) = [row for row in scores.layers().to_pylist() if row["metric"] == "anthropic"]
    assert layer["mean"] == summary["metrics"]["anthropic"]["mean"]


def test_a_real_judge_end_to_end(world, smollm2):
    """SmolLM2 explains and simulates two neurons, as `--set interpret.explainer=transformers` has it."""
    settings = settings_of(smollm2, metrics=("top_and_random", "random_only"), neurons_per_layer=2, control_neurons=0)
    (site,), facts = scored(world, settings, "e" * 32)
    rows = site.neurons.to_pylist()
    assert len(rows) == 4 and facts["judge"].startswith("SmolLM2-135M-Instruct.Q4_1 explains, SmolLM2-135M-Instruct")
    for row in rows:
        assert row["status"] == "scored" and -1 <= row["score"] <= 1 and row["n_tokens"] >= 5 * 12
        assert row["explanation"] and "<" not in row["explanation"] and "\n" not in row["explanation"]
    assert rows[0]["explanation"] == rows[2]["explanation"]  # both OpenAI metrics score one explanation
