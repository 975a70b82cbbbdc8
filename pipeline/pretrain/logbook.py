"""What hangs on a training run without changing it: metrics, held-out losses, checkpoints, progress, the wish to stop."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from crate_model.diagnostics import diagnose
from pipeline.artifacts.checkpoint import write_model
from pipeline.artifacts.evaluation import DomainTotals, ValWindows
from pipeline.artifacts.tokens import TokenSplit
from pipeline.pretrain.engine import Engine
from pipeline.pretrain.job import TOLD, TrainingJob
from pipeline.pretrain.loop import Run, Stopped
from pipeline.pretrain.meter import Meter
from pipeline.pretrain.resume import BackgroundWriter, Snapshot, Tensors
from pipeline.pretrain.watchdog import Watchdog

logger = logging.getLogger(__name__)
ASK_EVERY_SECONDS = 1.0
VAL_TOKENS_A_PASS = {"cpu": 8192, "cuda": 65_536}  # of a held-out forward pass, which keeps no activations
DIAGNOSED_WINDOWS = 4  # on which sparsity and coding rate of the layers are taken


@dataclass(frozen=True)
class Wishes:
    """From outside, to leave. `stop` is this worker's own view and may be asked at any time; `preempted` is asked of all
    workers after the same steps, since Ray makes them agree on the answer."""

    stop: Callable[[], bool] = lambda: False
    preempted: Callable[[], bool] = lambda: False


class Logbook:
    """The Watch of a real run. Every worker has one and takes part in what is collective; only rank 0 writes."""

    def __init__(
        self, job: TrainingJob, engine: Engine, facts: dict[str, Any], wishes: Wishes, watchdog: Watchdog | None
    ) -> None:
        self.job, self.engine, self.facts, self.wishes, self.watchdog = job, engine, facts, wishes, watchdog
        self.config, self.runtime = job.settings.pretrain, job.context.runtime
        self.writer = BackgroundWriter(job.resume_folder, self.runtime.keep_checkpoints, self._keep_copy)
        self.val = ValWindows(TokenSplit(job.tokens, "val"), job.settings.model.n_ctx, self.config.eval_tokens)
        on_gpu = engine.device.type == "cuda" and self.config.precision != "fp32"
        name = torch.cuda.get_device_name(engine.device) if on_gpu else None
        self.meter = Meter(job.settings.model, engine.world_size, name)
        self._asked, self._asked_after, self._ask_after = 0.0, 0, 0
        self.total_tokens = self.config.tokens_seen
        self.writes = engine.rank == 0
        if self.writes:
            self.tracker = job.context.tracker.open()
            self.progress = job.context.progress(self.total_tokens, "tokens")

    def start(self, run: Run) -> None:
        self._asked, self._asked_after = time.perf_counter(), run.counters.step
        if self.writes:
            self.tracker.params({f"pretrain/{name}": value for name, value in self.facts.items()})
            self.progress.start_at(run.counters.tokens, self.job.read_note(TOLD) or [])
        self.meter.skip(run.counters.tokens)

    def after_step(self, run: Run) -> None:
        step, last = run.counters.step, run.finished
        self._beat(step)
        stop, preempted = (False, False) if last else self._leave_wanted(step)
        leave = stop or preempted
        log = step % self.runtime.log_every_steps == 0
        validate = last or (self.config.eval_every_steps > 0 and step % self.config.eval_every_steps == 0)
        save = last or leave or step % self.runtime.checkpoint_every_steps == 0
        keep = self.config.keep_log_spaced and step & (step - 1) == 0
        if log or validate or save or keep:
            run.flush(self.engine, self.job.named)
            self._log(run)
        if validate:
            self._validate(run)
        if keep:  # before the state is saved: a run that goes on from there does not come by here again
            self._keep(step)
        if save:
            self.save(run)
        if leave:
            self.writer.wait()
            raise Stopped(preempted=not stop)

    def _beat(self, step: int) -> None:
        if self.watchdog:
            self.watchdog.beat(step)

    def _leave_wanted(self, step: int) -> tuple[bool, bool]:
        """Whether to stop, and whether to move: asked about once a second, by all workers after the same step.

        Asking is a collective, and reading its answer makes a GPU wait. So they agree, each time, on the step after which
        they ask again, by rank 0's pace.
        """
        if step < self._ask_after:
            return False, False
        now = time.perf_counter()
        pace = max(1, step - self._asked_after) / (now - self._asked)  # steps a second
        steps = max(1.0, pace * ASK_EVERY_SECONDS) if self.writes else 0.0
        n_stop, steps = self.engine.sum(torch.tensor([float(self.wishes.stop()), steps]))
        self._asked, self._asked_after, self._ask_after = now, step, step + int(steps)
        return bool(n_stop), self.wishes.preempted()

    def _log(self, run: Run) -> None:
        speed = self.meter.read(run.counters.tokens)
        if not self.writes:
            return
        row = {name: column[-1] for name, column in run.curve.items()}
        values = {name: row[name] for name in ("loss", "learning_rate", "grad_norm") if row[name] is not None} | speed
        values |= {"tokens": run.counters.tokens, "skipped_steps": len(run.counters.skipped_steps)}
        if speed["tokens_per_second"] > 0:
            values["time_left"] = (self.total_tokens - run.counters.tokens) / speed["tokens_per_second"]  # seconds
        self.tracker.metrics({f"pretrain/{name}": value for name, value in values.items()}, step=run.counters.tokens)
        facts = {"loss": round(row["loss"], 3), "tokens/s": round(speed["tokens_per_second"])}
        facts |= {"MFU": f"{speed['mfu']:.0%}"} if "mfu" in speed else {}
        self.progress.update(run.counters.tokens, **facts)
        logger.info("step %d of %d  %s", row["step"], run.total_steps, "  ".join(f"{k} {v}" for k, v in facts.items()))

    def _validate(self, run: Run) -> None:
        totals = self.val_totals(run.counters.step)
        run.note_val_loss(totals.loss)
        layers = self._diagnose()
        if self.writes:
            values = {f"val_loss/{name}": loss for name, loss in totals.by_domain().items()} | layers
            values["val_loss"] = totals.loss
            self.tracker.metrics({f"pretrain/{name}": v for name, v in values.items()}, step=run.counters.tokens)
            self.progress.update(run.counters.tokens, val_loss=round(totals.loss, 3))
        self.meter.skip(run.counters.tokens)

    def val_totals(self, step: int) -> DomainTotals:
        """Losses on the fixed held-out windows, shared out over the workers."""
        totals = DomainTotals(self.val.split.domains)
        rows = max(1, VAL_TOKENS_A_PASS[self.engine.device.type] // self.val.n_ctx)
        model = self.engine.whole_model()
        for batch in self.val.batches(rows, self.engine.rank, self.engine.world_size):
            ids, targets = (torch.from_numpy(a).to(self.engine.device) for a in (batch.ids, batch.targets))
            totals.add(batch, model.token_losses(ids, targets).cpu().numpy())
            self._beat(step)
        totals.sums = self.engine.sum(torch.from_numpy(totals.sums))
        return totals

    def _diagnose(self) -> dict[str, float]:
        """Sparsity and coding rate of each layer on a few held-out windows, the same ones on every worker."""
        batch = next(self.val.batches(DIAGNOSED_WINDOWS))
        model = self.engine.whole_model()
        ids, real = (torch.from_numpy(array).to(self.engine.device) for array in (batch.ids, batch.real))
        values = {}
        for layer in diagnose(model, ids, real):
            values[f"nonzero/layer_{layer.layer}"] = layer.fraction_nonzero
            if layer.coding_rate is not None:
                values[f"coding_rate/layer_{layer.layer}"] = layer.coding_rate
        return values

    def full_state(self) -> dict[str, Tensors]:
        """The engine's, in the same memory as the one before: that one has to be written first."""
        self.writer.wait()
        return self.engine.full_state()

    def save(self, run: Run) -> None:
        """Take a snapshot and write it in the background."""
        tensors = self.full_state()
        if not self.writes:
            return
        counters = replace(
            run.counters,
            skipped_steps=list(run.counters.skipped_steps),
            norms=list(run.counters.norms),
            losses=list(run.counters.losses),
            optimizer=self.facts["optimizer"],
            loss_scale=self.engine.loss_scale,
        )
        curve = {name: list(column) for name, column in run.curve.items()}
        self.writer.submit(Snapshot(counters, tensors, curve, torch.get_rng_state()))
        self.tracker.tags({"pretrain/consumed": counters.consumed, "pretrain/consumed_steps": str(counters.step)})

    def _keep_copy(self, path: Path) -> None:
        """Have a written state outlive this node, and those that it replaces go."""
        self.job.context.keep(path)
        self.job.forget_resume_states(min(folder.name for folder in path.parent.glob("[0-9]*")))

    def _keep(self, step: int) -> None:
        """Keep this step's weights for good, for studies of how neurons come about."""
        weights = self.full_state().get("weights")
        if weights:
            folder = self.job.kept_folder / str(step)
            write_model(folder, self.job.settings.model, weights)
            self.job.context.keep(folder)

    def close(self) -> None:
        self.writer.wait()
        if self.writes:
            self.tracker.close()
