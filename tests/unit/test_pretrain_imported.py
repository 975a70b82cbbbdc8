"""An imported checkpoint in the place of a training: the same artifact for all that follows, autoencoders and steering too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sae_world import SETTINGS as SAE
from sae_world import World, changed

from crate_model.checkpoint import save_checkpoint
from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.checkpoint import load_model, model_config, read_curve
from pipeline.artifacts.saes import read_measures
from pipeline.config import PretrainConfig
from pipeline.errors import ConfigError
from pipeline.pretrain.__main__ import main
from pipeline.pretrain.job import PretrainSettings
from pipeline.pretrain.stage import STAGE, check


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = World(tmp_path_factory.mktemp("imported") / "store")
    save_checkpoint(world.model, folder(world))
    return world


def folder(world: World) -> Path:
    return world.store.root.parent / "checkpoint"


def settings(world: World, **model: int) -> PretrainSettings:
    recipe = PretrainConfig(checkpoint=str(folder(world)), total_tokens=5 * 10**9)
    return PretrainSettings(0, replace(world.model.config, **model), recipe)


def taken(world: World) -> Artifact:
    def run(out: Path) -> dict:
        return STAGE.run(settings(world), {"tokens": world.tokens}, out, world.context("b" * 32, "pretrain"))

    return world.store.find("pretrain", "b" * 32) or world.publish("pretrain", "b" * 32, run)


def test_its_weights_are_the_checkpoints_and_nothing_was_trained(world: World) -> None:
    made = taken(world)
    assert model_config(made) == world.model.config
    for name, tensor in load_model(made).state_dict().items():
        assert torch.equal(tensor, world.model.state_dict()[name]), name
    assert read_curve(made).num_rows == 0
    assert made.summary["train_tokens"] == 5 * 10**9
    of_positions = world.model.embed.positions.weight.numel()
    assert made.summary["n_params"] == sum(weight.numel() for weight in world.model.parameters()) - of_positions
    assert made.summary["n_params_with_positions"] - made.summary["n_params"] == of_positions


def test_it_is_not_trained_by_hand(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(f"pretrain: {{checkpoint: {folder(world)}}}\nruntime: {{store: {tmp_path}/store}}\n", "utf-8")
    assert main(["--config", str(config)]) == ConfigError.exit_code
    assert "crate-12l is an imported model: there is nothing to train" in capsys.readouterr().err


def test_autoencoders_are_trained_on_it(world: World, ray_cluster: dict[str, float]) -> None:
    from pipeline.sae.stage import STAGE as SAE_STAGE
    from pipeline.sae.stage import Settings

    wanted = Settings(0, changed(SAE, total_tokens=128, resample_steps=()))
    inputs = {"tokens": world.tokens, "pretrain": taken(world)}
    made = world.publish("sae", "d" * 32, lambda out: SAE_STAGE.run(wanted, inputs, out, world.context("d" * 32)))
    assert read_measures(made)["site"].to_pylist() == ["code-l0-2x", "code-l1-2x"]


def test_the_key_enters_the_fingerprint_only_where_it_is_used(world: World) -> None:
    assert "checkpoint" not in PretrainConfig().model_dump()
    assert settings(world).pretrain.model_dump()["checkpoint"] == str(folder(world))


def test_another_shape_or_no_checkpoint_is_told_before_anything_starts(world: World, tmp_path: Path) -> None:
    check(settings(world))
    with pytest.raises(ConfigError, match="has n_layer 2, n_ctx 32"):
        check(settings(world, n_layer=1, n_ctx=16))
    with pytest.raises(ConfigError, match=r"no config\.json"):
        check(replace(settings(world), pretrain=PretrainConfig(checkpoint=str(tmp_path))))
