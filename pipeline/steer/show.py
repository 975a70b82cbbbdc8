"""Steering and sampling for a person at a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from crate_model.model import LanguageModel
from pipeline.artifacts.vocabulary import token_strings
from pipeline.config import SteerEdit
from pipeline.errors import ConfigError
from pipeline.steer.edits import Edit, resolve
from pipeline.steer.effects import TokenChange, logits_of, lossless_row, splice_row, token_changes
from pipeline.steer.samples import next_words, prompt_ids, sample_text
from pipeline.steer.study import Saes

TITLES = {"promoted": "most promoted", "suppressed": "most suppressed", "likely": "likeliest under the edit"}


def read_edits(path: Path) -> list[SteerEdit]:
    """A YAML list of edits, as under `steer.edits`. Raises ConfigError naming the file and what is wrong in it."""
    try:
        entries = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read {path}: {error}", fix="Give a YAML file with a list of edits.") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(
            f"{path} is no list of edits", fix="Write one line an edit: - {layer: 0, neuron: 12, value: 5}"
        )
    return [edit_of(entry, f"{path}, edit {number}") for number, entry in enumerate(entries, 1)]


def edit_of(fields: Mapping[str, Any], where: str = "this edit") -> SteerEdit:
    """An edit from plain values. Raises ConfigError for an unknown key, a missing one, NaN or infinity."""
    try:
        return SteerEdit(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        fix = "An edit has " + ", ".join(SteerEdit.model_fields) + "."
        raise ConfigError(f"{where}: {key}: {first['msg']}", fix=fix) from error


def show_steering(
    model: LanguageModel,
    prompt: str,
    wanted: Sequence[SteerEdit],
    saes: Saes,
    console: Console,
    top: int = 10,
    sample_tokens: int = 40,
    temperature: float = 0.8,
    top_k: int = 40,
) -> None:
    """Each edit's effect on the next token, a sample beside the plain one, and what clamping or splicing alone loses."""
    check_sampling(temperature, top_k)
    ids = prompt_ids(prompt, model)
    edits = [resolve(one, model, saes, ids.shape[1]) for one in wanted]
    plain = logits_of(model, ids)
    for edit in edits:
        changes = token_changes(plain[0, -1], logits_of(model, ids, edit)[0, -1], top)
        console.print(Text(f"\n{described(edit)}, prompt {prompt!r}", style="bold"))
        for kind, title in TITLES.items():
            console.print(_changes_table(title, [change for change in changes if change.kind == kind]))
        console.print(_losses(model, ids, plain, edit), highlight=False)
        if sample_tokens:
            text = sample_text(model, ids, sample_tokens, temperature, top_k, edit)
            console.print(Text("steered  ", style="bold") + Text(text))
    if sample_tokens:
        console.print(
            Text("plain    ", style="bold") + Text(sample_text(model, ids, sample_tokens, temperature, top_k))
        )


def described(edit: Edit) -> str:
    """One line: `clamp neuron 12 of code-l0 to 5`."""
    kind = "feature" if edit.unit.sae else "neuron"
    unit = f"{kind} {edit.unit.index} of {edit.unit.site}"
    value = f"{float(edit.value):g}"
    told = {"clamp": f"clamp {unit} to {value}", "add": f"add {value} to {unit}", "scale": f"scale {unit} by {value}"}
    where = f" at positions {', '.join(map(str, edit.positions))}" if edit.positions else ""
    return told.get(edit.how, f"ablate {unit}") + where


def _changes_table(title: str, changes: Sequence[TokenChange]) -> Table:
    strings = token_strings()
    table = Table(title=title, title_justify="left")
    for name in ("token", "logit", "change", "probability", "before"):
        table.add_column(name, justify="left" if name == "token" else "right")
    for change in changes:
        difference = change.logit_after - change.logit_before
        table.add_row(
            Text(repr(strings[change.token])),
            f"{change.logit_after:.2f}",
            f"{difference:+.2f}",
            f"{change.probability_after:.2%}",
            f"{change.probability_before:.2%}",
        )
    return table


def _losses(model: LanguageModel, ids: Any, plain: Any, edit: Edit) -> str:
    """What is lost before anything is changed: nothing for a neuron, the reconstruction's error for an autoencoder."""
    unit = edit.unit
    clamp = lossless_row(model, ids, plain, unit)
    told = f"Clamped to the value it has, the largest change of any logit is {clamp['max_logit_change']:g}."
    if unit.sae is None:
        return told
    splice = splice_row(model, ids, plain, unit)
    mode = "with the error kept" if unit.keep_error else "through the reconstruction"
    return (
        f"{told[:-1]} ({mode}); the autoencoder spliced in alone changes logits by up to "
        f"{splice['max_logit_change']:.3g} and costs {splice['kl']:.3g} nats of KL a token."
    )


def show_samples(
    models: Mapping[str, LanguageModel],
    prompts: Sequence[str],
    console: Console,
    top: int = 10,
    sample_tokens: int = 40,
    temperature: float = 0.8,
    top_k: int = 40,
) -> None:
    """The likeliest next words of each prompt, the models side by side, and a continuation by each."""
    check_sampling(temperature, top_k)
    for prompt in prompts:
        found = {name: next_words(model, prompt, top) for name, model in models.items()}
        table = Table(title=Text(prompt, style="bold"), title_justify="left")
        for name in models:
            table.add_column(name)
            table.add_column("", justify="right")
        for row in zip(*found.values(), strict=True):
            table.add_row(*(cell for word in row for cell in (Text(repr(word.text)), f"{word.probability:.1%}")))
        console.print(table)
        for name, model in models.items() if sample_tokens else ():
            text = sample_text(model, prompt_ids(prompt, model), sample_tokens, temperature, top_k)
            console.print(Text(f"{name}  ", style="bold") + Text(text))


def check_sampling(temperature: float, top_k: int) -> None:
    """Raises ConfigError for a temperature that is negative or not finite, or a top-k below 1."""
    if not 0 <= temperature < float("inf"):
        raise ConfigError(
            f"temperature is {temperature}", fix="Give a number of at least 0; 0 takes the likeliest word."
        )
    if top_k < 1:
        raise ConfigError(f"top-k is {top_k}", fix="Give a whole number of at least 1.")
