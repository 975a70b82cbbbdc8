"""What every worker of a training job does, under Ray Train or torchrun alike: build, restore, train, export."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from crate_model.flops import count_parameters
from crate_model.model import LanguageModel
from pipeline.artifacts.checkpoint import CURVE, CURVE_SCHEMA, write_curve, write_model
from pipeline.artifacts.tokens import TokenSplit
from pipeline.errors import ArtifactError, CrateError, StageError
from pipeline.pretrain import resume
from pipeline.pretrain.batches import Batches, plan_batches
from pipeline.pretrain.engine import Engine
from pipeline.pretrain.job import TrainingJob
from pipeline.pretrain.logbook import Logbook
from pipeline.pretrain.loop import Run, Stopped, train
from pipeline.pretrain.resume import Counters, Snapshot
from pipeline.stage import Summary

CPU_TOKENS_A_PASS = 8192


def work(job: TrainingJob, device: torch.device, asked_to_stop: Callable[[], bool]) -> None:
    """One worker's part in a process group that is already up. Rank 0 leaves the artifact's files and the outcome.

    An error that a restart cannot mend is written as the outcome and not raised, so that nobody tries again.
    """
    threads = job.context.runtime.threads_per_worker
    if threads:
        torch.set_num_threads(threads)
    try:
        summary = _train(job, device, asked_to_stop)
    except Stopped:
        summary = _outcome(StageError("stopped as asked", fix="Run the same command to go on.", stage="pretrain"))
    except CrateError as error:
        summary = _outcome(error)
    if dist.get_rank() == 0:
        _write_outcome(job.outcome_file, summary)


def _train(job: TrainingJob, device: torch.device, asked_to_stop: Callable[[], bool]) -> dict:
    settings, runtime = job.settings, job.context.runtime
    config, n_ctx = settings.pretrain, settings.model.n_ctx
    fits = max(1, CPU_TOKENS_A_PASS // n_ctx)
    plan = plan_batches(config, n_ctx, dist.get_world_size(), runtime.micro_batch, fits)
    batches = Batches(TokenSplit(job.tokens, "train"), settings.seed, n_ctx, dist.get_rank(), plan)
    snapshot = _agreed_snapshot(job.resume_folder)
    torch.manual_seed(settings.seed)
    model = LanguageModel(settings.model)
    optimizer = "torch_fused"
    if snapshot:
        _check_fits(snapshot, model, job.resume_folder)
        model.load_state_dict(snapshot.tensors["weights"])
    engine = Engine(model, config, runtime, device, plan.micro_batch, plan.accumulation, optimizer)
    run = Run(Counters(), {name: [] for name in CURVE_SCHEMA.names}, plan.total_steps)
    if snapshot:
        engine.restore(snapshot.tensors, snapshot.counters.step - len(snapshot.counters.skipped_steps))
        if snapshot.rng is not None:
            torch.set_rng_state(snapshot.rng)
        run = Run(snapshot.counters, snapshot.curve, plan.total_steps)
        del snapshot
    logbook = Logbook(job, engine, optimizer, asked_to_stop)
    logbook.start(run)
    train(engine, batches, config, run, logbook)
    logbook.close()
    weights = engine.full_state().get("weights")
    return _export(job, run, weights, optimizer) if weights else {}


def _agreed_snapshot(folder: Path) -> Snapshot | None:
    """The newest whole snapshot in rank 0's eyes, read by every worker."""
    found = [str(resume.newest(folder) or "")] if dist.get_rank() == 0 else [""]
    if dist.get_world_size() > 1:
        dist.broadcast_object_list(found)
    return resume.read(Path(found[0])) if found[0] else None


def _check_fits(snapshot: Snapshot, model: LanguageModel, folder: Path) -> None:
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    if not resume.same_shapes(snapshot.tensors, shapes):
        raise ArtifactError(
            f"the checkpoints in {folder} are of another model", fix="Delete that folder and run again."
        )


def _export(job: TrainingJob, run: Run, weights: resume.Tensors, optimizer: str) -> dict:
    """Fill the artifact's folder; returns the outcome with its summary."""
    write_model(job.out_folder, job.settings.model, weights)
    write_curve(job.out_folder / CURVE, run.curve)
    if job.kept_folder.is_dir():
        shutil.copytree(job.kept_folder, job.out_folder / "steps")
    counted = count_parameters(job.settings.model)
    summary: Summary = {
        "n_params": counted.total_without_positions,
        "n_params_non_embedding": counted.non_embedding,
        "train_tokens": run.counters.tokens,
        "train_loss": run.curve["loss"][-1],
        "val_loss": run.curve["val_loss"][-1],
        "consumed": run.counters.consumed,
        "skipped_steps": run.counters.skipped_steps,
        "optimizer": optimizer,
    }
    return {"summary": summary}


def _outcome(error: CrateError) -> dict:
    return {"error": {"type": type(error).__name__, "what": error.what, "fix": error.fix}}


def _write_outcome(path: Path, outcome: dict) -> None:
    making = path.with_name(f".{path.name}-{os.getpid()}")
    making.write_text(json.dumps(outcome), encoding="utf-8")
    making.replace(path)
