"""The steering stage on a small model: what it chooses, what it writes, and that a clamp loses nothing."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
import torch
from sae_world import World, make_model, site

from crate_model.config import SAEConfig
from crate_model.sae import SparseAutoencoder
from pipeline.artifacts import steering
from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.saes import CURVE_SCHEMA, write_sae, write_tables
from pipeline.artifacts.store import Store
from pipeline.config import SteerConfig, SteerEdit
from pipeline.errors import ConfigError
from pipeline.progress import Progress
from pipeline.steer.choice import control_units
from pipeline.steer.samples import OTHER_PROMPTS, other_prompts, prompt_ids
from pipeline.steer.stage import STAGE, Settings
from pipeline.steer.study import study

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
    return steered(STEER, world, inputs, "4" * 32)


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


@pytest.fixture(scope="module")
def with_sae(world: World, inputs: dict[str, Artifact]) -> dict[str, Artifact]:
    """Feature 0 never fires, feature 9 is the strongest of those that fire often, feature 8 fires once."""
    torch.manual_seed(1)
    sae = SparseAutoencoder(SAEConfig(64, 128))

    def write(folder: Path) -> None:
        write_sae(folder, site(), sae, {})
        fired = [0, *[50] * 127]
        fired[8] = 1
        maxima = [0.0, *[1.0] * 127]
        maxima[8], maxima[9] = 7.0, 3.0
        columns = {"site": [site().name] * 128, "feature": range(128), "n_fired": fired, "mean_active": maxima}
        write_tables(folder, [], pa.table(columns | {"maximum": maxima}), CURVE_SCHEMA.empty_table())

    return inputs | {"sae": world.publish("sae", "5" * 32, write, {"sites": [vars(site())], "measures": {}})}


def steered(steer: SteerConfig, world: World, inputs: dict[str, Artifact], fingerprint: str) -> Artifact:
    context = world.context(fingerprint, "steer")
    return world.publish("steer", fingerprint, lambda folder: STAGE.run(Settings(steer), inputs, folder, context))


def test_the_strongest_features_are_steered_beside_the_neurons(world: World, with_sae: dict[str, Artifact]) -> None:
    artifact = steered(STEER.model_copy(update={"neurons": 1, "features": 1}), world, with_sae, "6" * 32)
    edits = steering.read_samples(artifact)["steered"]
    assert [(edit["site"], edit["neuron"]) for edit in edits][2:] == [("code-l0-2x", 9)]
    assert edits[2]["value"] == 3.0
    controls = [r for r in steering.read_doses(artifact).to_pylist() if r["edit"] == 2 and r["role"] == "control"]
    assert {row["site"] for row in controls} == {"code-l0-2x"}
    assert not {row["neuron"] for row in controls} & {0, 9}


def test_features_lose_what_the_autoencoder_misses_unless_its_error_is_kept(
    world: World, with_sae: dict[str, Artifact]
) -> None:
    kept = SteerEdit(layer=0, neuron=5, value=2.0, site=site().name)
    edits = (kept, kept.model_copy(update={"keep_error": False}))
    artifact = steered(STEER.model_copy(update={"edits": edits}), world, with_sae, "9" * 32)
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


@pytest.mark.parametrize("architecture", ["crate", "gpt2"])
def test_a_neuron_is_measured_alike_as_a_steered_one_and_as_a_control(architecture: str, tmp_path: Path) -> None:
    """To the bit, so that neurons which are like any others come out as their controls do, but for the draw of the neurons."""
    model = make_model(architecture, vocab_size=50304)
    live = {f"code-l{layer}": dict.fromkeys(range(8), 4.0) for layer in range(2)}
    steer = SteerConfig(sample_tokens=0, top_words=5, controls=7, doses=(1.0, 2.0))
    found: dict[tuple[str, int, float], set[tuple[float, ...]]] = {}
    for neuron in range(8):
        edits = [SteerEdit(layer=layer, neuron=neuron, value=4.0) for layer in range(2)]
        progress = Progress(Store(tmp_path), "run", "steer", len(edits), "edits")
        rows = study(model, live, {}, edits, steer, progress).doses
        assert len(rows) == 2 * 8 * 2
        for row in rows:
            measured = tuple(row[column] for column in ("logit_change", "probability", "kl", "value"))
            found.setdefault((row["site"], row["neuron"], row["dose"]), set()).add(measured)
    assert len(found) == 2 * 8 * 2 and all(len(measured) == 1 for measured in found.values())


def test_controls_are_the_live_units_that_are_as_strong() -> None:
    live = {0: 9.0, 1: 1.0, 2: 1.1, 3: 5.0, 4: 5.2, 5: 4.7, 6: 0.1}
    assert set(control_units(live, {3}, "code-l0", 3, 2)) == {4, 5}
    assert control_units(live, set(live), "code-l0", 3, 2) == []
    alike = dict.fromkeys(range(50), 2.0)
    chosen = [control_units(alike, {0, 1}, "code-l0", unit, 3) for unit in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]


def test_the_prompt_is_none_of_those_on_which_tokens_are_chosen(world: World) -> None:
    held_out = other_prompts("1 2 3 4 5", world.model)
    assert held_out.shape == (len(OTHER_PROMPTS), 8)
    for prompt in ("She opened", OTHER_PROMPTS[3], OTHER_PROMPTS[5] + " the north"):
        ids = prompt_ids(prompt, world.model)[0, :8]
        left = other_prompts(prompt, world.model)
        assert len(left) == len(OTHER_PROMPTS) - 1
        assert not (left[:, : len(ids)] == ids).all(dim=1).any()
