"""A training job on Ray Train. No arithmetic: workers are started, watched and restarted here; what they do is `worker.py`.

Nothing is reported to Ray Train while training: the state to resume from, metrics and progress have places of their own, and
so Ray's throttle on reports has nothing to throttle.
"""

from __future__ import annotations

import os
from typing import Any

from pipeline.config import RuntimeConfig
from pipeline.errors import ConfigError, StageError
from pipeline.pretrain.job import HANG, MICRO_BATCH, OUTCOME, TrainingJob
from pipeline.runtime import has_gpu


def fit(job: TrainingJob) -> None:
    """Train the job's model on its workers, restarting them after failures. The outcome is in `job.outcome_file`.

    Workers that leave because their node is taken away are started anew elsewhere, out of a budget of their own.
    """
    budget = job.context.runtime.max_preemptions
    for preemptions in range(1, budget + 2):
        _fit_once(job)
        if not job.read_note(OUTCOME).get("preempted"):
            return
        if preemptions <= budget:
            job.tell(f"its node is taken away ({preemptions} of {budget}); moving")
    raise StageError(
        f"{job.context.step_name}: its nodes were taken away {budget + 1} times",
        fix="Run again to go on from the last checkpoint, on nodes that stay; or raise runtime.max_preemptions.",
        stage="pretrain",
        fingerprint=job.context.fingerprint,
    )


def _fit_once(job: TrainingJob) -> None:
    """One Ray Train run, as often again as it takes to find a micro-batch that fits the GPUs' memory."""
    from ray.train import TrainingFailedError

    while True:
        limit, hang = job.read_note(MICRO_BATCH), job.read_note(HANG)
        try:
            _trainer(job).fit()
        except TrainingFailedError as error:
            if job.read_note(MICRO_BATCH) != limit:
                continue
            told = job.read_note(HANG)
            raise _failed(job, told if told != hang else _cause(error)) from error
        return


def _trainer(job: TrainingJob) -> Any:
    import ray
    from ray.train import FailureConfig, RunConfig
    from ray.train.torch import TorchConfig

    runtime = job.context.runtime
    on_gpu = has_gpu()
    timeout = runtime.collective_timeout_seconds + 60  # the watchdog is to speak first: it knows names
    one_node = sum(node["Alive"] for node in ray.nodes()) == 1
    return _lean_trainer_class(one_node)(
        _on_worker,
        train_loop_config={"job": job, "one_node": one_node},
        scaling_config=_scaling(runtime, on_gpu),
        torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo", timeout_s=timeout),
        run_config=RunConfig(
            name="train",
            storage_path=str((job.context.scratch / "ray").resolve()),
            # mypy sees the signatures of Ray Train v1, which v2 replaces at run time
            failure_config=FailureConfig(
                max_failures=runtime.max_failures,
                max_preemption_failures=runtime.max_preemptions,  # type: ignore[call-arg]
            ),
        ),
    )


def _lean_trainer_class(one_node: bool) -> Any:
    """TorchTrainer without the actors that this job has no use for: each is a process and seconds of imports.

    There are no Ray datasets; and on a cluster of one node nothing is left to watch or to tidy once that node is gone.
    """
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    unused: tuple[type, ...] = (DatasetsCallback,)
    if one_node:
        unused += (PlacementGroupCleanerCallback,)
        os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"

    class LeanTrainer(TorchTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            return [c for c in super()._create_default_callbacks() if not isinstance(c, unused)]  # type: ignore[misc]

    return LeanTrainer


def _scaling(runtime: RuntimeConfig, on_gpu: bool) -> Any:
    """Workers and what each takes. Without a GPU a worker takes a core by name and the threads it was given in fact."""
    from ray.train import ScalingConfig

    most, least = max(1, runtime.workers_per_cell), runtime.min_workers_per_cell
    if on_gpu and runtime.gpus_per_worker < 1 and most > 1:
        raise ConfigError(
            f"runtime.gpus_per_worker {runtime.gpus_per_worker} lets models share a GPU, but {most} workers of one model "
            "cannot share one",
            fix="Set runtime.workers_per_cell: 1, or runtime.gpus_per_worker: 1.",
        )
    resources = {"GPU": runtime.gpus_per_worker} if on_gpu else {"CPU": 1.0}
    workers: Any = (least, most) if 0 < least < most else most
    return ScalingConfig(num_workers=workers, use_gpu=on_gpu, resources_per_worker=resources)


def _on_worker(config: dict[str, Any]) -> None:
    from ray import train
    from ray.train.torch import get_device

    from pipeline.pretrain.logbook import Wishes
    from pipeline.pretrain.worker import work

    job: TrainingJob = config["job"]
    stop = job.context.stop_requested
    moves = Wishes(stop) if config["one_node"] else Wishes(stop, lambda: train.get_preemption_info() is not None)
    work(job, get_device(), moves)


def _failed(job: TrainingJob, why: str) -> StageError:
    return StageError(
        f"{job.context.step_name}: its workers failed more than {job.context.runtime.max_failures} times: {why}",
        fix="The traceback is in Ray's logs, named at the start. Run again to go on from the last checkpoint.",
        stage="pretrain",
        fingerprint=job.context.fingerprint,
    )


def _cause(error: Exception) -> str:
    failures = getattr(error, "worker_failures", None) or {}
    first = next(iter(failures.values()), error)
    return str(first).strip().rpartition("\n")[2] or type(first).__name__
