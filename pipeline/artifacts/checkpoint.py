"""The pretrain artifact: a Hugging Face folder (config.json, model.safetensors) with the curve of its training beside it.

Checkpoints kept along the way lie in `steps/<n>/`, each such a folder itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crate_model.config import ModelConfig
from pipeline.artifacts.artifact import Artifact
from pipeline.errors import ArtifactError

if TYPE_CHECKING:
    import torch

    from crate_model.model import LanguageModel

CURVE = "curve.parquet"
CURVE_SCHEMA = pa.schema(
    [
        ("step", pa.int64()),  # optimizer steps done, from 1
        ("tokens", pa.int64()),  # seen so far
        ("loss", pa.float64()),  # nats a token of this step's batch
        ("learning_rate", pa.float64()),
        ("grad_norm", pa.float64()),  # before clipping
        ("val_loss", pa.float64()),  # nats a token, where it was measured
    ]
)


KeptStep = int | Literal["last"]  # of whose weights one speaks: one of `kept_steps`, or the end of the training


def load_model(artifact: Artifact, step: KeptStep = "last") -> LanguageModel:
    """The model after `step` on the CPU, float32, in evaluation mode. Raises ArtifactError."""
    import torch

    from crate_model.checkpoint import CONFIG_FILE, WEIGHTS_FILE, load_checkpoint

    prefix = "" if step == "last" else f"steps/{step}/"
    folders = [artifact.file(prefix + name).parent for name in (CONFIG_FILE, WEIGHTS_FILE)]
    try:
        return load_checkpoint(folders[0], dtype=torch.float32)
    except ValueError as error:
        raise ArtifactError(str(error), fix=f"Delete {artifact.folder} and run again: it is made anew.") from error


def model_config(artifact: Artifact) -> ModelConfig:
    """The shape of the trained model, without loading it."""
    stored = json.loads(artifact.file("config.json").read_text("utf-8"))
    return ModelConfig(**{name: stored[name] for name in ModelConfig.__dataclass_fields__ if name in stored})


def kept_steps(artifact: Artifact) -> list[int]:
    """Steps of which a checkpoint was kept along the way, ascending; empty unless `pretrain.keep_log_spaced`."""
    names = artifact.names("steps/", "/config.json")
    return sorted(int(name.split("/")[1]) for name in names)


def tokens_seen(artifact: Artifact, step: KeptStep = "last") -> int:
    """Training tokens behind the weights after `step`."""
    if step == "last":
        return int(artifact.summary["train_tokens"])
    curve = read_curve(artifact)
    return int(curve.filter(pc.equal(curve["step"], step))["tokens"][0].as_py())


def read_curve(artifact: Artifact) -> pa.Table:
    """One row an optimizer step, columns as in CURVE_SCHEMA."""
    return pq.read_table(artifact.file(CURVE))


def write_curve(path: Path, columns: Mapping[str, list]) -> None:
    pq.write_table(pa.table(dict(columns), schema=CURVE_SCHEMA), path, compression="zstd")


def write_model(folder: Path, config: ModelConfig, weights: Mapping[str, torch.Tensor]) -> None:
    """Save full float32 weights, named as the model's parameters, as a Hugging Face folder."""
    import torch

    from crate_model.checkpoint import save_checkpoint
    from crate_model.model import LanguageModel

    with torch.device("meta"):
        model = LanguageModel(config)
    model.load_state_dict(dict(weights), assign=True)
    save_checkpoint(model, folder)
