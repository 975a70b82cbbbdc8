"""`python -m pipeline steer`, `sample` and `export-sae`: models and autoencoders of a run, and ones that come from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sae_world import World, site

from crate_model.checkpoint import save_checkpoint
from crate_model.config import SAEConfig
from crate_model.sae import SparseAutoencoder
from pipeline.artifacts.saelens import export_saelens, import_saelens
from pipeline.artifacts.saes import load_sae, write_sae
from pipeline.cli import main

Told = Callable[..., str]


def autoencoder(d_in: int = 64) -> SparseAutoencoder:
    torch.manual_seed(4)
    return SparseAutoencoder(SAEConfig(d_in, 2 * d_in)).eval()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A run with a model and its autoencoder; beside the store an imported model and autoencoders of all kinds."""
    root = tmp_path_factory.mktemp("commands")
    world = World(root / "store", vocab_size=50304)
    trained_on = {"pretrain": world.pretrain.fingerprint}
    sae = world.publish(
        "sae", "5" * 32, lambda f: write_sae(f, site(), autoencoder(), trained_on), {"sites": [vars(site())]}
    )
    steps = {"crate-2l/pretrain": world.pretrain, "crate-2l/sae": sae}
    recipes = {
        step: {"stage": step.split("/")[1], "fingerprint": made.fingerprint, "settings": {}}
        for step, made in steps.items()
    }
    world.store.write_note("run", "plan.json", json.dumps({"steps": recipes}).encode())
    save_checkpoint(world.model, root / "imported-2l")
    write_sae(root, site("own"), autoencoder(), trained_on)
    write_sae(root, site("other-model"), autoencoder(), {"pretrain": "9" * 32})
    write_sae(root, site("other-tap", layer=7), autoencoder(), trained_on)
    export_saelens(autoencoder(), "blocks.1.code", root / "theirs")
    export_saelens(autoencoder(), "blocks.1.hook_z", root / "their-other-tap")
    export_saelens(autoencoder(32), "blocks.1.code", root / "too-narrow")
    return world


@pytest.fixture
def told(world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Told:
    """Runs a command in the folder of the store and gives what it says; a wrong wish is told in two lines, with status 2."""

    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str, status: int = 0) -> str:
        place = ["--store", str(world.store.root)]
        found = [str(world.store.root.parent / a[2:]) if a.startswith("./") else a for a in arguments]
        assert main([*found[:1], *place, *found[1:]]) == status
        said = capsys.readouterr()
        if status:
            assert len(said.err.splitlines()) == 2
        return said.err if status else said.out

    return call


OF_RUN = ("--run", "run", "--cell", "crate-2l")
SHORT = ("--tokens", "3", "--top", "3")
UNIT = ("--layer", "0", "--neuron", "12", "--value", "5")


def test_the_command_of_the_documentation(told: Told) -> None:
    text = told("steer", *OF_RUN, *UNIT, "--prompt", "1 2 3 4 5")
    assert "clamp neuron 12 of code-l0 to 5, prompt '1 2 3 4 5'" in text
    assert "most promoted" in text and "most suppressed" in text
    assert "\nsteered" in text and "\nplain" in text
    assert "the largest change of any logit is 0." in text


def test_an_imported_model_is_steered_like_the_run_it_is_equal_to(told: Told) -> None:
    assert told("steer", "--checkpoint", "./imported-2l", *UNIT, *SHORT) == told("steer", *OF_RUN, *UNIT, *SHORT)


def test_imported_models_stand_beside_those_of_a_run(told: Told) -> None:
    text = told("sample", "--run", "run", "--checkpoint", "./imported-2l", "--prompt", "Beijing is", "--tokens", "4")
    assert text.count("crate-2l") == text.count("imported-2l") == 2
    alone = told("sample", "--checkpoint", "./imported-2l", "--prompt", "Beijing is", "--tokens", "4")
    assert text.split("imported-2l")[-1] == alone.split("imported-2l")[-1]


def test_folders_of_one_name_are_models_of_their_own(told: Told, world: World) -> None:
    root = world.store.root.parent
    for folder in ("a/m", "b/m", "crate-2l"):
        save_checkpoint(world.model, root / folder)
    text = told("sample", "--checkpoint", "./a/m", "./b/m", "--prompt", "Beijing is", "--tokens", "2")
    assert text.count(str(root / "a/m")) == text.count(str(root / "b/m")) == 2
    text = told("sample", "--run", "run", "--checkpoint", "./crate-2l", "--prompt", "Beijing is", "--tokens", "2")
    assert text.count(str(root / "crate-2l")) == 2 and text.count("crate-2l") == 4


def test_a_feature_with_its_error_kept_or_not(told: Told) -> None:
    feature = (*OF_RUN, *UNIT, "--site", "code-l0-2x", *SHORT)
    assert "(with the error kept)" in told("steer", *feature)
    assert "(through the reconstruction)" in told("steer", *feature, "--no-keep-error")


@pytest.mark.parametrize(("folder", "layer"), [("own", "0"), ("theirs", "1")])
def test_an_autoencoder_that_lies_elsewhere(told: Told, folder: str, layer: str) -> None:
    text = told("steer", *OF_RUN, "--layer", layer, "--neuron", "100", "--value", "2", "--sae", f"./{folder}", *SHORT)
    assert f"clamp feature 100 of {folder} to 2" in text


def test_an_autoencoder_of_earlier_weights_of_the_model_is_refused(told: Told, world: World) -> None:
    making = world.store.making_folder("6" * 32)
    write_sae(making, site(), autoencoder(), {"pretrain": world.pretrain.fingerprint})
    recipe = {"stage": "sae", "version": 1, "fingerprint": "6" * 32, "settings": {"checkpoint_step": 4}, "inputs": {}}
    early = world.store.publish(making, recipe, {}, {}).folder / "code-l0-2x"
    said = told("steer", *OF_RUN, *UNIT, "--sae", str(early), *SHORT, status=2)
    assert "was trained on the weights of another step: 4, not last" in said
    own = world.store.get("sae", "5" * 32).folder / "code-l0-2x"
    assert "clamp feature 12 of code-l0-2x to 5" in told("steer", *OF_RUN, *UNIT, "--sae", str(own), *SHORT)


def test_export_sae_writes_what_saelens_reads(told: Told, world: World, tmp_path: Path) -> None:
    told("export-sae", *OF_RUN, "--site", "code-l0-2x", "--out", str(tmp_path / "out"))
    back, point = import_saelens(tmp_path / "out")
    v = torch.rand(5, 64)
    assert point == "blocks.0.code"
    assert torch.equal(back.encode(v), load_sae(world.store.all_of("sae")[0], "code-l0-2x").encode(v))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--sae", "./other-model"), "trained on another model"),
        (("--sae", "./other-tap"), "other-tap reads blocks.7.code, which this model has not"),
        (("--sae", "./their-other-tap"), "reads blocks.1.hook_z, which this model has not"),
        (("--sae", "./too-narrow", "--layer", "1"), "reads vectors of 32, but blocks.1.code has 64"),
        (("--sae", "./theirs"), "theirs is of blocks.1.code, not of layer 0"),
        (("--sae", "./imported-2l"), "holds no sparse autoencoder"),
        (("--sae", "./nowhere"), "holds no sparse autoencoder"),
        (("--site", "code-l1-2x"), "no sparse autoencoder 'code-l1-2x'"),
        (("--layer", "2"), "no layer 2"),
        (("--neuron", "64"), "no neuron 64"),
        (("--neuron", "-1"), "edits.0.neuron"),
        (("--neuron", "128", "--site", "code-l0-2x"), "no feature 128"),
        (("--value", "nan"), "edits.0.value"),
        (("--value", "inf"), "edits.0.value"),
        (("--value", "1e30"), "the logits are no numbers"),
        (("--prompt", ""), "the prompt is empty"),
        (("--prompt", "word " * 40), "the model's context is 32"),
        (("--positions", "5"), "no position 5"),
    ],
)
def test_wrong_wishes_are_one_clear_error_each(told: Told, arguments: tuple[str, ...], said: str) -> None:
    assert said in told("steer", *OF_RUN, *UNIT, *SHORT, *arguments, status=2)


@pytest.mark.parametrize("arguments", [("steer", *UNIT), ("steer", "--run", "run", *UNIT), ("sample",)])
def test_a_model_has_to_be_named(told: Told, arguments: tuple[str, ...]) -> None:
    assert "no model is named" in told(*arguments, status=2)


def test_a_folder_without_a_model(told: Told) -> None:
    assert "theirs holds no model" in told("sample", "--checkpoint", "./theirs", status=2)
