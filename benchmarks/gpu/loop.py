"""The training loop as a worker runs it: batches from the store, metrics, checkpoints and all, on the product's own settings."""

from __future__ import annotations

import time
from typing import Any

import torch
import training_world

from gpu.clocks import forget_peak, peak_gib, synchronize
from gpu.models import ARCHITECTURES, ROWS, model_config, speed
from gpu.session import Evidence
from gpu.switches import constants
from gpu.world import made_up
from pipeline.pretrain import worker
from pipeline.pretrain.__main__ import process_group
from pipeline.pretrain.job import OUTCOME, TOLD
from pipeline.pretrain.logbook import Logbook, Wishes


def run(evidence: Evidence) -> None:
    with process_group(300):
        for architecture in ARCHITECTURES[::-1]:
            evidence.attempt(f"loop of {architecture}", loop, architecture, needs=25)
            torch.compiler.reset()


class Timed:
    """When the steps were done, read at two of them alone: between these the host is not made to wait."""

    def __init__(self, first: int, last: int) -> None:
        self.at: dict[int, float] = dict.fromkeys((first, last), 0.0)

    def logbook(self) -> type[Logbook]:
        """The product's own, which also reads the clock."""
        at = self.at

        class TimedLogbook(Logbook):
            def after_step(self, run: Any) -> None:
                if run.counters.step in at:
                    synchronize()
                    at[run.counters.step] = time.perf_counter()
                super().after_step(run)

        return TimedLogbook

    def milliseconds(self) -> float:
        """Of a step between the two."""
        (first, began), (last, ended) = sorted(self.at.items())
        return 1000 * (ended - began) / (last - first)


def loop(evidence: Evidence, architecture: str) -> None:
    _, tokens = made_up(evidence)
    config = model_config(evidence, architecture, "B")
    warm, n_steps = evidence.pick((4, 16), (2, 6))
    rows_a_step, micro_batch = evidence.pick((256, ROWS), (4, 2))
    recipe = {"batch_tokens": rows_a_step * config.n_ctx, "total_tokens": n_steps * rows_a_step * config.n_ctx}
    recipe |= {"warmup_steps": 2, "eval_every_steps": 0, "eval_tokens": 8 * config.n_ctx, "precision": "bf16"}
    job = training_world.make_job(evidence.work / "loop", tokens, architecture, config, **recipe)
    settings = {"micro_batch": micro_batch, "threads_per_worker": evidence.pick(0, 1), "log_every_steps": 10}
    job = training_world.with_runtime(job, checkpoint_every_steps=10_000, **settings)
    timed = Timed(warm, n_steps - 1)  # the last step is followed by the held-out loss and the export
    forget_peak()
    with constants(worker, Logbook=timed.logbook()):
        worker.work(job, torch.device(evidence.device), Wishes())
    outcome = job.read_note(OUTCOME)
    told = {"architecture": architecture, "size": "B", "told": job.read_note(TOLD), "peak_gib": peak_gib()}
    evidence.row(
        "loop",
        ok="summary" in outcome,
        outcome=outcome,
        **told,
        **speed(evidence, config, rows_a_step, timed.milliseconds()),
    )
