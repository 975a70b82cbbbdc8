"""Every mistake in a configuration is told with its file, its line and the nearest right key."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config_load import describe, load_config
from pipeline.errors import ConfigError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def write(folder: Path, text: str) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_in_the_repository_loads(path: Path) -> None:
    loaded = load_config(path)
    assert loaded.cells()


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("name: a\nmodel:\n  n_layers: 3\n", "sweep.yaml:3: no such key 'model.n_layers'; did you mean 'n_layer'?"),
        ("learning_rate: 3\n", "sweep.yaml:1: no such key 'learning_rate'; did you mean 'pretrain.learning_rate'?"),
        ("pretrain:\n  precision: bf17\n", "sweep.yaml:2: pretrain.precision: Input should be"),
        ("model:\n  d_model: 7\n", "sweep.yaml:1: model: d_model 7"),
        ("grid:\n  model.depth: [1]\n", "sweep.yaml:1: no such key 'model.depth'"),
        ("a: 1\na: 2\n", "sweep.yaml:2: the key 'a' stands here twice"),
        (
            "pretrain:\n  keep_log_spaced: true\ncheckpoint_step: 3\n",
            "sweep.yaml:3: checkpoint_step: the weights of this step are not kept: those of 1, 2, 4, ... up to 600000 are",
        ),
        ("grid:\n  checkpoint_step: [4, last]\n", "sweep.yaml:1: checkpoint_step: only the last weights are kept"),
        ("- 1\n", "sweep.yaml:1: a configuration is a mapping"),
        ("name: [\n", "sweep.yaml:2: not valid YAML"),
    ],
)
def test_a_mistake_is_told_with_its_place(tmp_path: Path, text: str, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text))
    assert what in caught.value.what
    assert caught.value.fix


def test_a_missing_file_and_a_bad_override(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        load_config(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="not of the form key=value"):
        load_config(write(tmp_path, "name: a\n"), ["pretrain"])
    with pytest.raises(ConfigError, match=r"--set seed=x: seed"):
        load_config(write(tmp_path, "name: a\n"), ["seed=x"])


def test_numbers_are_read_as_people_write_them(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "pretrain:\n  learning_rate: 6e-4\n"), ["pretrain.epsilon=1e-9"]).config
    assert config.pretrain.learning_rate == 6e-4
    assert config.pretrain.epsilon == 1e-9


def test_grids_are_products_joined_and_merged(tmp_path: Path) -> None:
    text = """
model: {d_model: 128, n_head: 4}
grid:
  - {model.architecture: [crate, gpt2], model.n_layer: [1, 2]}
  - {model.architecture: [crate], model.n_layer: [2, 3]}
"""
    names = [cell.name for cell in load_config(write(tmp_path, text)).cells()]
    assert names == ["crate-1l", "crate-2l", "gpt2-1l", "gpt2-2l", "crate-3l"]


def test_other_varying_keys_name_their_cells(tmp_path: Path) -> None:
    text = "model: {n_layer: 1}\ngrid: {model.lambda_sparsity: [0.05, 0.1], seed: [1]}\n"
    names = [cell.name for cell in load_config(write(tmp_path, text)).cells()]
    assert names == ["crate-1l-lambda_sparsity0.05", "crate-1l-lambda_sparsity0.1"]


def test_what_does_not_tell_two_cells_apart_is_not_in_their_names(tmp_path: Path) -> None:
    text = "grid: [{model.n_layer: [1], sae.expansions: [[1]]}, {model.n_layer: [2]}]\n"
    cells = load_config(write(tmp_path, text)).cells()
    assert [(cell.name, cell.config.sae.expansions) for cell in cells] == [("crate-1l", (1,)), ("crate-2l", ())]


def test_show_says_where_each_value_comes_from(tmp_path: Path) -> None:
    loaded = load_config(write(tmp_path, "seed: 3\n"), ["model.n_layer=2"])
    places = {key: (value, place) for key, value, place in describe(loaded)}
    assert places["seed"][0] == 3 and places["seed"][1].endswith("sweep.yaml:1")
    assert places["model.n_layer"] == (2, "--set model.n_layer=2")
    assert places["model.n_head"][1] == "default"
