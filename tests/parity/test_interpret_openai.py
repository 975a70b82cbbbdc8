"""Our reading of the original prompts, and our scores, equal what the `automated-interpretability` package itself makes; it
loads the neurons that we export.

The package is installed without dependencies; what it imports for cloud storage and HTTP, and never uses here, is stood in for.
"""

import asyncio
import importlib
import json
import sys
import types

import numpy as np
import pytest

from pipeline.artifacts.records import Records
from pipeline.artifacts.store import Store
from pipeline.cli import main
from pipeline.errors import ResourceError
from pipeline.interpret.prompts import openai_original
from pipeline.interpret.prompts.openai_original import OpenAIPrompts
from pipeline.interpret.prompts.prompt_set import ShownExcerpt, simulation_tail
from pipeline.interpret.scoring import correlations, quantise
from tests.unit import activation_cases as cases

UNUSED = {"blobfile": {}, "boostedblob": {"ensure_session": lambda f: f}, "httpx": {}, "orjson": {}}
TOKENS = [" The", " boat", "'s", " left", " at", " dawn", ",", " and", " no", " one", " saw"]


@pytest.fixture(scope="module")
def package():
    """The package's modules by name."""
    pytest.importorskip("neuron_explainer", reason="automated-interpretability is not installed")
    added = [name for name in UNUSED if name not in sys.modules]
    for name in added:
        sys.modules[name] = types.SimpleNamespace(__name__=name, **UNUSED[name])  # type: ignore[assignment]
    sys.modules["httpx"].HTTPStatusError = OSError  # type: ignore[attr-defined]
    names = ("activations.activations", "explanations.explainer", "explanations.simulator", "explanations.scoring")
    names += ("explanations.explanations", "explanations.prompt_builder", "activations.activation_records")
    names += ("fast_dataclasses",)
    yield types.SimpleNamespace(**{n.split(".")[-1]: importlib.import_module(f"neuron_explainer.{n}") for n in names})
    for name in added:
        del sys.modules[name]


def excerpts(package, sparse: bool):
    rng = np.random.default_rng(sparse)
    true = [np.maximum(rng.normal(size=len(TOKENS)) - sparse * 1.2, 0) for _ in range(3)]
    records = [package.activations.ActivationRecord(tokens=TOKENS, activations=row.tolist()) for row in true]
    highest = max(row.max() for row in true)
    return records, [ShownExcerpt(TOKENS, quantise(row, highest)) for row in true]


@pytest.mark.parametrize("sparse", [False, True])
def test_explanation_prompt(package, sparse):
    records, shown = excerpts(package, sparse)
    explainer = package.explainer.TokenActivationPairExplainer.__new__(package.explainer.TokenActivationPairExplainer)
    explainer.prompt_format = package.prompt_builder.PromptFormat.HARMONY_V4
    explainer.context_size = package.explainer.ContextSize.ONETWENTYEIGHT_K
    explainer.few_shot_example_set = package.explainer.FewShotExampleSet.ORIGINAL
    explainer.repeat_non_zero_activations = True
    explainer._prompt_is_too_long = lambda *_: False  # it would fetch a tokenizer
    theirs = explainer.make_explanation_prompt(
        all_activation_records=records, max_activation=1.0, max_tokens_for_completion=60
    )
    system, first, *rest = theirs
    expected = [{"role": "user", "content": system["content"] + first["content"]}, *rest]
    ours = OpenAIPrompts(raw_tokens=True).explain(shown)
    assert [{"role": m.role, "content": m.content} for m in ours] == expected
    assert ("zeros filtered out" in ours[-1].content) == sparse


def test_simulation_prompt(package):
    simulator = package.simulator.ExplanationNeuronSimulator.__new__(package.simulator.ExplanationNeuronSimulator)
    simulator.explanation = "words about boats "
    simulator.few_shot_example_set = package.explainer.FewShotExampleSet.ORIGINAL
    simulator.prompt_format = package.prompt_builder.PromptFormat.INSTRUCTION_FOLLOWING
    prompts = OpenAIPrompts(raw_tokens=True)
    tail = simulation_tail([prompts.line(token) for token in TOKENS])
    ours = prompts.simulation_head() + prompts.simulation_opening("words about boats ") + tail
    assert ours == simulator.make_simulation_prompt(TOKENS)


def test_score_of_recorded_simulations(package):
    """Their aggregate over excerpts of different lengths, from their own simulator interface, equals ours."""
    rng = np.random.default_rng(5)
    lengths = [64, 60, 12, 33]
    true = [np.maximum(rng.normal(size=n), 0) for n in lengths]
    recorded = [np.maximum(row * 2 + rng.normal(size=len(row)), 0) for row in true]
    left = iter(recorded)

    class Recorded(package.simulator.NeuronSimulator):
        async def simulate(self, tokens):
            return package.explanations.SequenceSimulation(
                tokens=list(tokens),
                expected_activations=next(left).tolist(),
                activation_scale=package.explanations.ActivationScale.SIMULATED_NORMALIZED_ACTIVATIONS,
                distribution_values=[],
                distribution_probabilities=[],
            )

    records = [package.activations.ActivationRecord(tokens=["x"] * len(r), activations=r.tolist()) for r in true]
    theirs = asyncio.run(package.scoring.simulate_and_score(Recorded(), records)).get_preferred_score()
    mask = np.arange(64) < np.array(lengths)[:, None]
    padded = [np.zeros(mask.shape), np.zeros(mask.shape)]
    for values, rows in zip(padded, (true, recorded), strict=True):
        values[mask] = np.concatenate(rows)
    ours = correlations(*(values.reshape(1, -1) for values in (*padded, mask)))[0]
    assert ours == pytest.approx(theirs, abs=1e-12)


def test_quantisation_of_the_package(package):
    values = np.random.default_rng(0).normal(size=200).round(2)
    theirs = package.activation_records.normalize_activations(values.tolist(), 1.7)
    assert quantise(values, 1.7).tolist() == theirs


def test_expected_value_of_the_package(package):
    from pipeline.interpret.expected import from_numbers

    logits = np.random.default_rng(1).normal(size=11)
    _, theirs = package.simulator.compute_predicted_activation_stats_for_token(
        {str(value): float(logit) for value, logit in enumerate(logits)}
    )
    assert from_numbers(logits[None])[0] == pytest.approx(theirs, abs=1e-12)


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(openai_original, "CARRIER", "no-such-distribution")
    openai_original._texts.cache_clear()
    with pytest.raises(ResourceError, match="no-such-distribution") as error:
        OpenAIPrompts(raw_tokens=True).simulation_head()
    assert "pip install --no-deps" in error.value.fix
    openai_original._texts.cache_clear()


def test_exported_neurons_are_loaded_and_split(package, tmp_path):
    store = Store(tmp_path / "store")
    made = {"tokens": cases.tokens_artifact(store, 3000), "pretrain": cases.model_artifact(store)}
    made["activations"] = cases.extract(store, cases.settings(top=8), made)
    names = {"tokens": "tokens", "cell/activations": "activations"}
    read = {"inputs": {"tokens": made["tokens"].fingerprint}}
    steps = {step: read | {"stage": stage, "fingerprint": made[stage].fingerprint} for step, stage in names.items()}
    store.write_note("run", "plan.json", json.dumps({"steps": steps}).encode())
    of_run = ["--run", "run", "--store", str(store.root), "--cell", "cell"]
    assert main(["export-neurons", *of_run, "--out", str(tmp_path / "out")]) == 0
    files = sorted((tmp_path / "out").glob("*/*.json"))
    assert len(files) == 2 * 32
    records = Records(made["activations"])
    every = package.activations.ActivationRecordSliceParams(n_examples_per_split=None)
    for path in files:
        loaded = package.fast_dataclasses.loads(path.read_bytes())
        assert isinstance(loaded, package.activations.NeuronRecord)
        assert (str(loaded.neuron_id.layer_index), f"{loaded.neuron_id.neuron_index}.json") == path.parts[-2:]
        ours = records.neuron(loaded.neuron_id.layer_index, loaded.neuron_id.neuron_index)
        top, random = ([e.activations.tolist() for e in ours.excerpts[16][kind, -1]] for kind in ("top", "random"))
        assert [record.activations for record in loaded.most_positive_activation_records] == top
        assert loaded.max_activation == max(map(max, top))
        assert [record.activations for record in loaded.train_activation_records(every)] == top[0:8:4]
        held_out = (
            loaded.calibration_activation_records,
            loaded.valid_activation_records,
            loaded.test_activation_records,
        )
        for number, split in enumerate(held_out):
            assert [record.activations for record in split(every)] == top[number + 1 : 8 : 4] + random[number:6:3]
