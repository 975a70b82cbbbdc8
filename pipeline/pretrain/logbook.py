"""What hangs on a training run without changing it: metrics, held-out losses, checkpoints, progress, the wish to stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch

from pipeline.artifacts.checkpoint import write_model
from pipeline.artifacts.evaluation import DomainTotals, ValWindows
from pipeline.artifacts.tokens import TokenSplit
from pipeline.pretrain.engine import Engine
from pipeline.pretrain.job import TrainingJob
from pipeline.pretrain.loop import Run, Stopped
from pipeline.pretrain.resume import BackgroundWriter, Snapshot

ASK_EVERY_SECONDS = 1.0
VAL_TOKENS_A_PASS = 8192  # of a held-out forward pass: it keeps no activations


class Logbook:
    """The Watch of a real run. Every worker has one and calls the collective parts; only rank 0 writes."""

    def __init__(self, job: TrainingJob, engine: Engine, optimizer: str, asked_to_stop: Callable[[], bool]) -> None:
        self.job, self.engine, self.optimizer, self.asked_to_stop = job, engine, optimizer, asked_to_stop
        self.config, self.runtime = job.settings.pretrain, job.context.runtime
        self.writes = engine.rank == 0
        self.writer = BackgroundWriter(job.resume_folder, self.runtime.keep_checkpoints)
        self.val = ValWindows(TokenSplit(job.tokens, "val"), job.settings.model.n_ctx, self.config.eval_tokens)
        self._asked = 0.0  # when it was last looked whether to stop
        if self.writes:
            self.tracker = job.context.tracker.open()
            total_steps = self.config.total_tokens // self.config.batch_tokens
            self.progress = job.context.progress(total_steps * self.config.batch_tokens, "tokens")

    def start(self, run: Run) -> None:
        if self.writes:
            self.progress.start_at(run.counters.tokens)
        self._logged = (run.counters.tokens, time.perf_counter())

    def after_step(self, run: Run) -> None:
        step, last = run.counters.step, run.finished
        stop = self.engine.anywhere(self._stop_wanted())
        validate = last or (self.config.eval_every_steps and step % self.config.eval_every_steps == 0)
        save = last or stop or step % self.runtime.checkpoint_every_steps == 0
        keep = self.config.keep_log_spaced and step & (step - 1) == 0
        if validate or save or keep or step % self.runtime.log_every_steps == 0:
            run.flush(self.engine)
            self._log(run)
        if validate:
            self._validate(run)
        if save:
            self.save(run)
        if keep:
            self._keep(step)
        if stop and not last:
            self.writer.wait()
            raise Stopped

    def _stop_wanted(self) -> bool:
        now = time.perf_counter()
        if now - self._asked < ASK_EVERY_SECONDS:
            return False
        self._asked = now
        return self.asked_to_stop()

    def _log(self, run: Run) -> None:
        tokens, now = run.counters.tokens, time.perf_counter()
        speed = (tokens - self._logged[0]) / (now - self._logged[1])
        self._logged = (tokens, now)
        if not self.writes:
            return
        row = {name: column[-1] for name, column in run.curve.items()}
        values = {
            "pretrain/loss": row["loss"],
            "pretrain/learning_rate": row["learning_rate"],
            "pretrain/tokens_per_second": speed,
        }
        if row["grad_norm"] is not None:
            values["pretrain/grad_norm"] = row["grad_norm"]
        self.tracker.metrics(values, step=tokens)
        self.progress.update(tokens, loss=round(row["loss"], 3), **{"tokens/s": round(speed)})

    def _validate(self, run: Run) -> None:
        totals = self.val_totals()
        run.note_val_loss(totals.loss)
        if self.writes:
            domains = {f"pretrain/val_loss/{name}": loss for name, loss in totals.by_domain().items()}
            self.tracker.metrics({"pretrain/val_loss": totals.loss, **domains}, step=run.counters.tokens)
            self.progress.update(run.counters.tokens, val_loss=round(totals.loss, 3))
        self._logged = (run.counters.tokens, time.perf_counter())  # the next speed is of training alone

    def val_totals(self) -> DomainTotals:
        """Losses on the fixed held-out windows, shared out over the workers."""
        totals = DomainTotals(self.val.split.domains)
        rows = max(1, VAL_TOKENS_A_PASS // self.val.n_ctx)
        model = self.engine.whole_model()
        for batch in self.val.batches(rows, self.engine.rank, self.engine.world_size):
            ids, targets = (torch.from_numpy(a).to(self.engine.device) for a in (batch.ids, batch.targets))
            totals.add(batch, model.token_losses(ids, targets).cpu().numpy())
        totals.sums = self.engine.sum(torch.from_numpy(totals.sums))
        return totals

    def save(self, run: Run) -> None:
        """Take a snapshot and write it in the background."""
        tensors = self.engine.full_state()
        if not self.writes:
            return
        counters = replace(
            run.counters,
            skipped_steps=list(run.counters.skipped_steps),
            norms=list(run.counters.norms),
            optimizer=self.optimizer,
            loss_scale=self.engine.loss_scale,
        )
        curve = {name: list(column) for name, column in run.curve.items()}
        self.writer.submit(Snapshot(counters, tensors, curve, torch.get_rng_state()))

    def _keep(self, step: int) -> None:
        weights = self.engine.full_state().get("weights")
        if weights:
            write_model(self.job.kept_folder / str(step), self.job.settings.model, weights)

    def close(self) -> None:
        self.writer.wait()
        if self.writes:
            self.tracker.close()
