"""What a training job is made of: plain data that travels to every worker, wherever it runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from crate_model.config import ModelConfig
from pipeline.artifacts.store import Artifact
from pipeline.config import PretrainConfig
from pipeline.stage import Context


@dataclass(frozen=True)
class PretrainSettings:
    """All that decides the bits of a trained model, beside its tokens."""

    seed: int
    model: ModelConfig
    pretrain: PretrainConfig


@dataclass(frozen=True)
class TrainingJob:
    """One model to train. Every worker gets the same one; only rank 0 writes."""

    settings: PretrainSettings
    tokens: Artifact
    out_folder: Path
    context: Context

    @property
    def resume_folder(self) -> Path:
        return self.context.scratch / "resume"

    @property
    def kept_folder(self) -> Path:
        """Log-spaced checkpoints, until they move into the artifact."""
        return self.context.scratch / "steps"

    @property
    def outcome_file(self) -> Path:
        """How the attempt ended: the summary, or the error that no restart can mend."""
        return self.context.scratch / "outcome.json"

    @property
    def optimizer_note(self) -> Path:
        """The optimizer that `auto` chose, so that every attempt trains with the same one."""
        return self.context.scratch / "optimizer.json"

    @property
    def memory_note(self) -> Path:
        """The largest micro-batch, in windows, that may still be tried after the GPU's memory ran out."""
        return self.context.scratch / "micro_batch.json"

    @property
    def hang_note(self) -> Path:
        """The last sentence of a worker that waited too long for the others."""
        return self.context.scratch / "hang.json"
