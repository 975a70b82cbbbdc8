"""Shards on a Ray cluster: one Ray Data task a source, nothing but its number travels. No arithmetic here.

Text and tokens never enter the object store: a task streams its source from the disk or storage to the shard's files, so
there is nothing to spill or shuffle. Ray runs the task of a lost worker again; whatever was finished is found in scratch.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from pipeline.beats import Beat, watched
from pipeline.ray_data import be_quiet, own_error
from pipeline.tokens.job import JobProgress, Throttled, TokensJob
from pipeline.tokens.sources import Source


def make_shards(job: TokensJob, sources: list[Source], progress: JobProgress) -> None:
    """Make the shards that are not made yet, largest source first, as many at once as the cluster has cores for."""
    import ray

    left = sorted((source for source in sources if not job.is_made(source)), key=lambda s: s.bytes, reverse=True)
    if not left:
        return
    be_quiet()
    numbers = ray.data.from_items([{"number": number} for number in range(len(left))], override_num_blocks=len(left))
    made = numbers.map(partial(_make, job, left), num_cpus=1)
    with watched(job.context, progress.under_way):
        try:
            for row in made.iter_rows():
                progress.finish(left[row["number"]])
        except ray.exceptions.RayTaskError as error:
            raise own_error(error) or error from None


def _make(job: TokensJob, sources: list[Source], row: dict[str, Any]) -> dict[str, Any]:
    os.environ.setdefault("RAYON_NUM_THREADS", "1")  # fastokens: a task has one core
    source = sources[row["number"]]
    job.stop_if_asked()
    job.make(source, Throttled(job, Beat(job.context, source.name)))
    return row
