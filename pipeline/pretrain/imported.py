"""A model that was trained elsewhere, in the place of a training: everything after it is the same."""

from __future__ import annotations

from pathlib import Path

from pipeline.artifacts.checkpoint import CURVE, CURVE_SCHEMA, write_curve
from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.pretrain.job import PretrainSettings
from pipeline.stage import Summary


def check_shape(settings: PretrainSettings | Config) -> None:
    """Raises ConfigError when the folder holds no checkpoint, or one of another shape than `model` says."""
    from crate_model.checkpoint import load_config

    folder = settings.pretrain.checkpoint
    try:
        found = load_config(folder)
    except ValueError as error:
        raise ConfigError(
            f"pretrain.checkpoint: {error}", fix="Make the folder with `python -m pipeline import-checkpoint`."
        ) from error
    names = type(found).__dataclass_fields__
    unlike = [name for name in names if getattr(found, name) != getattr(settings.model, name)]
    if unlike:
        told = ", ".join(f"{name} {getattr(found, name)}" for name in unlike)
        raise ConfigError(
            f"pretrain.checkpoint: the model in {folder} has {told}", fix="Set the same values under `model`."
        )


def take(settings: PretrainSettings, out_folder: Path) -> Summary:
    """Fill the artifact's folder with the checkpoint, float32; its curve is empty. Returns the summary."""
    import torch

    from crate_model.checkpoint import load_checkpoint, save_checkpoint
    from crate_model.flops import count_parameters

    check_shape(settings)
    try:
        save_checkpoint(load_checkpoint(settings.pretrain.checkpoint, dtype=torch.float32), out_folder)
    except ValueError as error:
        raise ConfigError(f"pretrain.checkpoint: {error}", fix="Import the checkpoint again.") from error
    write_curve(out_folder / CURVE, {name: [] for name in CURVE_SCHEMA.names})
    return {
        **count_parameters(settings.model).as_told,
        "train_tokens": settings.pretrain.tokens_seen,
        "train_loss": None,
        "val_loss": None,
        "optimizer": "imported",
    }
