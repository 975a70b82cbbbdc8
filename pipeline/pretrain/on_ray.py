"""A training job on Ray Train. No arithmetic: workers are started, watched and restarted here; what they do is `worker.py`."""

from __future__ import annotations

from typing import Any

from pipeline.config import RuntimeConfig
from pipeline.errors import StageError
from pipeline.pretrain.job import TrainingJob


def fit(job: TrainingJob) -> None:
    """Train the job's model on its workers, restarting them after failures. The outcome is in `job.outcome_file`."""
    import ray
    from ray.train import FailureConfig, RunConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    runtime = job.context.runtime
    on_gpu = ray.cluster_resources().get("GPU", 0) > 0
    trainer = TorchTrainer(
        _on_worker,
        train_loop_config={"job": job},
        scaling_config=_scaling(runtime, on_gpu),
        torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
        run_config=RunConfig(
            name=job.context.fingerprint,
            storage_path=str((job.context.scratch / "ray").resolve()),
            failure_config=FailureConfig(max_failures=runtime.max_failures),
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise StageError(
            f"{job.context.step_name}: its workers failed more than {runtime.max_failures} times: {_cause(error)}",
            fix="The traceback is in Ray's logs, named at the start. Run again to go on from the last checkpoint.",
            stage="pretrain",
            fingerprint=job.context.fingerprint,
        ) from error


def _scaling(runtime: RuntimeConfig, on_gpu: bool) -> Any:
    from ray.train import ScalingConfig

    workers = max(1, runtime.workers_per_cell)
    resources = {"GPU": runtime.gpus_per_worker} if on_gpu else {"CPU": 1.0}
    return ScalingConfig(num_workers=workers, use_gpu=on_gpu, resources_per_worker=resources)


def _on_worker(config: dict[str, Any]) -> None:
    from ray.train.torch import get_device

    from pipeline.pretrain.worker import work

    work(config["job"], get_device(), asked_to_stop=config["job"].context.stop_requested)


def _cause(error: Exception) -> str:
    failures = getattr(error, "worker_failures", {}) or {}
    first = next(iter(failures.values()), error)
    return str(first).strip().rpartition("\n")[2] or type(first).__name__
