"""Training a group of autoencoders on one stream of activations: one pass of the language model feeds them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from crate_model.model import LanguageModel
from crate_model.ops.sparse_autoencoder import Workspace
from pipeline.artifacts.activation_stream import ActivationStream
from pipeline.artifacts.saes import Site, tap_width
from pipeline.artifacts.tokens import TokenSplit
from pipeline.config import SAEConfigSection
from pipeline.errors import StageError
from pipeline.sae.planned import n_steps
from pipeline.sae.resampling import counting_starts, resample
from pipeline.sae.state import restore_state, save_state
from pipeline.sae.training import SAETrainer, seed_of
from pipeline.sae.watcher import Figures, Watcher

CURVE_POINTS = 200  # logged steps of a training


@dataclass(frozen=True)
class TrainedGroup:
    trainers: list[SAETrainer]
    curves: list[dict[str, Any]]  # rows of CURVE_SCHEMA


def train_group(
    model: LanguageModel,
    split: TokenSplit,
    sites: Sequence[Site],
    settings: SAEConfigSection,
    seed: int,
    device: torch.device,
    watcher: Watcher,
) -> TrainedGroup:
    """Train `sites` to the end, from where an earlier attempt in `watcher.states` left off. Deterministic in `seed`.

    Raises StageError when a loss is not finite, or when a stop was asked for (after saving).
    """
    model = model.to(device)
    points = tuple(dict.fromkeys(site.point for site in sites))
    stream = ActivationStream(
        model,
        split,
        points,
        seed_of(seed, "sae"),
        settings.batch_tokens,
        settings.buffer_tokens,
        settings.batch_rows,
        device,
    )
    workspace = Workspace()  # they train one after the other
    trainers = [
        SAETrainer(site, settings, tap_width(model.config, site.tap), seed, device, workspace) for site in sites
    ]
    curves = [restore_state(watcher.states, trainer) for trainer in trainers]
    loop = _Loop(stream, trainers, curves, settings, seed, watcher)
    loop.run(n_steps(settings))
    return TrainedGroup(trainers, [row for curve in curves for row in curve])


@dataclass(frozen=True)
class _Loop:
    stream: ActivationStream
    trainers: list[SAETrainer]
    curves: list[list[dict[str, Any]]]
    settings: SAEConfigSection
    seed: int
    watcher: Watcher

    def run(self, n_steps: int) -> None:
        """All steps up to `n_steps`. After a change of grouping, trainers that are ahead wait for the others."""
        first = min(trainer.step_number for trainer in self.trainers)
        if first == n_steps:
            return
        self.watcher.on_start(first)
        batches = self.stream.batches(first)
        for step in range(first, n_steps):
            self._one_step(step, next(batches), n_steps)
            ends = step + 1 == n_steps
            stopping = self.watcher.stop_requested() and not ends
            if stopping or ends or (step + 1) % self.watcher.checkpoint_every_steps == 0:
                self._save()
            if stopping:
                told = "the training of sparse autoencoders was asked to stop"
                raise StageError(told, fix="Run again: it goes on from here.")

    def _one_step(self, step: int, batch: dict[str, torch.Tensor], n_steps: int) -> None:
        logged = (step + 1) % max(1, n_steps // CURVE_POINTS) == 0 or step + 1 == n_steps
        figures: Figures = {}
        for trainer, curve in zip(self.trainers, self.curves, strict=True):
            if trainer.step_number == step:
                row = self._step(trainer, batch[trainer.site.point], logged)
                if row:
                    curve.append(row)
                    figures[trainer.site.name] = row
        if figures:
            self.watcher.on_figures(step + 1, figures)

    def _step(self, trainer: SAETrainer, v: torch.Tensor, logged: bool) -> dict[str, Any] | None:
        if trainer.site.variant == "relu" and trainer.step_number in counting_starts(self.settings):
            trainer.count_anew()
        losses = trainer.step(v)
        row = None
        if logged:
            figures = trainer.figures(losses, len(v))
            self._check(trainer, figures.loss)
            tokens = trainer.step_number * self.settings.batch_tokens
            row = {"site": trainer.site.name, "step": trainer.step_number, "tokens": tokens, **asdict(figures)}
        if trainer.site.variant == "relu" and trainer.step_number in self.settings.resample_steps:
            resample(trainer, self.stream, self.seed)
        return row | {"n_resampled": trainer.n_resampled} if row else None

    def _check(self, trainer: SAETrainer, value: float) -> None:
        if not torch.isfinite(torch.tensor(value)):
            raise StageError(
                f"the loss of {trainer.site.name} is {value} at step {trainer.step_number}",
                fix="Lower sae.learning_rate; if the language model's own weights hold NaN, train it again.",
            )

    def _save(self) -> None:
        for trainer, curve in zip(self.trainers, self.curves, strict=True):
            self.watcher.keep(save_state(self.watcher.states, trainer, curve))
