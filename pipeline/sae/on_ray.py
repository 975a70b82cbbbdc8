"""Sparse autoencoders on Ray: one worker a group of layers. No arithmetic here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.saes import Site
from pipeline.runtime import has_gpu
from pipeline.sae.group import GroupResult, make_group
from pipeline.stage import Context

if TYPE_CHECKING:
    from pipeline.sae.stage import Settings


def make_groups(
    settings: Settings, inputs: Mapping[str, Artifact], groups: Sequence[Sequence[Site]], context: Context
) -> list[GroupResult]:
    """All groups' results, in their order, each made where a core or GPU is free. Groups share nothing but files."""
    import ray

    threads = max(1, context.runtime.threads_per_worker)
    options: dict[str, Any] = {"num_cpus": threads, "name": context.step_name}
    options["max_retries"] = context.runtime.max_failures
    if has_gpu():
        options["num_gpus"] = context.runtime.gpus_per_worker
    task = ray.remote(**options)(_in_worker)
    refs = [task.remote(threads, settings, inputs, group, context, rank == 0) for rank, group in enumerate(groups)]
    return ray.get(refs)


def _in_worker(threads: int, *arguments: Any) -> GroupResult:
    import torch

    torch.set_num_threads(threads)
    return make_group(*arguments)
