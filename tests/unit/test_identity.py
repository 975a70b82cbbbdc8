"""Identity: nothing stands under two names, and no two things under one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.artifacts.store import Store
from pipeline.config import Config
from pipeline.config_load import LoadedConfig, load_config
from pipeline.dag import Plan, plan
from pipeline.errors import ConfigError
from pipeline.forecast.assumed import assume
from pipeline.forecast.machine import Machine, Rates
from pipeline.forecast.sweep import forecast
from pipeline.naming import names_of
from pipeline.plan import plan_rows, print_plan
from pipeline.pretrain.stage import STAGE as PRETRAIN
from pipeline.sae.planned import planned_sites

SMALL = "model: {n_layer: 1, n_head: 2, d_model: 16, n_ctx: 64}\npretrain: {total_tokens: 5120, batch_tokens: 512}\n"


def loaded(folder: Path, grid: Any, *overrides: str, text: str = SMALL) -> LoadedConfig:
    path = folder / "sweep.yaml"
    path.write_text(text + f"grid: {json.dumps(grid)}\n", "utf-8")
    return load_config(path, overrides)


def read_by(whole: Plan) -> dict[str, set[str]]:
    """The cells that read each text."""
    found: dict[str, set[str]] = {}
    for step in whole.steps.values():
        for name in step.inputs.values():
            if whole.steps[name].stage.name == "tokens":
                found.setdefault(name, set()).add(step.cell)
    return found


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("tokens.val_fraction", [0.1, 0.6]),
        ("tokens.drop_duplicates", [True, False]),
        ("tokens.max_document_bytes", [100, 1000]),
        ("tokens.max_bad_fraction", [0.0, 0.5]),
        ("tokens", [{"val_fraction": 0.1}, {"val_fraction": 0.2}]),
    ],
)
def test_each_text_that_a_grid_asks_for_is_a_step_of_its_own(tmp_path: Path, key: str, values: list[Any]) -> None:
    whole = plan(loaded(tmp_path, {"model.architecture": ["crate", "gpt2"], key: values}))
    texts = read_by(whole)
    assert len(texts) == 2 and all(name.startswith("tokens-") for name in texts)
    assert all(len(cells) == 2 for cells in texts.values())  # both architectures read one text
    for cell in whole.cells:
        text = whole.steps[whole.texts[cell.name]]
        assert cell.name in texts[text.name] and text.settings.tokens == cell.config.tokens
        assert whole.config_of(text).tokens == cell.config.tokens
        assert {s.input_fingerprints.get("tokens", text.fingerprint) for s in whole.of_cell(cell.name)} == {
            text.fingerprint
        }
    trained = [step.fingerprint for name, step in whole.steps.items() if name.endswith("/pretrain")]
    assert len(set(trained)) == len(whole.cells) == 4
    assert list(plan(whole.loaded, until="tokens").steps) == list(texts)


def test_a_sweep_of_one_text_has_one_step_of_that_name(tmp_path: Path) -> None:
    whole = plan(loaded(tmp_path, {"seed": [0, 1], "tokens.expected_text_bytes": [10**9, 10**10]}))
    assert list(read_by(whole)) == ["tokens"] and len(whole.cells) == 2


def test_the_plan_tells_every_text(tmp_path: Path) -> None:
    from rich.console import Console

    whole = plan(loaded(tmp_path, {"tokens.val_fraction": [0.1, 0.2]}))
    rows = plan_rows(whole, Store(tmp_path), {}, assume("h200", 8))
    assert list(rows["texts"]) == ["tokens-val_fraction0.1", "tokens-val_fraction0.2"]
    assert rows["forecast"]["stages"].keys() >= {"tokens", "pretrain"}
    cells = sum(cell["disk_bytes"] for cell in rows["cells"])
    assert rows["totals"]["disk_bytes"] == cells + sum(text["stored_bytes"] for text in rows["texts"].values())
    console = Console(record=True, width=300)
    print_plan(rows, console)
    assert "Tokens-val_fraction0.2: about" in (text := console.export_text()) and "tokens x 2" in text


HOSTILE = [
    "ck/a",
    "ck_a",
    "ck a",
    "CK/A",
    "ck/a/",
    "../ck/a",
    ".",
    "..",
    "",
    "é",
    "è",
    "中",
    "a'b",
    'a"b',
    "a\nb",
    "$(x)",
]
HOSTILE += ["x" * 400, "x" * 401, "-seed1", "1", "1.0", "True", "none", "None", "tokens", "con", "a-b", "a--b"]


@pytest.mark.parametrize("key", ["tokens.text_field", "steer.prompt", "evaluate.prompts", "pretrain.checkpoint"])
def test_hostile_values_give_safe_and_different_names(tmp_path: Path, key: str) -> None:
    values = [[value] for value in HOSTILE] if key == "evaluate.prompts" else HOSTILE
    cells = loaded(tmp_path, {key: values, "seed": [0, 1]}).cells()
    assert len(cells) == 2 * len(HOSTILE)
    assert_names_are_sound([cell.name for cell in cells])


def assert_names_are_sound(names: list[str]) -> None:
    assert len({name.casefold() for name in names}) == len(names)
    assert all(re.fullmatch(r"[a-z][A-Za-z0-9._-]*", name) and len(name) < 200 for name in names)


VALUES = st.one_of(
    st.text(max_size=300),
    st.sampled_from(HOSTILE),
    st.integers(),
    st.booleans(),
    st.none(),
    st.floats(allow_nan=False),
    st.lists(st.one_of(st.text(max_size=20), st.integers()), max_size=4),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
)
POINT = st.tuples(
    st.sampled_from(["crate-1l", "crate-11l", "gpt2-1l"]),
    st.fixed_dictionaries({"seed": VALUES, "sae.tap": VALUES, "activations.tap": VALUES}),
)


@given(st.lists(POINT, max_size=8, unique_by=lambda point: json.dumps(point, sort_keys=True)))
def test_no_two_things_share_a_name(given_points: list[tuple[str, dict[str, Any]]]) -> None:
    assert_names_are_sound(names_of([stem for stem, _ in given_points], [values for _, values in given_points]))


@pytest.mark.parametrize(
    ("grid", "names"),
    [
        (
            {"model.lambda_sparsity": [0.05, 0.1], "seed": [0, 1]},
            [f"crate-1l-lambda_sparsity{x}-seed{s}" for x in (0.05, 0.1) for s in (0, 1)],
        ),
        ({"pretrain.learning_rate": [1e-3, 1e-5]}, ["crate-1l-learning_rate0.001", "crate-1l-learning_rate1e-05"]),
        ({"sae.expansions": [[], [1], [1, 4]]}, ["crate-1l-expansionsnone", "crate-1l-expansions1", "crate-1l-expansions1_4"]),
        ({"pretrain.checkpoint": ["/models/of/a/x", "/models/of/b/x"]}, ["crate-1l-checkpointa_x", "crate-1l-checkpointb_x"]),
        ({"activations.tap": ["code", "out"], "activations.tokens": [64]}, ["crate-1l-tapcode", "crate-1l-tapout"]),
        (
            {"activations.batch_rows": [4, 8], "sae.batch_rows": [8], "sae.expansions": [[1]]},
            ["crate-1l-batch_rows4", "crate-1l-batch_rows8"],
        ),
        (
            {"activations.batch_rows": [4, 8], "sae.batch_rows": [8, 4], "sae.expansions": [[1]]},
            [f"crate-1l-activations.batch_rows{a}-sae.batch_rows{s}" for a in (4, 8) for s in (8, 4)],
        ),
        (
            [{"model.n_layer": [1]}, {"model.n_layer": [1, 2], "model.d_model": [32]}],
            ["crate-1l-d_model16", "crate-1l-d_model32", "crate-2l"],
        ),
        (
            {"model": [{"n_layer": 1, "d_model": 16, "n_head": 2}, {"n_layer": 1, "d_model": 32, "n_head": 2}]},
            ["crate-1l-d_model16", "crate-1l-d_model32"],
        ),
    ],
)  # fmt: skip
def test_names_are_what_varies_in_plain_words(tmp_path: Path, grid: Any, names: list[str]) -> None:
    assert [cell.name for cell in loaded(tmp_path, grid).cells()] == names


LAST = SMALL.replace("batch_tokens: 512", "batch_tokens: 640, keep_log_spaced: true")  # eight steps


@pytest.mark.parametrize(
    ("text", "grid", "n_cells"),
    [
        ("", {"seed": [0, 0]}, 1),
        ("", [{"seed": [0, 1]}, {"seed": [1, 2]}], 3),
        ("", {"pretrain.learning_rate": [1e-3, 0.001]}, 1),
        ("", {"pretrain.decay_fraction": [0.1, 0.2]}, 1),
        ("", {"pretrain.schedule": ["cosine", "wsd"], "pretrain.decay_fraction": [0.1, 0.2]}, 3),
        ("", {"sae.k": [16, 32]}, 1),
        ("", {"sae.expansions": [[], [1]], "sae.variant": ["relu", "topk"], "sae.k": [16, 32]}, 4),
        ("", {"sae.expansions": [[1]], "sae.variant": ["topk"], "sae.resample_steps": [[], [10]]}, 1),
        ("", {"interpret.temperature": [0.0, 0.5], "interpret.control_neurons": [0, 9]}, 1),
        ("", {"interpret.explainer": ["token_table", "http"], "interpret.temperature": [0.0, 0.5]}, 3),
        ("", {"interpret.explainer": ["http"], "interpret.prompts": ["auto", "own", "openai"]}, 2),
        ("", {"interpret.explainer": ["http"], "interpret.simulator": ["auto", "http", "http_numbers"]}, 2),
        ("", {"model.n_layer": [2], "activations.layers": ["all", [0, 1], [1, 0], [1]]}, 2),
        ("", {"model.n_layer": [2], "sae.expansions": [[1]], "sae.layers": ["all", [0, 1], [1]]}, 2),
        ("", {"model.n_layer": [3], "activations.layers": [[0, 2], [2, 0]]}, 1),
        ("", {"model.n_layer": [3], "sae.expansions": [[1]], "sae.layers": [[0, 2], [2, 0]]}, 1),
        ("", {"activations.protocol": ["corrected", "paper"], "activations.quantile_tokens": [64, 128]}, 3),
        ("", {"interpret.explainer": ["http", "transformers"], "interpret.dtype": ["float32", "bfloat16"]}, 3),
        ("", {"interpret.simulator": ["http"], "interpret.temperature": [0.0, 0.5]}, 1),
        ("", {"steer.neurons": [0], "steer.prompt": ["a", "b"]}, 1),
        ("", {"steer.neurons": [0, 2], "steer.prompt": ["a", "b"]}, 3),
        ("", {"steer.edits": [[{"layer": 0, "neuron": 1}]], "steer.neurons": [1, 2]}, 1),
        ("tokens: {source: jsonl, train: [a], val: [b]}\n", {"tokens.val_fraction": [0.1, 0.2]}, 1),
        ("tokens: {source: jsonl, train: [a]}\n", {"tokens.val_fraction": [0.1, 0.2]}, 2),
        ("tokens: {source: text, train: [a]}\n", {"tokens.text_field": ["x", "y"]}, 1),
    ],
)
def test_what_a_model_does_not_use_makes_no_other_model(tmp_path: Path, text: str, grid: Any, n_cells: int) -> None:
    whole = plan(loaded(tmp_path, grid, text=SMALL + text))
    assert len(whole.cells) == n_cells
    ends = [tuple(step.fingerprint for step in whole.of_cell(cell.name)) for cell in whole.cells]
    assert len(set(ends)) == n_cells  # and those that are left differ in what is made


def test_points_that_are_no_other_model_are_told(tmp_path: Path) -> None:
    assert plan(loaded(tmp_path, {"sae.k": [16, 32], "seed": [1, 2]})).points_told.startswith(
        "2 of the grid's 4 points"
    )
    assert plan(loaded(tmp_path, {"seed": [1, 2]})).points_told == ""


def test_the_last_step_is_the_end(tmp_path: Path) -> None:
    cells = loaded(tmp_path, {"checkpoint_step": [4, 8, "last"]}, text=LAST).cells()
    assert [cell.config.checkpoint_step for cell in cells] == [4, "last"]


def test_an_imported_model_is_one_under_every_seed_and_recipe(tmp_path: Path) -> None:
    text = SMALL.replace("512}", "512, checkpoint: some/folder}")
    cells = loaded(tmp_path, {"seed": [0, 1], "pretrain.learning_rate": [1e-3, 1e-4]}, text=text).cells()
    assert [cell.name for cell in cells] == ["crate-1l-seed0", "crate-1l-seed1"]  # other neurons and excerpts are drawn
    assert len({PRETRAIN.fingerprint(PRETRAIN.settings_of(cell.config), {"tokens": "0"}) for cell in cells}) == 1
    trained = [PRETRAIN.settings_of(Config(seed=seed)) for seed in (0, 1)]
    assert len({PRETRAIN.fingerprint(settings, {"tokens": "0"}) for settings in trained}) == 2
    with pytest.raises(ConfigError, match="an imported model has its last weights only"):
        loaded(tmp_path, {"checkpoint_step": [4]}, text=text)


def test_gpt2_is_not_trained_once_for_every_setting_of_crate(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lambda_sparsity only shape\(s\) CRATE"):
        loaded(tmp_path, {"model.architecture": ["crate", "gpt2"], "model.lambda_sparsity": [0.05, 0.1]})


@pytest.mark.parametrize(
    ("grid", "override"),
    [
        ({"model.n_layer": [1, 2]}, "model.n_layer=5"),
        ({"model.n_layer": [1, 2]}, "model={n_layer: 5, d_model: 16, n_head: 2}"),
        ({"model": [{"n_layer": 1}]}, "model.n_layer=5"),
        ([{"seed": [1]}, {"model.architecture": ["gpt2"], "model.n_layer": [1]}], "model.n_layer=5"),
        ({"seed": [1, 2]}, "seed=1"),
        ({"tokens.val_fraction": [0.1]}, "tokens={val_fraction: 0.2}"),
    ],
)
def test_no_override_is_hidden_by_the_grid(tmp_path: Path, grid: Any, override: str) -> None:
    section = override.partition("=")[0].partition(".")[0]
    with pytest.raises(
        ConfigError, match=rf"--set {re.escape(override)} would have no effect: .*sweep.yaml:3 varies {section}"
    ) as told:
        loaded(tmp_path, grid, override)
    assert "--set 'grid={" in told.value.fix
    assert len(loaded(tmp_path, grid, override, "grid={}").cells()) == 1
    with pytest.raises(ConfigError, match=rf"would have no effect: --set grid=.* varies {section}"):
        loaded(tmp_path, {}, override, f"grid={json.dumps(grid)}")


def test_no_override_is_hidden_by_a_later_one(tmp_path: Path) -> None:
    for first, second in (("seed=1", "seed=2"), ("model.n_layer=2", "model={n_head: 2}")):
        with pytest.raises(ConfigError, match=f"--set {first} would have no effect: --set {second}"):
            loaded(tmp_path, {}, first, second)
    assert loaded(tmp_path, {}, "model={n_head: 2}", "model.n_layer=2", "model.n_layer=2").config.model.n_layer == 2


def test_no_override_replaces_a_list_of_grids(tmp_path: Path) -> None:
    grids = [{"model.n_layer": [1, 2]}, {"model.n_layer": [3]}]
    with pytest.raises(ConfigError, match=r"--set grid.seed=\[0, 1\] would replace all of grid, which .*:3 sets"):
        loaded(tmp_path, grids, "grid.seed=[0, 1]")
    cells = loaded(tmp_path, grids[0], "grid.seed=[0, 1]").cells()
    assert {(cell.config.model.n_layer, cell.config.seed) for cell in cells} == {(1, 0), (1, 1), (2, 0), (2, 1)}


@pytest.mark.parametrize(
    ("grid", "what"),
    [
        ({"runtime.micro_batch": [1, 2]}, "runtime.micro_batch, which is of the whole sweep"),
        ({"name": ["a", "b"]}, "name, which is of the whole sweep"),
        ({"report.title": ["a", "b"]}, "report.title, which is of the whole sweep"),
        ({"model.n_layer": [1, 2], "model": [{"n_head": 2}]}, "model.n_layer and model, of which one holds"),
        ({"model.n_layer": []}, "grid.0.model.n_layer: Tuple should have at least 1 item"),
    ],
)
def test_a_grid_that_hides_something_is_refused(tmp_path: Path, grid: Any, what: str) -> None:
    with pytest.raises(ConfigError, match=f"sweep.yaml:3: .*{what}"):
        loaded(tmp_path, grid)


def test_a_key_of_the_file_may_be_varied_by_its_grid(tmp_path: Path) -> None:
    assert [cell.config.model.d_model for cell in loaded(tmp_path, {"model.d_model": [32, 64]}).cells()] == [32, 64]


@pytest.mark.parametrize(
    "override",
    [
        "sae.expansions=[1, 1]",
        "sae.k=[8, 16, 8]",
        "sae.l1=[1e-5, 0.00001]",
        "sae.layers=[0, 0]",
        "activations.layers=[0, 0]",
        "evaluate.prompts=[a, b, a]",
        "interpret.metrics=[anthropic, anthropic]",
    ],
)
def test_nothing_is_made_twice_under_one_name(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError, match="stands here twice"):
        loaded(tmp_path, {}, override)


@pytest.mark.parametrize("values", [[1e-5, 1.0000001e-5], [0.1, 0.1 + 2**-55, 1, 0], [8e-5]])
def test_autoencoders_of_close_sparsities_have_names_of_their_own(tmp_path: Path, values: list[float]) -> None:
    config = loaded(tmp_path, {}, "sae.expansions=[1, 2]", f"sae.l1={json.dumps(values)}").config
    sites = planned_sites(config.sae, config.model)
    assert len({site.name for site in sites}) == len(sites) == 2 * len(values)
    assert {site.name for site in sites if site.sparsity == 1e-5} <= {f"code-l0-{n}x-l1_1e-05" for n in (1, 2)}


def test_the_forecast_reckons_each_text_by_its_own_size(tmp_path: Path) -> None:
    given = loaded(tmp_path, {"tokens.val_fraction": [0.1, 0.2]})
    sizes = {"tokens-val_fraction0.1": 10**9, "tokens-val_fraction0.2": 10**12}
    tasks = forecast(given, Machine(8, 64, 989e12), text_bytes=sizes).timeline.tasks
    small, large = (tasks[name].work.seconds for name in sizes)
    assert large > 100 * (small - Rates().stage_start_seconds) > 0
    for value in ("0.1", "0.2"):
        assert tasks[f"crate-1l-val_fraction{value}/pretrain"].waits_for == (f"tokens-val_fraction{value}",)
    evaluations = [tasks[f"crate-1l-val_fraction{value}/evaluate"].work.seconds for value in ("0.1", "0.2")]
    assert evaluations[0] < evaluations[1]  # of all of its own val text
