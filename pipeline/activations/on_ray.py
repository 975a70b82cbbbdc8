"""Extraction on Ray Data: a pool of actors that hold the model, shards in, counts out. No arithmetic here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.beats import Beat, watched
from pipeline.progress import Progress
from pipeline.ray_data import be_quiet, own_error
from pipeline.runtime import has_gpu

if TYPE_CHECKING:
    from pipeline.activations.extract import Job


class ShardReader:
    """One actor of the pool."""

    def __init__(self, job: Job) -> None:
        from pipeline.activations.extract import Extractor

        self.extractor = Extractor(job)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        beat = Beat(self.extractor.job.context, row["shard"])
        return row | {"tokens": self.extractor.read_shard(row["shard"], beat)}


def read_alone(row: dict[str, Any], job: Job) -> dict[str, Any]:
    """One shard, in one of Ray's workers that go from task to task, whose number of threads is left as it was."""
    import torch

    threads = torch.get_num_threads()
    try:
        return ShardReader(job)(row)
    finally:
        torch.set_num_threads(threads)


def read_shards(job: Job, shards: Sequence[int], progress: Progress) -> None:
    """Have the shards read by `job.n_workers` actors, each with a core or a share of a GPU."""
    import ray
    from ray.data import ActorPoolStrategy

    be_quiet()
    rows = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards))
    gpus = job.context.runtime.gpus_per_worker if has_gpu() else None
    resources: dict[str, Any] = {"num_cpus": 0 if gpus else 1, "num_gpus": gpus}
    if len(shards) == 1:  # an actor is a new process, which takes longer to start than a small model to be read
        read = rows.map(read_alone, fn_args=(job,), **resources)  # type: ignore[arg-type]
    else:
        # One shard at a time each: else the first actor that is up takes what the others are there for.
        pool = ActorPoolStrategy(size=min(job.n_workers, len(shards)), max_tasks_in_flight_per_actor=1)
        read = rows.map(ShardReader, fn_constructor_args=(job,), compute=pool, **resources)  # type: ignore[arg-type]
    start, finished = progress.state.done, dict[str, int]()
    try:
        with watched(job.context, lambda beats: progress.update(start + sum({**beats, **finished}.values()))):
            for row in read.iter_rows():
                finished[str(row["shard"])] = row["tokens"]
    except ray.exceptions.RayError as error:
        raise own_error(error) or error from None
    progress.update(start + sum(finished.values()))
