"""A micro-batch that does not fit: the worker halves it and goes on. The process is given a part of the memory only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import training_world

from gpu.clocks import peak_gib
from gpu.models import model_config
from gpu.session import Evidence
from gpu.switches import constants
from gpu.world import made_up
from pipeline.pretrain import worker
from pipeline.pretrain.__main__ import process_group
from pipeline.pretrain.engine import Engine
from pipeline.pretrain.job import MICRO_BATCH, OUTCOME, TOLD
from pipeline.pretrain.logbook import Wishes

GIB = 5  # lent to the process: less than 64 or 32 windows of the six-layer CRATE take, more than 16 do


def run(evidence: Evidence) -> None:
    evidence.attempt("halving", halving, needs=12)


def halving(evidence: Evidence) -> None:
    _, tokens = made_up(evidence)
    config = model_config(evidence, "crate", "S")
    rows = evidence.pick(64, 8)
    recipe = {"batch_tokens": rows * config.n_ctx, "total_tokens": 3 * rows * config.n_ctx, "warmup_steps": 2}
    recipe |= {"eval_every_steps": 0, "eval_tokens": 2 * config.n_ctx, "precision": "bf16"}
    job = training_world.make_job(evidence.work / "out-of-memory", tokens, "job", config, **recipe)
    settings = {"micro_batch": rows, "threads_per_worker": evidence.pick(0, 1), "optimizer": "torch_fused"}
    job = training_world.with_runtime(job, **settings)
    with process_group(300), short_of_memory(evidence):
        worker.work(job, torch.device(evidence.device), Wishes())
    outcome, left = job.read_note(OUTCOME), job.read_note(MICRO_BATCH)
    told = {"micro_batch": left, "told": job.read_note(TOLD), "outcome": outcome, "peak_gib": peak_gib()}
    evidence.row("halving", ok="summary" in outcome and bool(left) and left < rows, **told)


@contextmanager
def short_of_memory(evidence: Evidence) -> Iterator[None]:
    """A card lends the process a part of its memory; a CPU, which has no such limit, refuses more than four windows a pass."""
    if not evidence.tiny:
        torch.cuda.set_per_process_memory_fraction(GIB * 2**30 / torch.cuda.get_device_properties(0).total_memory)
        yield
        return
    accumulate = Engine.accumulate

    def refusing(self: Engine, micro_batches: Any) -> torch.Tensor:
        batches = list(micro_batches)
        if len(batches[0].windows) > 4:
            raise torch.OutOfMemoryError("more than four windows")
        return accumulate(self, batches)

    with constants(Engine, accumulate=refusing):
        yield
