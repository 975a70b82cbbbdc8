"""What every worker of a training job does, under Ray Train or torchrun alike: build, restore, train, export."""

from __future__ import annotations

import contextlib
import gc
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from crate_model.flops import activation_bytes, count_parameters
from crate_model.model import LanguageModel
from pipeline.artifacts.checkpoint import CURVE, CURVE_SCHEMA, write_curve, write_model
from pipeline.artifacts.tokens import TokenSplit
from pipeline.config import RuntimeConfig
from pipeline.errors import ArtifactError, CrateError, ResourceError, StageError
from pipeline.pretrain import optimizers, resume
from pipeline.pretrain.batches import Batches, BatchPlan, plan_batches
from pipeline.pretrain.cores import take_cores
from pipeline.pretrain.engine import Engine, check_precision, zero_stage
from pipeline.pretrain.job import HANG, MICRO_BATCH, OPTIMIZER, OUTCOME, PretrainSettings, TrainingJob
from pipeline.pretrain.logbook import Logbook, Wishes
from pipeline.pretrain.loop import Run, Stopped, train
from pipeline.pretrain.optimizers import Choice
from pipeline.pretrain.resume import Counters, Snapshot
from pipeline.pretrain.watchdog import Watchdog

logger = logging.getLogger(__name__)
CPU_TOKENS_A_PASS = 8192  # more gain nothing on a CPU
MEMORY_FOR_ACTIVATIONS = 0.8  # of what the optimizer leaves free on a GPU


def work(job: TrainingJob, device: torch.device, wishes: Wishes) -> None:
    """One worker's part in a process group that is already up. Rank 0 leaves the artifact's files and the outcome.

    An error that a restart cannot mend is left as the outcome and not raised, so that nobody tries again.
    """
    threads = job.context.runtime.threads_per_worker
    if threads:
        torch.set_num_threads(threads)
        if device.type == "cpu":
            take_cores(threads)
    try:
        outcome = _train_in_memory(job, device, wishes)
    except Stopped as left:
        error = StageError("stopped as asked", fix="Run the same command to go on.", stage="pretrain")
        outcome = {"preempted": True} if left.preempted else _error(error)
    except CrateError as error:
        outcome = _error(error)
    if dist.get_rank() == 0:
        job.write_note(OUTCOME, outcome)


def _train_in_memory(job: TrainingJob, device: torch.device, wishes: Wishes) -> dict[str, Any]:
    """Train; when a GPU's memory does not suffice, begin anew at the last checkpoint with a smaller micro-batch.

    A single worker does so by itself. One of several leaves a note and fails, since the others wait for it in a collective:
    whoever started them starts them again.
    """
    check_precision(job.settings.pretrain.precision, device)
    while True:
        plan = _plan(job, device)
        try:
            return _train(job, device, wishes, plan)
        except torch.OutOfMemoryError as error:
            _note_smaller(job, plan, error)
            if plan.world_size > 1:
                raise
        gc.collect()
        torch.cuda.empty_cache()


def _plan(job: TrainingJob, device: torch.device) -> BatchPlan:
    runtime, settings = job.context.runtime, job.settings
    fits = _windows_that_fit(settings, runtime, device)
    elastic = runtime.min_workers_per_cell > 0
    n_ctx, world_size = settings.model.n_ctx, dist.get_world_size()
    plan = plan_batches(settings.pretrain, n_ctx, world_size, runtime.micro_batch, fits, elastic)
    limit = job.read_note(MICRO_BATCH)
    return plan.at_most(limit) if limit else plan


def _windows_that_fit(settings: PretrainSettings, runtime: RuntimeConfig, device: torch.device) -> int:
    """A first guess of the micro-batch: by activation memory on a GPU, by what is fast on a CPU."""
    if device.type == "cpu":
        return max(1, CPU_TOKENS_A_PASS // settings.model.n_ctx)
    width = 4 if settings.pretrain.precision == "fp32" else 2
    states = 20 * count_parameters(settings.model).total  # weights, gradients, master weights, both moments
    free = MEMORY_FOR_ACTIVATIONS * runtime.gpus_per_worker * torch.cuda.mem_get_info(device)[1] - states
    one = activation_bytes(settings.model, 2, bytes_per_value=width) - activation_bytes(
        settings.model, 1, bytes_per_value=width
    )
    return max(1, int(free // one))


def _note_smaller(job: TrainingJob, plan: BatchPlan, error: Exception) -> None:
    if plan.micro_batch == 1:
        raise ResourceError(
            f"one window of {job.settings.model.n_ctx} tokens does not fit the GPU's memory: {_first_line(error)}",
            fix="Set runtime.activation_checkpointing: true, runtime.zero_stage: 3 or runtime.offload_optimizer: true.",
        ) from error
    smaller = plan.at_most(plan.micro_batch // 2).micro_batch
    job.tell(f"GPU memory does not suffice for a micro-batch of {plan.micro_batch} windows; going on with {smaller}")
    job.write_note(MICRO_BATCH, smaller)


def _train(job: TrainingJob, device: torch.device, wishes: Wishes, plan: BatchPlan) -> dict[str, Any]:
    settings, runtime = job.settings, job.context.runtime
    split = TokenSplit(job.tokens, "train")
    batches = Batches(split, settings.seed, settings.model.n_ctx, dist.get_rank(), plan, device.type == "cuda")
    snapshot = _agreed_snapshot(job)
    torch.manual_seed(settings.seed)
    model = LanguageModel(settings.model)
    if snapshot:
        _check_fits(snapshot, model, job.resume_folder)
        model.load_state_dict(snapshot.tensors["weights"])
    optimizer = _agreed_optimizer(job, model, device)
    with contextlib.ExitStack() as closing:
        engine = Engine(model, settings.pretrain, runtime, device, plan.micro_batch, plan.accumulation, optimizer.name)
        closing.callback(engine.close)
        closing.callback(batches.close)
        run = Run(Counters(), {name: [] for name in CURVE_SCHEMA.names}, plan.total_steps)
        if snapshot:
            run = _restore(engine, snapshot, plan.total_steps)
            del snapshot
        if not run.finished:
            engine.compile_like_eager(next(batches.micro_batches(batches.window_ids(run.counters.step))))
        if engine.not_compiled and dist.get_rank() == 0:
            job.tell(f"the model runs uncompiled: {engine.not_compiled}")
        facts = {
            **optimizer.facts,
            "zero_stage": engine.stage,
            "world_size": plan.world_size,
            "micro_batch": plan.micro_batch,
            "accumulation": plan.accumulation,
            "compiled": engine.compiled,
            "not_compiled": engine.not_compiled,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        }
        watchdog = _watchdog(job, plan.world_size)
        if watchdog:
            closing.callback(watchdog.close)
        logbook = Logbook(job, engine, facts, wishes, watchdog)
        closing.callback(logbook.close)
        logbook.start(run)
        train(engine, batches, settings.pretrain, run, logbook)
        weights = logbook.full_state().get("weights")
        return _export(job, run, weights, optimizer.name) if weights else {}


def _watchdog(job: TrainingJob, world_size: int) -> Watchdog | None:
    if world_size == 1:
        return None
    store = dist.distributed_c10d._get_default_store()
    timeout = job.context.runtime.collective_timeout_seconds
    return Watchdog(store, dist.get_rank(), world_size, timeout, lambda what: job.write_note(HANG, what))


def _agreed_snapshot(job: TrainingJob) -> Snapshot | None:
    """The newest whole snapshot in rank 0's eyes, read by every worker."""
    found = ""
    if dist.get_rank() == 0:
        job.bring_resume_states()
        found = getattr(resume.newest(job.resume_folder, job.tell), "name", "")
    name = _from_rank_0(found)
    if not name:
        return None
    job.context.bring(job.resume_folder / name)
    return resume.read(job.resume_folder / name)


def _from_rank_0(value: Any) -> Any:
    values = [value]
    if dist.get_world_size() > 1:
        dist.broadcast_object_list(values)
    return values[0]


def _check_fits(snapshot: Snapshot, model: LanguageModel, folder: Path) -> None:
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    if not resume.same_shapes(snapshot.tensors, shapes):
        raise ArtifactError(
            f"the checkpoints in {folder} are of another model", fix="Delete that folder and run again."
        )


def _restore(engine: Engine, snapshot: Snapshot, total_steps: int) -> Run:
    counters = snapshot.counters
    engine.restore(snapshot.tensors, counters.updates, counters.loss_scale)
    if snapshot.rng is not None:
        torch.set_rng_state(snapshot.rng)
    logger.info("going on after step %d", counters.step)
    return Run(counters, snapshot.curve, total_steps)


def _agreed_optimizer(job: TrainingJob, model: LanguageModel, device: torch.device) -> Choice:
    """The optimizer that was asked for; for `auto`, what rank 0 measures as the fastest, in this and all later attempts."""
    runtime, config = job.context.runtime, job.settings.pretrain
    offload = runtime.offload_optimizer
    if runtime.optimizer != "auto":
        optimizers.require(runtime.optimizer, config, device, offload, job.tell)
        return Choice(runtime.optimizer)
    choice = None
    if dist.get_rank() == 0:
        noted = job.read_note(OPTIMIZER)
        choice = Choice(**noted) if noted else None
        if choice is None or optimizers.not_for_auto(choice.name, device.type, offload):  # of another machine
            shapes = [tuple(parameter.shape) for parameter in model.parameters()]
            if stage := zero_stage(runtime, job.settings.model, config.precision):
                n_values = sum(parameter.numel() for parameter in model.parameters())
                shapes = [(-(-n_values // dist.get_world_size()),)] if stage else shapes
            choice = optimizers.choose(shapes, config, device, offload)
            job.write_note(OPTIMIZER, vars(choice))
            told = (
                "optimizer {optimizer}; milliseconds a step: {optimizer_milliseconds}; left out: {optimizer_left_out}"
            )
            job.tell(told.format(**choice.facts), logging.INFO)
    return _from_rank_0(choice)


def _export(job: TrainingJob, run: Run, weights: resume.Tensors, optimizer: str) -> dict[str, Any]:
    """Fill the artifact's folder; returns the outcome with its summary."""
    folder = job.export_folder
    write_model(folder, job.settings.model, weights)
    write_curve(folder / CURVE, run.curve)
    if job.kept_folder.is_dir():
        shutil.copytree(job.kept_folder, folder / "steps", dirs_exist_ok=True)
    job.context.keep(folder)
    summary = {
        **count_parameters(job.settings.model).as_told,
        "train_tokens": run.counters.tokens,
        "train_loss": run.curve["loss"][-1],
        "val_loss": run.curve["val_loss"][-1],
        "consumed": run.counters.consumed,
        "skipped_steps": run.counters.skipped_steps,
        "optimizer": optimizer,
    }
    return {"summary": summary}


def _error(error: CrateError) -> dict[str, Any]:
    return {"error": {"type": type(error).__name__, "what": error.what, "fix": error.fix}}


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
