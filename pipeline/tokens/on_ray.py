"""Shards on a Ray cluster: one Ray Data task a source, nothing but its number travels. No arithmetic here.

Text and tokens never enter the object store: a task streams its source from the disk or storage to the shard's files, so
there is nothing to spill or shuffle. Ray runs the task of a lost worker again; whatever was finished is found in scratch.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

from pipeline.errors import CrateError
from pipeline.tokens.job import JobProgress, Throttled, TokensJob
from pipeline.tokens.sources import Source

BEATS = "tokens"  # notes of the run: how far each shard under way is
NEAR_PAUSE_SECONDS, FAR_PAUSE_SECONDS = 1.0, 15.0  # between beats, on a folder and on an object storage


def make_shards(job: TokensJob, sources: list[Source], progress: JobProgress) -> None:
    """Make the shards that are not made yet, largest source first, as many at once as the cluster has cores for."""
    import ray

    left = sorted((source for source in sources if not job.is_made(source)), key=lambda s: s.bytes, reverse=True)
    if not left:
        return
    _be_quiet()
    numbers = ray.data.from_items([{"number": number} for number in range(len(left))], override_num_blocks=len(left))
    made = numbers.map(partial(_make, job, left), num_cpus=1)
    with _watched(job, progress):
        try:
            for row in made.iter_rows():
                progress.finish(left[row["number"]])
        except ray.exceptions.RayTaskError as error:
            raise _own_error(error) from error


def _make(job: TokensJob, sources: list[Source], row: dict[str, Any]) -> dict[str, Any]:
    os.environ.setdefault("RAYON_NUM_THREADS", "1")  # fastokens: a task has one core
    source = sources[row["number"]]
    job.stop_if_asked()
    job.make(source, Throttled(job, partial(_beat, job, source), _pause(job)))
    job.context.store.delete_note(job.context.run_name, f"{BEATS}/{source.name}")
    return row


def _beat(job: TokensJob, source: Source, position: int) -> None:
    job.context.store.write_note(job.context.run_name, f"{BEATS}/{source.name}", str(position).encode())


def _pause(job: TokensJob) -> float:
    return FAR_PAUSE_SECONDS if job.context.store.storage else NEAR_PAUSE_SECONDS


@contextlib.contextmanager
def _watched(job: TokensJob, progress: JobProgress) -> Iterator[None]:
    """Tell the progress of shards under way from their beats, in a thread."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_pause(job)):
            beats = job.context.store.notes(job.context.run_name, BEATS)
            progress.under_way(sum(int(position) for position in beats.values()))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _be_quiet() -> None:
    from ray.data import DataContext

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True  # otherwise our errors lose themselves in Ray's wrapping


def _own_error(error: BaseException) -> BaseException:
    """Our own error out of Ray's wrappings, if there is one."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, CrateError):
        seen = getattr(seen, "cause", None) or seen.__cause__
    return seen or error
