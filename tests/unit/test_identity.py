"""Identity: nothing stands under two names, and no two things under one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts.store import Store
from pipeline.config_load import LoadedConfig, load_config
from pipeline.dag import Plan, plan
from pipeline.forecast.assumed import assume
from pipeline.plan import plan_rows, print_plan

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
