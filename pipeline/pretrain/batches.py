"""The batches of every step, derived from the recipe and shared out over any number of workers.

A batch is `batch_tokens` of whole windows, chosen by the stateless order of `pipeline.artifacts.order`. World size,
micro-batch and accumulation only say who computes which part of it, never what is in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.artifacts.order import share_of, window_ids
from pipeline.artifacts.tokens import TokenSplit
from pipeline.config import PretrainConfig
from pipeline.errors import ConfigError

Windows = NDArray[np.int64]


@dataclass(frozen=True)
class BatchPlan:
    """How a step's windows are divided: batch_windows = world_size x accumulation x micro_batch."""

    batch_windows: int  # of a step, over all workers
    total_steps: int
    world_size: int
    micro_batch: int  # windows a forward pass and worker

    @property
    def windows_per_worker(self) -> int:
        return self.batch_windows // self.world_size

    @property
    def accumulation(self) -> int:
        """Forward passes of a worker in a step."""
        return self.windows_per_worker // self.micro_batch

    def halved(self) -> BatchPlan | None:
        """The plan with the next smaller micro-batch, at most half as large; None when it is one window already."""
        smaller = [m for m in divisors(self.windows_per_worker) if m <= self.micro_batch // 2]
        return replace(self, micro_batch=smaller[-1]) if smaller else None


def plan_batches(config: PretrainConfig, n_ctx: int, world_size: int, micro_batch: int, fits: int = 1) -> BatchPlan:
    """Divide the recipe's batch over the workers. `micro_batch` 0 takes the largest divisor up to `fits` windows.

    Raises ConfigError, listing what would divide, when something does not.
    """
    batch_windows, rest = divmod(config.batch_tokens, n_ctx)
    if rest or not batch_windows:
        below = max(1, batch_windows) * n_ctx
        raise ConfigError(
            f"pretrain.batch_tokens {config.batch_tokens} is no multiple of model.n_ctx {n_ctx}",
            fix=f"Near it are {below} and {below + n_ctx}.",
        )
    total_steps = config.total_tokens // config.batch_tokens
    if not total_steps:
        raise ConfigError(
            f"pretrain.total_tokens {config.total_tokens} is less than one batch of {config.batch_tokens}",
            fix=f"Give at least {config.batch_tokens}.",
        )
    if batch_windows % world_size:
        raise ConfigError(
            f"a batch of {batch_windows} windows does not divide over {world_size} workers",
            fix=f"runtime.workers_per_cell can be one of {_listed(divisors(batch_windows))}.",
        )
    share = batch_windows // world_size
    if micro_batch and share % micro_batch:
        raise ConfigError(
            f"runtime.micro_batch {micro_batch} does not divide a worker's {share} windows a step",
            fix=f"It can be one of {_listed(divisors(share))}, or 0 for what fits the memory.",
        )
    chosen = micro_batch or max(d for d in divisors(share) if d <= max(1, fits))
    return BatchPlan(batch_windows, total_steps, world_size, chosen)


def divisors(n: int) -> list[int]:
    small = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})


def _listed(values: list[int]) -> str:
    shown = values if len(values) <= 12 else [*values[:6], "...", *values[-5:]]
    return ", ".join(map(str, shown))


class Batches:
    """Reads what the plan says, for one worker."""

    def __init__(self, split: TokenSplit, seed: int, n_ctx: int, rank: int, plan: BatchPlan) -> None:
        self.split, self.seed, self.n_ctx, self.rank, self.plan = split, seed, n_ctx, rank, plan
        self.n_windows = split.n_windows(n_ctx)
        if not self.n_windows:
            raise ConfigError(
                f"the train split has {split.n_tokens} tokens, not one window of {n_ctx + 1}",
                fix="Give more text, or a smaller model.n_ctx.",
            )

    def window_ids(self, step: int) -> Windows:
        """The windows of the whole batch, in order: the same at every world size."""
        return window_ids(self.seed, step, self.plan.batch_windows, self.n_windows)

    def micro_batches(self, ids: Windows) -> Iterator[Windows]:
        """This worker's share of a batch's windows as arrays (micro_batch, n_ctx + 1)."""
        share = self.plan.windows_per_worker
        own = share_of(ids, self.rank, self.plan.world_size)
        for start in range(0, share, self.plan.micro_batch):
            yield self.split.windows(own[start : start + self.plan.micro_batch], self.n_ctx)
