"""What `config_used.py` calls unused changes nothing: real stages, run twice, with other values of all that is not used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from interpret_world import planted
from sae_world import SETTINGS as SAE
from sae_world import World, changed
from tokens_lab import contents, make, record, write_lines

from crate_model.checkpoint import save_checkpoint
from crate_model.config import ModelConfig
from pipeline.artifacts.manifest import list_files
from pipeline.config import (
    ActivationsConfig,
    Config,
    InterpretConfig,
    PretrainConfig,
    SAEConfigSection,
    Section,
    SteerConfig,
    SteerEdit,
    TokensConfig,
)
from pipeline.config_used import unused_settings
from pipeline.interpret.offline import score_offline
from pipeline.interpret.reading import sites_of
from pipeline.interpret.stage import Settings as InterpretSettings
from pipeline.pretrain.job import PretrainSettings
from pipeline.pretrain.schedule import learning_rate
from pipeline.pretrain.stage import STAGE as PRETRAIN
from pipeline.sae import group
from pipeline.sae.planned import planned_sites
from pipeline.sae.stage import Settings as SAESettings
from pipeline.steer.stage import STAGE as STEER
from pipeline.steer.stage import Settings as SteerSettings


def both(config: Config, name: str) -> list[Any]:
    """A section of a configuration as it is, and with other values of all that is not used."""
    section: Section = getattr(config, name)
    (unused,) = [keys for other, _, keys in unused_settings(config) if other == name]
    values = dict(section)
    changed = {key: other(values[key]) for key in unused}
    assert changed and all(changed[key] != values[key] for key in changed)
    return [section, type(section).model_construct(**values | changed)]


def other(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value * 2 + 1
    return f"{value}x" if isinstance(value, str) else (*value, 3)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"), vocab_size=50304)


@pytest.mark.parametrize("kind", ["split", "text"])
def test_tokens(tmp_path: Path, kind: str) -> None:
    files = {s: write_lines(tmp_path / s / "a.jsonl", [record(f"{s} {n}") for n in range(9)]) for s in ("train", "val")}
    if kind == "split":
        config = TokensConfig(source="jsonl", train=(str(files["train"]),), val=(str(files["val"]),))
    else:
        for number in range(40):
            (tmp_path / f"{number}.txt").write_text(f"text {number}", "utf-8")
        config = TokensConfig(source="text", train=(f"{tmp_path}/*.txt",), val_fraction=0.5)
    one, two = (contents(make(tmp_path / f"store{n}", c)) for n, c in enumerate(both(Config(tokens=config), "tokens")))
    assert one == two and one["summary"]["train"]["n_documents"] > 1


def test_the_schedule() -> None:
    sections = both(Config(pretrain=PretrainConfig(warmup_steps=2)), "pretrain")
    one, two = ([learning_rate(recipe, step, 9) for step in range(10)] for recipe in sections)
    assert one == two and len(set(one)) > 5


def test_an_imported_model(tmp_path: Path, world: World) -> None:
    save_checkpoint(world.model, tmp_path / "model")
    recipe = PretrainConfig(checkpoint=str(tmp_path / "model"))

    def take(asked: tuple[int, PretrainConfig]) -> dict[str, Any]:
        out = tmp_path / str(asked[0])
        out.mkdir()
        summary = PRETRAIN.run(PretrainSettings(asked[0], world.model.config, asked[1]), {}, out, world.context())
        return {file.name: file.sha256 for file in list_files(out)} | {"summary": summary}

    one, two = map(take, enumerate(both(Config(pretrain=recipe), "pretrain")))
    assert one == two and one["summary"]["optimizer"] == "imported"


@pytest.mark.parametrize("resample_steps", [(5, 10), ()])
@pytest.mark.parametrize("variant", ["relu", "topk", "batchtopk", "jumprelu"])
def test_autoencoders(world: World, variant: str, resample_steps: tuple[int, ...]) -> None:
    asked = changed(SAE, variant=variant, k=(3,), expansions=(1,), total_tokens=20 * 64, resample_steps=resample_steps)

    def train(asked: tuple[int, SAEConfigSection]) -> Any:
        number, sae = asked
        sites = planned_sites(sae, world.model.config)
        context = world.context(f"{number}{len(resample_steps)}{variant:0>30}")
        found = group.make_group(SAESettings(0, sae), world.inputs, sites, context, leads=True)
        weights = [file.sha256 for file in list_files(group.made_folder(context))]
        return found.measures, found.curves.to_pylist(), found.densities.to_pylist(), weights

    one, two = map(train, enumerate(both(Config(sae=asked, model=world.model.config), "sae")))
    assert one == two and len(one[3]) == 2 * len(one[0]) > 0


def test_the_token_table(tmp_path: Path) -> None:
    tokens, records, _ = planted(tmp_path, n_neurons=4)
    sections = both(Config(interpret=InterpretConfig()), "interpret")
    settings = [InterpretSettings(0, ModelConfig(), ActivationsConfig(), config) for config in sections]
    one, two = (score_offline(own, tokens, records, sites_of(records)[0]) for own in settings)
    assert one.rows == two.rows and one.neurons.equals(two.neurons) and one.rows["anthropic"]["n_neurons"] == 4


@pytest.mark.parametrize(
    "asked",
    [{"edits": (SteerEdit(layer=0, neuron=1, value=2.0),)}, {}, {"temperature": 0.0}, {"sample_tokens": 0}],
    ids=str,
)
def test_steering(tmp_path: Path, world: World, asked: dict[str, Any]) -> None:
    usual: dict[str, Any] = {"neurons": 1, "sample_tokens": 2, "top_words": 2, "controls": 1, "doses": (1.0,)}
    steer = SteerConfig(**usual | asked)
    inputs = {"pretrain": world.pretrain, "activations": world.publish_records(), "interpret": world.publish_scores()}

    def study(asked: tuple[int, SteerConfig]) -> dict[str, str]:
        out = tmp_path / str(asked[0])
        out.mkdir()
        STEER.run(SteerSettings(asked[1]), inputs, out, world.context("7" * 32, "steer"))
        return {file.name: file.sha256 for file in list_files(out)}

    one, two = map(study, enumerate(both(Config(steer=steer), "steer")))
    assert one == two and one
