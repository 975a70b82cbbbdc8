"""The steering stage on a small model: what it chooses, what it writes, and that a clamp loses nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sae_world import World, site

from crate_model.config import SAEConfig
from crate_model.sae import SparseAutoencoder
from pipeline.artifacts import steering
from pipeline.artifacts.saes import write_sae
from pipeline.artifacts.store import Artifact
from pipeline.config import SteerConfig, SteerEdit
from pipeline.errors import ConfigError
from pipeline.steer.stage import STAGE, Settings

STEER = SteerConfig(neurons=2, sample_tokens=6, top_words=5, controls=2, doses=(0.5, 1.0, 4.0))


def run(steer: SteerConfig, world: World, inputs: dict[str, Artifact], folder: Path) -> dict:
    return STAGE.run(Settings(steer), inputs, folder, world.context("7" * 32, "steer"))


@pytest.fixture(scope="module", params=["crate", "gpt2"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("steer"), request.param, vocab_size=50304)


@pytest.fixture(scope="module")
def inputs(world: World) -> dict[str, Artifact]:
    return {"pretrain": world.pretrain, "activations": world.publish_records(), "interpret": world.publish_scores()}


@pytest.fixture(scope="module")
def made(world: World, inputs: dict[str, Artifact]) -> Artifact:
    context = world.context("4" * 32, "steer")
    return world.publish("steer", "4" * 32, lambda folder: STAGE.run(Settings(STEER), inputs, folder, context))


def test_the_best_scored_neurons_are_steered_at_their_own_maximum(made: Artifact, inputs: dict[str, Artifact]) -> None:
    from pipeline.artifacts.records import Records

    edits = steering.read_samples(made)["steered"]
    assert [(edit["layer"], edit["how"]) for edit in edits] == [(0, "clamp"), (0, "clamp"), (1, "clamp"), (1, "clamp")]
    records = Records(inputs["activations"])
    for edit in edits:
        assert edit["value"] == records.statistics(edit["layer"])["maximum"][edit["neuron"]].as_py() > 0


def test_effects_are_those_of_the_model(made: Artifact, world: World) -> None:
    """The first edit, done by hand with a hook."""
    rows = steering.read_effects(made).to_pylist()
    first = [row for row in rows if row["edit"] == 0]
    edit = first[0]
    ids = torch.tensor([[16, 362, 513, 604, 642]])  # "1 2 3 4 5"
    before = world.model(ids)[0, -1, :50257]

    def clamp(_module: torch.nn.Module, _inputs: object, value: torch.Tensor) -> torch.Tensor:
        value = value.clone()
        value[..., edit["neuron"]] = edit["value"]
        return value

    handle = world.model.blocks[edit["layer"]].feedforward.code.register_forward_hook(clamp)
    after = world.model(ids)[0, -1, :50257]
    handle.remove()
    change = after - before
    for kind, order in (("promoted", change), ("suppressed", -change), ("likely", after)):
        told = [row for row in first if row["kind"] == kind]
        assert [row["token"] for row in told] == order.topk(5).indices.tolist()
        for row in told:
            assert row["logit_after"] == pytest.approx(after[row["token"]].item(), abs=1e-5)
            assert row["probability_before"] == pytest.approx(before.softmax(-1)[row["token"]].item(), rel=1e-4)


def test_a_clamp_to_its_own_value_changes_no_logit_by_a_bit(made: Artifact) -> None:
    rows = steering.read_lossless(made).to_pylist()
    assert len(rows) == 4
    assert {row["max_logit_change"] for row in rows} == {0.0}
    assert made.summary["max_logit_change_of_clamps"] == 0.0


def test_doses_grow_and_controls_stand_beside_them(made: Artifact) -> None:
    rows = steering.read_doses(made).to_pylist()
    for edit in range(4):
        steered = [row for row in rows if row["edit"] == edit and row["role"] == "steered"]
        controls = [row for row in rows if row["edit"] == edit and row["role"] == "control"]
        assert [row["dose"] for row in steered] == [0.5, 1.0, 4.0]
        assert len({row["neuron"] for row in controls}) == 2
        assert steered[0]["neuron"] not in {row["neuron"] for row in controls}
        assert steered[2]["kl"] > steered[1]["kl"] > 0 or steered[2]["kl"] > 0
        assert {row["value"] for row in controls} == {row["value"] for row in steered}


def test_samples_continue_the_prompt(made: Artifact) -> None:
    samples = steering.read_samples(made)
    assert samples["prompt"] == "1 2 3 4 5"
    assert all(isinstance(text, str) for text in [samples["plain"], *(edit["text"] for edit in samples["steered"])])


def test_features_of_a_sparse_autoencoder_are_steered_too(world: World, inputs: dict[str, Artifact]) -> None:
    torch.manual_seed(1)
    sae = SparseAutoencoder(SAEConfig(64, 128))
    of = site()
    with_sae = inputs | {
        "sae": world.publish(
            "sae", "5" * 32, lambda folder: write_sae(folder, of, sae, {}), {"sites": [vars(of)], "measures": {}}
        )
    }
    edits = (
        SteerEdit(layer=0, neuron=5, value=2.0, site=of.name),
        SteerEdit(layer=0, neuron=5, value=2.0, site=of.name, keep_error=False),
    )
    steer = STEER.model_copy(update={"edits": edits})
    context = replace(world.context("6" * 32, "steer"))
    artifact = world.publish("steer", "6" * 32, lambda folder: STAGE.run(Settings(steer), with_sae, folder, context))
    rows = {(row["what"], row["neuron"]): row for row in steering.read_lossless(artifact).to_pylist()}
    assert rows["delta", 5]["max_logit_change"] == 0.0
    assert rows["splice", 5]["max_logit_change"] > 0
    assert rows["splice", None]["kl"] > 0


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (SteerEdit(layer=2, neuron=0), "no layer 2"),
        (SteerEdit(layer=0, neuron=64), "no neuron 64"),
        (SteerEdit(layer=0, neuron=0, site="code-l0-16x"), "no sparse autoencoder 'code-l0-16x'"),
        (SteerEdit(layer=0, neuron=0, positions=(5,)), "no position 5"),
    ],
)
def test_a_wrong_edit_is_one_clear_error(
    world: World, inputs: dict[str, Artifact], tmp_path: Path, edit: SteerEdit, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        run(STEER.model_copy(update={"edits": (edit,)}), world, inputs, tmp_path)


@pytest.mark.parametrize(("prompt", "said"), [("", "empty"), ("word " * 40, "40 tokens|41 tokens")])
def test_a_wrong_prompt_is_one_clear_error(
    world: World, inputs: dict[str, Artifact], tmp_path: Path, prompt: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        run(STEER.model_copy(update={"prompt": prompt}), world, inputs, tmp_path)
