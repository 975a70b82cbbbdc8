"""Every stage that reads a model's weights reads those of the step that it is told."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from sae_world import SETTINGS, World, changed, make_model

from crate_model.checkpoint import save_checkpoint
from pipeline.activations import stage as activations
from pipeline.artifacts import steering
from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.checkpoint import KeptStep, load_model
from pipeline.artifacts.records import Records
from pipeline.cli import main
from pipeline.config import SteerConfig
from pipeline.errors import ArtifactError
from pipeline.sae import stage as sae
from pipeline.sae.group import make_group
from pipeline.sae.planned import planned_sites
from pipeline.steer import stage as steer
from tests.unit import activation_cases as cases

STEP = 4


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("kept"), vocab_size=50304)


@pytest.fixture(scope="module")
def longer(world: World) -> Artifact:
    """A training whose weights after `STEP` are those that the world's own training ended with."""

    def write(folder: Path) -> None:
        last = make_model(vocab_size=50304)
        with torch.no_grad():
            for weight in last.parameters():
                weight += 0.5 * torch.randn_like(weight)
        save_checkpoint(last, folder)
        save_checkpoint(world.model, folder / "steps" / str(STEP))

    return world.publish("pretrain", "9" * 32, write)


def readings(world: World, longer: Artifact) -> list[tuple[Artifact, KeptStep]]:
    """The same weights by two ways, and others."""
    return [(world.pretrain, "last"), (longer, STEP), (longer, "last")]


def test_autoencoders_are_trained_on_them(world: World, longer: Artifact) -> None:
    short = changed(SETTINGS, total_tokens=512, resample_steps=())
    made = []
    for place, (pretrain, step) in enumerate(readings(world, longer)):
        inputs, context = {"tokens": world.tokens, "pretrain": pretrain}, world.context(f"{place}" * 32)
        made.append(
            make_group(sae.Settings(0, short, step), inputs, planned_sites(short, world.model.config), context, True)
        )
    assert made[0].measures == made[1].measures != made[2].measures


def test_edits_are_of_them(world: World, longer: Artifact) -> None:
    inputs = {"activations": world.publish_records(), "interpret": world.publish_scores()}
    asked = SteerConfig(neurons=1, sample_tokens=2, top_words=3, controls=1, doses=(1.0,))

    def effects(place: int, pretrain: Artifact, step: KeptStep) -> pa.Table:
        settings, given = steer.Settings(asked, step), inputs | {"pretrain": pretrain}
        context = world.context(f"{place}" * 32, "steer")
        run = partial(steer.run, settings, given, context=context)
        return steering.read_effects(world.publish("steer", f"{place}e" * 16, run))

    made = [effects(place, *which) for place, which in enumerate(readings(world, longer))]
    assert made[0].equals(made[1]) and not made[0].equals(made[2])


def test_neurons_are_read_of_them(world: World, longer: Artifact) -> None:
    asked = cases.settings(tokens=1400, tokens_short=600)
    made = []
    for place, (pretrain, step) in enumerate(readings(world, longer)):
        settings = activations.Settings(asked.seed, asked.activations, step)
        inputs = {"tokens": world.tokens, "pretrain": pretrain}
        made.append(Records(cases.extract(world.store, settings, inputs, fingerprint=f"{place}a" * 16)).statistics(1))
    assert made[0].equals(made[1]) and not made[0].equals(made[2])


def test_a_cell_s_samples_are_of_them(world: World, longer: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for place, (pretrain, step) in enumerate(readings(world, longer)):
        evaluate = {"stage": "evaluate", "fingerprint": "0" * 32, "settings": {"checkpoint_step": step}}
        trained = {"stage": "pretrain", "fingerprint": pretrain.fingerprint, "settings": {}}
        steps = {"cell/pretrain": trained, "cell/evaluate": evaluate}
        world.store.write_note(f"run{place}", "plan.json", json.dumps({"steps": steps}).encode())
        assert main(["sample", "--run", f"run{place}", "--store", str(world.store.root), "--tokens", "3"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != said[2]


def test_a_step_that_was_not_kept_is_told(world: World) -> None:
    with pytest.raises(ArtifactError, match="steps/4"):
        load_model(world.pretrain, STEP)
