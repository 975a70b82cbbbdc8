"""Steering and sampling for a person at a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from crate_model.model import LanguageModel
from pipeline.artifacts.vocabulary import token_strings
from pipeline.config import SteerConfig
from pipeline.steer.edits import Edit, resolve
from pipeline.steer.effects import TokenChange, logits_of, lossless_row, splice_row, token_changes
from pipeline.steer.samples import next_words, prompt_ids, sample_text
from pipeline.steer.study import Saes

TITLES = {"promoted": "most promoted", "suppressed": "most suppressed", "likely": "likeliest under the edit"}


def print_steering(model: LanguageModel, saes: Saes, config: SteerConfig, console: Console) -> None:
    """Each edit's effect on the next token, a sample beside the plain one, and what clamping or splicing alone loses.

    Raises ConfigError for a prompt that does not fit the model, or an edit that it has no place for.
    """
    ids = prompt_ids(config.prompt, model)
    edits = [resolve(one, model, saes, ids.shape[1]) for one in config.edits]
    plain = logits_of(model, ids)
    for edit in edits:
        changes = token_changes(plain[0, -1], logits_of(model, ids, edit)[0, -1], config.top_words)
        console.print(Text(f"\n{described(edit)}, prompt {config.prompt!r}", style="bold"))
        for kind, title in TITLES.items():
            console.print(_changes_table(title, [change for change in changes if change.kind == kind]))
        console.print(_losses(model, ids, plain, edit), highlight=False)
        _print_sample("steered", model, ids, config, console, edit)
    _print_sample("plain", model, ids, config, console)


def print_next_words(
    models: Mapping[str, LanguageModel], prompts: Sequence[str], config: SteerConfig, console: Console
) -> None:
    """The likeliest next words of each prompt, the models side by side, and a continuation by each."""
    for prompt in prompts:
        found = {name: next_words(model, prompt, config.top_words) for name, model in models.items()}
        table = Table(title=Text(prompt, style="bold"), title_justify="left")
        for name in models:
            table.add_column(name)
            table.add_column("", justify="right")
        for row in zip(*found.values(), strict=True):
            table.add_row(*(cell for word in row for cell in (Text(repr(word.text)), f"{word.probability:.1%}")))
        console.print(table)
        for name, model in models.items():
            _print_sample(name, model, prompt_ids(prompt, model), config, console)


def _print_sample(
    name: str, model: LanguageModel, ids: Tensor, config: SteerConfig, console: Console, edit: Edit | None = None
) -> None:
    if config.sample_tokens:
        text = sample_text(model, ids, config.sample_tokens, config.temperature, config.top_k, edit)
        console.print(Text(f"{name:9}", style="bold") + Text(text))


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


def _losses(model: LanguageModel, ids: Tensor, plain: Tensor, edit: Edit) -> str:
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
