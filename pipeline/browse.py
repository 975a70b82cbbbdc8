"""A sweep looked at from outside, through its folder in the store: `status`, and opening a cell's artifacts."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, TypeAdapter

from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.manifest import why
from pipeline.artifacts.store import Store
from pipeline.errors import ArtifactError, ConfigError
from pipeline.progress import duration, progress_text, read_progress

ALIVE_SECONDS = 60  # a step that wrote no progress for so long is called quiet


class _Recipe(BaseModel):
    """What of a planned step's recipe is looked up."""

    stage: str
    fingerprint: str
    settings: dict[str, Any] = {}
    inputs: dict[str, str] = {}


def planned(store: Store, run: str) -> dict[str, dict[str, Any]]:
    """The recipes of a run's steps by step name. Raises ArtifactError when there is no such run."""
    data = store.read_note(run, "plan.json")
    if data is None:
        raise ArtifactError(
            f"{store.place} holds no run {run!r}", fix="Is --store right? A run's name is its config's `name`."
        )
    try:
        recipes = json.loads(data)["steps"]
        TypeAdapter(dict[str, _Recipe]).validate_python(recipes)
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{store.place}/runs/{run}/plan.json is damaged ({why(error)})",
            fix="Run the sweep again: it writes its plan anew, and keeps what is made.",
        ) from error
    return recipes


def artifact_of(store: Store, run: str, step: str) -> Artifact:
    """The artifact of one step of a run, e.g. ("quickstart", "crate-1l/pretrain"). Raises ArtifactError."""
    recipes = planned(store, run)
    if step not in recipes:
        raise ArtifactError(f"the run {run!r} has no step {step!r}", fix=f"It has: {', '.join(recipes)}.")
    artifact = artifact_if_made(store, run, step)
    if artifact is None:
        raise ArtifactError(
            f"{step} of {run!r} is not made yet", fix="Run the sweep, or wait for it: `status` says how far it is."
        )
    return artifact


def text_of(store: Store, run: str, step: str) -> Artifact:
    """The tokens that a step of a run reads: another grid cell may read others."""
    return store.get("tokens", planned(store, run)[step]["inputs"]["tokens"])


def artifact_if_made(store: Store, run: str, step: str) -> Artifact | None:
    """The artifact of one step of a run; None when it is not made yet or the run has no such step."""
    recipe = planned(store, run).get(step)
    return store.find(recipe["stage"], recipe["fingerprint"]) if recipe else None


def show_status(store: Store, run: str) -> int:
    from rich.console import Console
    from rich.table import Table

    recipes, states = planned(store, run), read_progress(store, run)
    table = Table(title=f"{run}", title_justify="left")
    for column in ("step", "state", "progress"):
        table.add_column(column)
    n_made = 0
    for name, recipe in recipes.items():
        state = states.get(name)
        if store.find(recipe["stage"], recipe["fingerprint"]):
            n_made += 1
            table.add_row(name, "[green]made[/]", "")
        elif state and state.fingerprint in ("", recipe["fingerprint"]):  # not of an earlier configuration
            quiet = time.time() - state.updated
            word = "running" if quiet < ALIVE_SECONDS else f"quiet for {duration(quiet)}"
            table.add_row(name, word, progress_text(state))
        else:
            table.add_row(name, "[dim]waiting[/]", "")
    Console().print(table, f"{n_made} of {len(recipes)} steps are made.")
    return 0


def show_batch(store: Store, run: str, cell: str | None, step: int, as_json: bool) -> int:
    """Print what training step `step` (from 0) of a cell saw: windows, documents with their origin and domain, text.

    The cell need not be named where all of the run take the same batches.
    """
    from rich.console import Console

    from pipeline.tokens.inspect import batch_rows

    cell, recipe = _training(store, run, cell)
    settings = recipe["settings"]
    n_ctx = settings["model"]["n_ctx"]
    n_steps = settings["pretrain"]["total_tokens"] // settings["pretrain"]["batch_tokens"]
    if not 0 <= step < n_steps:
        raise ConfigError(
            f"--step {step}: the training of {cell} has steps 0 to {n_steps - 1}", fix="Choose one of them."
        )
    tokens = store.get("tokens", recipe["inputs"]["tokens"])
    rows = batch_rows(tokens, settings["seed"], settings["pretrain"]["batch_tokens"] // n_ctx, n_ctx, step)
    if as_json:
        print(json.dumps(rows, indent=1))
        return 0
    console = Console()
    for row in rows:
        console.rule(f"window {row['window']}, tokens from {row['start']:,}", align="left")
        for document in row["documents"]:
            origin = f"{document['origin_file']}:{document['origin_line']}"
            console.print(f"{document['tokens']} tokens of {origin} ({document['domain']})", style="cyan", markup=False)
        console.print(row["text"], markup=False, highlight=False)
    return 0


def _training(store: Store, run: str, cell: str | None) -> tuple[str, dict[str, Any]]:
    """A cell and the recipe of its training; without a name the longest, where all cells of the run take the same batches."""
    steps = planned(store, run).items()
    found = {name.removesuffix("/pretrain"): recipe for name, recipe in steps if name.endswith("/pretrain")}
    if cell and cell not in found:
        raise ArtifactError(f"the run {run!r} has no cell {cell!r}", fix=f"It has: {', '.join(found)}.")
    imported = [name for name, recipe in found.items() if recipe["settings"]["pretrain"].get("checkpoint")]
    found = {name: recipe for name, recipe in found.items() if name not in imported}
    if cell in imported or not found:
        raise ConfigError(
            f"{cell or ', '.join(imported)} was trained elsewhere, on batches that are not known here",
            fix=f"Name a cell that was trained here: {', '.join(found) or 'this run has none'}.",
        )
    named = {cell: found[cell]} if cell else found
    settings = [recipe["settings"] for recipe in named.values()]
    texts = {recipe["inputs"]["tokens"] for recipe in named.values()}
    if len(texts) * len({(s["seed"], s["model"]["n_ctx"], s["pretrain"]["batch_tokens"]) for s in settings}) != 1:
        raise ConfigError(
            f"the {len(found)} cells of {run!r} do not take the same batches",
            fix=f"Name one with --cell: {', '.join(found)}.",
        )
    return max(named.items(), key=lambda pair: pair[1]["settings"]["pretrain"]["total_tokens"])


def export_neurons(store: Store, run: str, cell: str, folder: Path, layer: int | str | None) -> int:
    """Write the neurons of a layer, or of all, as OpenAI's NeuronRecord files."""
    from pipeline.activations.export import export_neuron_records
    from pipeline.artifacts.records import Records
    from pipeline.artifacts.tokens import TokenSplit
    from pipeline.artifacts.vocabulary import token_strings

    step = f"{cell}/activations"
    records = Records(artifact_of(store, run, step))
    split, strings = TokenSplit(text_of(store, run, step), "val"), token_strings()
    sites = records.sites if layer is None else [layer]
    count = sum(export_neuron_records(records, split, strings, folder, site) for site in sites)
    print(f"{folder}: {count} neurons")
    return 0


def export_sae(store: Store, run: str, cell: str, site: str, folder: Path) -> int:
    """Write an autoencoder of a cell so that SAELens loads it."""
    from pipeline.artifacts.saelens import export_saelens
    from pipeline.artifacts.saes import find_site, load_sae

    made = artifact_of(store, run, f"{cell}/sae")
    found = find_site(made, site)
    export_saelens(load_sae(made, found), found.point, folder, f"{run}/{cell}")
    print(f"{folder}: {site}, which sae_lens.SAE.load_from_disk reads")
    return 0


def import_checkpoint(
    checkpoint: Path, folder: Path, activation: Literal["relu", "gelu", "gelu_erf"], tokenizer: Path | None
) -> int:
    """Convert the authors' checkpoint; a file that is none is told in two lines."""
    from crate_model.import_checkpoint import import_checkpoint as convert

    try:
        convert(checkpoint, folder, activation, tokenizer)
    except (ValueError, OSError) as error:
        raise ArtifactError(
            f"cannot import {checkpoint}: {error}",
            fix="Give a crate-lm or nanoGPT .pt file with `model` and `model_args`.",
        ) from error
    print(f"{folder}: logits equal the checkpoint's; load it with AutoModelForCausalLM after `import crate_model.hf`")
    return 0
