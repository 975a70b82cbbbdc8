"""What is to be tokenized, and how far it is: the plan that the plain loop and the Ray adapter both carry out."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artifacts.store import disk_error
from pipeline.beats import pause_seconds
from pipeline.config import TokensConfig
from pipeline.errors import StageError
from pipeline.progress import Progress
from pipeline.stage import Context
from pipeline.tokens.shard import Facts, make_shard, read_facts
from pipeline.tokens.sources import HELD_OUT, Report, Source


@dataclass(frozen=True)
class TokensJob:
    """All sources of a configuration. Plain data: it travels to workers."""

    config: TokensConfig
    context: Context
    sources: tuple[Source, ...]

    @property
    def shards(self) -> Path:
        return self.context.scratch / "shards"

    @property
    def digests(self) -> Path:
        return self.shards / f"held_out-{self.phases()[1][0].held_out}.npy"

    @property
    def total_bytes(self) -> int:
        return sum(source.bytes for source in self.sources)

    def phases(self) -> list[list[Source]]:
        """Held-out sources, whose digests the others need, then the others."""
        held_out = [source for source in self.sources if source.split in HELD_OUT]
        return [held_out, [source for source in self.sources if source.split not in HELD_OUT]]

    def clear_leftovers(self) -> None:
        """Remove what an attempt that was killed left half-made, here or half sent to the storage."""
        for facts in [folder / "facts.json" for folder in self.shards.glob("*") if folder.is_dir()]:
            if facts.parent.name.startswith(".") or not facts.is_file():
                shutil.rmtree(facts.parent)

    def make(self, source: Source, report: Report) -> None:
        """Make one shard, or find it made, and keep it for later attempts."""
        digests = self.digests if source.split not in HELD_OUT and self.phases()[0] else None
        if digests:
            self.context.bring(digests)
        try:
            make_shard(source, self.config, digests, self.shards, report)
        except OSError as error:  # a source that cannot be read is a ResourceError already
            raise disk_error(error, self.shards) from error
        for path in sorted((self.shards / source.name).iterdir(), key=lambda path: path.name == "facts.json"):
            self.context.keep(path)  # the facts last, as on the disk: without them the shard is made anew

    def is_made(self, source: Source) -> bool:
        return (self.shards / source.name / "facts.json").is_file()

    def facts(self, source: Source) -> Facts:
        self.context.bring(self.shards / source.name)  # it may have been made on another node
        return read_facts(self.shards / source.name)

    def gather_digests(self) -> None:
        """Join what the held-out shards noted of their texts, sorted, for the shards of train."""
        folders = [self.shards / source.name for source in self.sources if source.split in HELD_OUT]
        for folder in folders:
            self.context.bring(folder)
        np.save(self.digests, np.unique(np.concatenate([np.load(folder / "digests.npy") for folder in folders])))
        self.context.keep(self.digests)

    def stop_if_asked(self) -> None:
        if self.context.stop_requested():
            raise StageError("tokenizing stopped as asked", fix="Run again: finished shards are kept.", stage="tokens")


class JobProgress:
    """The bytes read of all sources, of which some are finished and some are under way."""

    def __init__(self, job: TokensJob) -> None:
        self._line: Progress = job.context.progress(job.total_bytes, "bytes")
        self._finished = {source.name: source.bytes for source in job.sources if job.is_made(source)}
        self._line.start_at(sum(self._finished.values()))

    def under_way(self, positions: Mapping[str, int]) -> None:
        """Tell the bytes read of some sources, by name; those that are finished count whole."""
        self._line.update(sum({**positions, **self._finished}.values()))

    def one_under_way(self, source: Source, position: int) -> None:
        self.under_way({source.name: position})

    def finish(self, source: Source) -> None:
        self._finished[source.name] = source.bytes
        self.under_way({})

    def tell(self, **facts: Any) -> None:
        self._line.update(sum(self._finished.values()), **facts)


class Throttled:
    """Passes a shard's reports on every now and then, and asks then whether to stop."""

    def __init__(self, job: TokensJob, tell: Report) -> None:
        self._job, self._tell, self._told = job, tell, 0.0
        self._pause = pause_seconds(job.context) / 5

    def __call__(self, position: int) -> None:
        now = time.monotonic()
        if now - self._told >= self._pause:
            self._told = now
            self._job.stop_if_asked()
            self._tell(position)


def make_here(job: TokensJob, sources: list[Source], progress: JobProgress) -> None:
    """Make the shards one after the other in this process."""
    for source in sources:
        if not job.is_made(source):
            job.make(source, Throttled(job, partial(progress.one_under_way, source)))
            progress.finish(source)
