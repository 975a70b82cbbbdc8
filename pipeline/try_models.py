"""Commands that try a trained model of a run: `steer`, `sample`; and `compare` two runs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from crate_model.checkpoint import load_checkpoint
from crate_model.model import LanguageModel
from crate_model.sae import SparseAutoencoder
from pipeline.artifacts import saelens, saes
from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.checkpoint import KeptStep, load_model
from pipeline.artifacts.manifest import FILE_NAME, Manifest
from pipeline.artifacts.store import Store
from pipeline.browse import artifact_of, planned
from pipeline.config import SteerConfig
from pipeline.errors import ConfigError


def steer(store: Store, options: argparse.Namespace) -> int:
    """Edit the neurons or features that the command line or a YAML list names, and show what becomes of the prompt."""
    from pipeline.steer.show import print_steering

    known: dict[str, tuple[str, SparseAutoencoder]] = {}
    step: KeptStep = "last"
    if options.checkpoint:
        model, made_of = imported(options.checkpoint), None
    elif options.run and options.cell:
        pretrain = artifact_of(store, options.run, f"{options.cell}/pretrain")
        step = _step_read(store, options.run, options.cell)
        model, made_of = load_model(pretrain, step), pretrain.fingerprint
        if f"{options.cell}/sae" in planned(store, options.run):
            made = artifact_of(store, options.run, f"{options.cell}/sae")
            known = {site.name: (site.point, saes.load_sae(made, site)) for site in saes.sites(made)}
    else:
        raise ConfigError("no model is named", fix="Give --run and --cell, or --checkpoint FOLDER.")
    if options.sae:
        name, point, sae = sae_in(options.sae, made_of, step)
        known[name] = (point, sae)
        options.site = options.site or name
    print_steering(model, known, _steer_config(options), Console())
    return 0


def imported(folder: Path) -> LanguageModel:
    """The model in a checkpoint folder, as `import-checkpoint` writes it, float32. Raises ConfigError when there is none."""
    try:
        return load_checkpoint(folder, dtype=torch.float32)
    except (ValueError, OSError) as error:
        raise ConfigError(
            f"{folder} holds no model: {error}", fix="Give a folder that import-checkpoint or a training wrote."
        ) from error


def sae_in(folder: Path, pretrain: str | None, step: KeptStep = "last") -> tuple[str, str, SparseAutoencoder]:
    """Name, tap and autoencoder of a folder, ours or SAELens's.

    Raises ConfigError for one of another model than `pretrain`, or of other weights of it than those of `step`.
    """
    if (folder / saelens.CONFIG).is_file():
        sae, point = saelens.import_saelens(folder)
        return folder.name, point, sae
    site, trained_on = saes.described(folder)
    if pretrain and trained_on.get("pretrain") != pretrain:
        raise ConfigError(
            f"{folder} was trained on another model: {trained_on.get('pretrain')}, not {pretrain}",
            fix="Name the cell whose autoencoder it is, or leave --sae out to use the cell's own.",
        )
    trained_at = _trained_at(folder)
    if pretrain and trained_at not in (None, step):
        raise ConfigError(
            f"{folder} was trained on the weights of another step: {trained_at}, not {step}",
            fix="Name the cell whose autoencoder it is, or leave --sae out to use the cell's own.",
        )
    return site.name, site.point, saes.read_sae(folder / saes.CONFIG, folder / saes.WEIGHTS)


def _trained_at(folder: Path) -> KeptStep | None:
    """The step whose weights an autoencoder was trained on, as its artifact says; None for one that was taken out of it."""
    manifest = folder.resolve().parent / FILE_NAME
    if not manifest.is_file():
        return None
    settings = Manifest.from_json(manifest.read_text("utf-8"), str(manifest.parent)).settings
    return settings.get("checkpoint_step", "last")


def sample(store: Store, options: argparse.Namespace) -> int:
    """Next words and samples of all named cells (all of the run when none is named) side by side."""
    from pipeline.steer.show import print_next_words

    models = {}
    if options.run:
        steps = planned(store, options.run)
        cells = options.cell or sorted(name.partition("/")[0] for name in steps if name.endswith("/pretrain"))
        models = {cell: _model(store, options.run, cell) for cell in cells}
    names = [*models, *(folder.name for folder in options.checkpoint)]
    for folder in options.checkpoint:  # by its path where its name alone is another model's too
        models[folder.name if names.count(folder.name) == 1 else str(folder)] = imported(folder)
    if not models:
        raise ConfigError("no model is named", fix="Give --run NAME, or --checkpoint FOLDER.")
    config = _checked({"temperature": options.temperature, "top_k": options.top_k, "sample_tokens": options.tokens})
    print_next_words(models, options.prompt, config, Console())
    return 0


def compare(store: Store, options: argparse.Namespace) -> int:
    """Losses and scores of the cells that two runs share, with intervals."""
    from pipeline.report.compare import compare as compare_runs

    rows = compare_runs(_made(store, options.run_a), _made(store, options.run_b))
    if options.json:
        print(json.dumps(rows, indent=1))
        return 0
    table = Table(title=f"{options.run_b} minus {options.run_a}", title_justify="left")
    for column in ("cell", "measure", options.run_a, options.run_b, "difference", "95 %", "note"):
        table.add_column(column)
    for row in rows:
        interval = "" if row["low"] is None else f"{row['low']:+.3f} to {row['high']:+.3f}"
        formats = {"a": ".3f", "b": ".3f", "difference": "+.3f"}
        numbers = ["-" if row[key] is None else f"{row[key]:{form}}" for key, form in formats.items()]
        table.add_row(row["cell"], row["measure"], *numbers, interval, row["note"])
    Console().print(table)
    return 0


def _model(store: Store, run: str, cell: str) -> LanguageModel:
    """The weights that the cell's stages read."""
    return load_model(artifact_of(store, run, f"{cell}/pretrain"), _step_read(store, run, cell))


def _step_read(store: Store, run: str, cell: str) -> KeptStep:
    settings = [recipe["settings"] for name, recipe in planned(store, run).items() if name.startswith(f"{cell}/")]
    return next((s["checkpoint_step"] for s in settings if "checkpoint_step" in s), "last")


def _made(store: Store, run: str) -> dict[str, Artifact]:
    found = {name: store.find(recipe["stage"], recipe["fingerprint"]) for name, recipe in planned(store, run).items()}
    return {name: artifact for name, artifact in found.items() if artifact}


def _steer_config(options: argparse.Namespace) -> SteerConfig:
    if options.edits:
        try:
            edits = yaml.safe_load(options.edits.read_text("utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(
                f"cannot read the edits in {options.edits}: {error}", fix="Give a YAML list of edits."
            ) from error
    elif options.layer is None or options.neuron is None:
        raise ConfigError("no edit is named", fix="Give --layer, --neuron and --value, or --edits FILE.")
    else:
        edit = {"layer": options.layer, "neuron": options.neuron, "value": options.value, "how": options.how}
        edit |= {"site": options.site, "positions": options.positions, "keep_error": options.keep_error}
        edits = [edit]
    given = {"prompt": options.prompt, "edits": edits, "temperature": options.temperature, "top_k": options.top_k}
    return _checked(given | {"sample_tokens": options.tokens, "top_words": options.top})


def _checked(values: dict[str, Any]) -> SteerConfig:
    try:
        return SteerConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"{where}: {first['msg']}", fix=f"It is {first.get('input')!r}; correct the value."
        ) from error
