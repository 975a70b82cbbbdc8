"""The stage on Ray makes what the core makes alone, whatever the grouping."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sae_world import World, changed

from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.saes import load_sae, read_curves, read_densities, read_measures, sites
from pipeline.config import SAEConfigSection
from pipeline.errors import ConfigError, StageError
from pipeline.sae.group import made_folder, make_group
from pipeline.sae.planned import planned_sites
from pipeline.sae.stage import STAGE, Settings

SETTINGS = changed(expansions=(1, 2), resample_steps=(10,), total_tokens=20 * 64)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("on_ray"))


def staged(world: World, fingerprint: str, settings: SAEConfigSection = SETTINGS, **runtime: Any) -> Artifact:
    context = world.context(fingerprint, **runtime)
    return world.publish(
        "sae", fingerprint, lambda folder: STAGE.run(Settings(0, settings), world.inputs, folder, context)
    )


def test_adapter_and_core_make_the_same_artifact(world: World, ray_cluster: dict[str, float]) -> None:
    context = world.context("c" * 32)
    planned = planned_sites(SETTINGS, world.model.config)
    core = make_group(Settings(0, SETTINGS), world.inputs, planned, context, True)
    weights = {p.relative_to(made_folder(context)): p.read_bytes() for p in made_folder(context).rglob("*.safetensors")}
    for fingerprint, workers in (("d" * 32, 1), ("e" * 32, 2)):
        artifact = staged(world, fingerprint, workers_per_cell=workers)
        assert sites(artifact) == planned
        assert {name: (artifact.folder / name).read_bytes() for name in weights} == weights
        assert read_measures(artifact).to_pylist() == core.measures
        assert read_densities(artifact).equals(core.densities)
        assert read_curves(artifact).sort_by("site").equals(core.curves.sort_by("site"))
        assert load_sae(artifact, planned[0]).config.d_in == world.model.config.d_code
        assert set(artifact.summary["measures"]) == {one.name for one in planned}


def test_a_workers_error_reaches_the_driver_in_two_lines(world: World, ray_cluster: dict[str, float]) -> None:
    with pytest.raises(StageError, match=r"the loss of code-l0-1x is (nan|inf)") as caught:
        staged(world, "f" * 32, changed(SETTINGS, learning_rate=1e30, resample_steps=()))
    assert "sae.learning_rate" in caught.value.fix


def test_a_layer_that_is_not_there_is_told_before_anything_starts(world: World, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="layer 7"):
        STAGE.run(Settings(0, changed(layers=(7,))), world.inputs, tmp_path, world.context("b" * 32))
