"""Every setting is in the identity of exactly what it changes, as the tables of docs/architecture.md say."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.manifest import Manifest
from pipeline.config import Config, SteerEdit
from pipeline.config_load import LoadedConfig, load_config
from pipeline.dag import Plan, Step, plan, report_step
from pipeline.errors import ConfigError
from pipeline.stage import canonical

DOCS = Path(__file__).parents[2] / "docs" / "architecture.md"
BASE = """
model: {n_layer: 2, n_head: 2, d_model: 16, n_ctx: 64}
tokens: {source: jsonl, train: [a]}
pretrain: {total_tokens: 5120, batch_tokens: 512, keep_log_spaced: true}
sae: {expansions: [1]}
"""
GPT2 = ("model.bias", "model.activation")  # refused for CRATE
OTHERS = {  # where a number a little larger, or another of the choices, would be no configuration
    "checkpoint_step": [4],
    "grid": [[{"seed": [0]}]],
    "name": ["other"],
    "activations.layers": [[1]],
    "sae.layers": [[1]],
    "tokens.source": ["parquet"],
    "pretrain.checkpoint": ["folder"],
    "interpret.simulator": ["http_numbers"],
    "interpret.prompts": ["openai"],
    "steer.edits": [[{"layer": 0, "neuron": 1}]],
}


def leaves(section: Any = Config, above: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, annotation, default) of every setting of the tree."""
    if dataclasses.is_dataclass(section):
        fields = {f.name: (f.type, f.default) for f in dataclasses.fields(section)}
        hints = {"bool": bool, "int": int, "float": float}
        fields = {name: (hints.get(str(kind), kind), default) for name, (kind, default) in fields.items()}
    else:
        fields = {name: (field.annotation, field.default) for name, field in section.model_fields.items()}
    for name, (kind, default) in fields.items():
        if isinstance(default, BaseModel) or dataclasses.is_dataclass(default):
            yield from leaves(type(default), f"{above}{name}.")
        else:
            yield f"{above}{name}", kind, default


LEAVES = {key: (kind, default) for key, kind, default in leaves()}


def others(key: str, now: Any) -> Iterator[Any]:
    """Values that the setting might have instead; some may be refused."""
    yield from OTHERS.get(key, [])
    kind = LEAVES[key][0]
    choices = [c for part in (kind, *get_args(kind)) for c in get_args(part)] + re.findall(r"'(\w+)'", str(kind))
    yield from (choice for choice in choices if isinstance(choice, str) and choice != now)
    if isinstance(now, bool):
        yield not now
    elif isinstance(now, int):
        yield from (2 * now, now + 1, 1)
    elif isinstance(now, float):
        yield from (now / 2, now + 0.5)
    elif isinstance(now, str):
        yield from (f"{now}x", 1, True)
    elif isinstance(now, list | tuple):
        yield from ([*now, 1], [1], [2], [0.5], ["x"], ["top_and_random"])


@cache
def table(number: int) -> list[list[str]]:
    """The rows of one of the tables of the section."""
    section = DOCS.read_text("utf-8").partition("## What a setting changes\n")[2].partition("\n## ")[0]
    blocks = [block for block in section.split("\n\n") if block.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in blocks[number].splitlines()[2:]]


def named(cell: str) -> list[str]:
    """The settings that a cell of a table names, with `*` and `{a,b}` spelled out."""
    patterns = []
    for name in re.findall(r"`([^`]+)`", cell):
        before, brace, rest = name.partition("{")
        patterns += [before + end for end in rest.rstrip("}").split(",")] if brace else [name]
    found = [key for pattern in patterns for key in LEAVES if fnmatch.fnmatch(key, pattern)]
    assert len(found) >= len(patterns), f"no such setting: {cell}"
    return found


def first_steps(key: str) -> set[str]:
    """What the docs say; of two rows the one that names the setting in full."""
    rows = [row for row in table(0) if key in named(row[0])]
    row = next((row for row in rows if f"`{key}`" in row[0]), rows[0])
    return set() if row[1].startswith("none") else set(row[1].split(", "))


def beside(cell: str) -> dict[str, Any]:
    """A cell's YAML as leaves of the tree."""
    (text,) = re.findall(r"`([^`]+)`", cell)
    (item,) = yaml.safe_load(text).items()
    return {f"{item[0]}.{k}": v for k, v in item[1].items()} if isinstance(item[1], dict) else dict([item])


def used_with(key: str) -> dict[str, Any]:
    """What has to be set beside a setting so that it is used."""
    found = {"model.architecture": "gpt2"} if key in GPT2 else {}
    for row in table(1):
        if key in named(row[0]) and not beside(row[1]).keys() & {key}:
            found |= beside(row[1])
    return found


def load(folder: Path, values: dict[str, Any], grid: Any = None) -> LoadedConfig:
    path = folder / "sweep.yaml"
    path.write_text(BASE + (f"grid: {json.dumps(grid)}\n" if grid else ""), "utf-8")
    return load_config(path, [f"{key}={json.dumps(value)}" for key, value in values.items()])


def pair(folder: Path, key: str, around: dict[str, Any]) -> tuple[Plan, Plan, list[Any]]:
    """The plans without and with a change of a setting, and its two values."""
    before = load(folder, around)
    now: Any = before.config
    for name in key.split("."):
        now = getattr(now, name)
    for other in others(key, now):
        try:
            after = load(folder, around | {key: other})
        except ConfigError:
            continue
        if after.config != before.config:
            return plan(before), plan(after), [canonical_of(now), other]
    raise AssertionError(f"no other value of {key} was found")


def canonical_of(value: Any) -> Any:
    return json.loads(json.dumps(value, default=lambda model: model.model_dump(mode="json")))


def steps_of(whole: Plan, cell: str) -> dict[str, Step]:
    """The steps that a cell needs, by stage, and the report over them."""
    steps = {step.stage.name: step for step in [whole.steps[whole.texts[cell]], *whole.of_cell(cell)]}
    made = {s.name: Artifact(Path(), Manifest(name, 1, s.fingerprint, {}, {}, (), {})) for name, s in steps.items()}
    return steps | {"report": report_step(whole, made, {})}


def check_changed(before: dict[str, Step], after: dict[str, Step], first: set[str]) -> None:
    """Of the steps on both sides, those of `first` have other settings, and they and what follows other fingerprints."""
    both = before.keys() & after.keys()
    own = {name for name in both if canonical(before[name].settings) != canonical(after[name].settings)}
    assert own - {"report"} == (first & both) - {"report"}
    changed = {name for name in both if before[name].fingerprint != after[name].fingerprint}
    expected = set(first & both)
    for name, step in before.items():  # inputs come first
        if name in both and (expected & step.inputs.keys() or step.inputs.keys() != after[name].inputs.keys()):
            expected.add(name)
    assert changed == (expected | {"report"} if first else set())


def test_the_docs_name_every_setting_once() -> None:
    rows = [key for row in table(0) for key in dict.fromkeys(named(row[0]))]
    assert set(rows) == set(LEAVES)
    assert {key for key in LEAVES if rows.count(key) > 1} == {"tokens.expected_text_bytes"}


@pytest.mark.parametrize("key", LEAVES)
def test_a_setting_changes_the_steps_that_the_docs_name(tmp_path: Path, key: str) -> None:
    first = first_steps(key)
    before, after, values = pair(tmp_path, key, used_with(key))
    (old,), (new,) = before.cells, after.cells
    check_changed(steps_of(before, old.name), steps_of(after, new.name), first)
    in_grid = {"model.architecture": ["gpt2"]} if key in GPT2 else {}
    around = {k: v for k, v in used_with(key).items() if k not in in_grid}
    if key.partition(".")[0] in ("name", "grid", "report", "runtime"):
        with pytest.raises(ConfigError):
            load(tmp_path, around, {key: values})
        return
    whole = plan(load(tmp_path, around, in_grid | {key: values}))
    assert len(whole.cells) == (2 if first else 1)
    if first:  # in the order in which the plan has them, which is by size
        one, two = sorted(
            whole.cells, key=lambda cell: cell.config != old.config.model_copy(update={"grid": cell.config.grid})
        )
        check_changed(steps_of(whole, one.name), steps_of(whole, two.name), first - {"report"})


NOT_USED = [(key, row[2]) for row in table(1) for key in named(row[0]) if key not in beside(row[2])]


@pytest.mark.parametrize(("key", "cell"), NOT_USED)
def test_what_is_not_used_changes_nothing(tmp_path: Path, key: str, cell: str) -> None:
    unused = beside(cell)
    before, after, _ = pair(tmp_path, key, unused)
    (old,), (new,) = before.cells, after.cells
    check_changed(steps_of(before, old.name), steps_of(after, new.name), set())


@pytest.mark.parametrize("field", SteerEdit.model_fields)
def test_every_part_of_an_edit_changes_the_steering(tmp_path: Path, field: str) -> None:
    edit = {"layer": 0, "neuron": 1}
    other = edit | {field: {"how": "add", "site": "code-l0-1x", "positions": [0], "keep_error": False}.get(field, 2)}
    plans = [plan(load(tmp_path, {"steer.edits": [one]})) for one in (edit, other)]
    check_changed(*(steps_of(whole, "crate-2l") for whole in plans), {"steer"})
