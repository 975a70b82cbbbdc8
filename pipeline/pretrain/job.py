"""What a training job is made of: plain data that travels to every worker, wherever it runs, and the places it uses.

Workers may be on other nodes than the driver and share no disk with it. So everything that outlives a worker goes through
the step's scratch folder and is kept there: the state to go on from, small notes, and at the end the artifact's files.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crate_model.config import ModelConfig
from pipeline.artifacts.artifact import Artifact
from pipeline.config import PretrainConfig
from pipeline.stage import Context

logger = logging.getLogger(__name__)
OUTCOME = "outcome.json"  # how the attempt ended: the summary, or the error that no restart can mend
OPTIMIZER = "optimizer_choice.json"  # what `auto` chose and why, so that every attempt trains with the same one
MICRO_BATCH = "micro_batch.json"  # windows that may still be tried after the GPU's memory ran out
HANG = "hang.json"  # the last sentence of a worker that waited too long for the others
TOLD = "told.json"  # sentences that a person is to read, of all attempts


@dataclass(frozen=True)
class PretrainSettings:
    """All that decides the bits of a trained model, beside its tokens."""

    seed: int
    model: ModelConfig
    pretrain: PretrainConfig

    def __post_init__(self) -> None:
        if self.pretrain.checkpoint:  # an imported model was not drawn: under every seed it is the same one
            object.__setattr__(self, "seed", 0)


@dataclass(frozen=True)
class TrainingJob:
    """One model to train. Every worker gets the same one; only rank 0 writes."""

    settings: PretrainSettings
    tokens: Artifact
    out_folder: Path  # the driver's
    context: Context

    @property
    def named(self) -> str:
        """The options by which the commands of `python -m pipeline` find this run."""
        context = self.context
        cell = context.step_name.rpartition("/")[0]
        return shlex.join(["--run", context.run_name, "--cell", cell, "--store", context.store.place])

    @property
    def resume_folder(self) -> Path:
        return self.context.scratch / "resume"

    @property
    def kept_folder(self) -> Path:
        """Log-spaced checkpoints, until they move into the artifact."""
        return self.context.scratch / "steps"

    @property
    def export_folder(self) -> Path:
        """Where rank 0 leaves the artifact's files: the driver's folder, or scratch where no disk is shared."""
        return self.context.scratch / "artifact" if self.context.store.storage else self.out_folder

    def write_note(self, name: str, value: Any) -> None:
        """Leave a small value for the driver and for later attempts."""
        path = self.context.scratch / name
        making = path.with_name(f".{name}-{os.getpid()}")
        making.write_text(json.dumps(value), encoding="utf-8")
        making.replace(path)
        self.context.keep(path)

    def read_note(self, name: str) -> Any:
        """The value that was left last, on whatever node; None when there is none."""
        storage = self.context.store.storage
        if storage:
            data = storage.read(f".scratch/{self.context.fingerprint}/{name}")
            return None if data is None else json.loads(data)
        path = self.context.scratch / name
        return json.loads(path.read_text("utf-8")) if path.is_file() else None

    def tell(self, sentence: str, level: int = logging.WARNING) -> None:
        """Log a sentence and keep it for the step's progress line: a worker's log lies where nobody looks."""
        logger.log(level, "%s", sentence)
        told = self.read_note(TOLD) or []
        if sentence not in told:
            self.write_note(TOLD, [*told, sentence])

    def bring_resume_states(self) -> None:
        """Have here what other nodes kept of the run."""
        store, below = self.context.store, f".scratch/{self.context.fingerprint}/resume/"
        if store.storage:
            steps = {name.removeprefix(below).split("/")[0] for name in store.storage.names(below)}
            for step in sorted(steps):
                self.context.bring(self.resume_folder / step)

    def forget_resume_states(self, older_than: str) -> None:
        """Remove kept states whose folder's name sorts before; on a shared disk the writer has done so already."""
        store, below = self.context.store, f".scratch/{self.context.fingerprint}/resume/"
        if store.storage:
            names = store.storage.names(below)
            store.storage.delete([name for name in names if name.removeprefix(below).split("/")[0] < older_than])

    def collect(self) -> None:
        """On the driver: have the artifact's files in `out_folder`."""
        if self.export_folder != self.out_folder:
            self.context.bring(self.export_folder)
            shutil.copytree(self.export_folder, self.out_folder, dirs_exist_ok=True)
