"""The batches of every step, derived from the recipe and shared out over any number of workers.

A batch is `batch_tokens` of whole windows, chosen by the stateless order of `pipeline.artifacts.order`. World size,
micro-batch and accumulation only say who computes which part of it, never what is in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.artifacts.order import share_of, window_ids
from pipeline.artifacts.tokens import TokenSplit
from pipeline.config import PretrainConfig
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    import torch

Windows = NDArray[np.int64]


@dataclass(frozen=True)
class BatchPlan:
    """How a step's windows are divided. Every worker makes `accumulation` passes of `micro_batch` windows, the last of them
    filled up with windows that do not count where the batch does not divide (elastic workers only)."""

    batch_windows: int  # of a step, over all workers
    total_steps: int
    world_size: int
    micro_batch: int  # windows a forward pass and worker

    @property
    def windows_per_worker(self) -> int:
        return -(-self.batch_windows // self.world_size)

    @property
    def accumulation(self) -> int:
        """Forward passes of a worker in a step."""
        return self.windows_per_worker // self.micro_batch

    def at_most(self, micro_batch: int) -> BatchPlan:
        """The same plan with the largest micro-batch that divides and is not above `micro_batch` windows."""
        return replace(self, micro_batch=max(d for d in divisors(self.windows_per_worker) if d <= max(1, micro_batch)))


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass of one worker. `weight` is its share of the batch's mean loss, times the number of workers."""

    windows: torch.Tensor  # (micro_batch, n_ctx + 1) int64; in pinned memory where it is for a GPU
    n_counted: int  # the first so many of them; the others only fill up
    weight: float


def plan_batches(
    config: PretrainConfig, n_ctx: int, world_size: int, micro_batch: int = 0, fits: int = 1, elastic: bool = False
) -> BatchPlan:
    """Divide the recipe's batch over the workers. `micro_batch` 0 takes the largest divisor up to `fits` windows.

    Raises ConfigError, listing what would divide, when something does not. Elastic workers need not divide the batch, and their
    micro-batch is the largest up to `micro_batch` that divides a worker's part.
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
    if world_size > batch_windows or (batch_windows % world_size and not elastic):
        raise ConfigError(
            f"a batch of {batch_windows} windows does not divide over {world_size} workers",
            fix=f"runtime.workers_per_cell can be one of {_listed(divisors(batch_windows))}.",
        )
    plan = BatchPlan(batch_windows, total_steps, world_size, micro_batch or 1)
    if plan.windows_per_worker % plan.micro_batch:
        if elastic:  # it divided for as many workers as there were
            return plan.at_most(micro_batch)
        raise ConfigError(
            f"runtime.micro_batch {micro_batch} does not divide a worker's {plan.windows_per_worker} windows a step",
            fix=f"It can be one of {_listed(divisors(plan.windows_per_worker))}, or 0 for what fits the memory.",
        )
    return plan if micro_batch else plan.at_most(fits)


def divisors(n: int) -> list[int]:
    small = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})


def _listed(values: list[int]) -> str:
    shown = values if len(values) <= 12 else [*values[:6], "...", *values[-5:]]
    return ", ".join(map(str, shown))


class Batches:
    """Reads what the plan says, for one worker; `pinned` for a GPU, to which pinned memory is copied beside its work."""

    def __init__(
        self, split: TokenSplit, seed: int, n_ctx: int, rank: int, plan: BatchPlan, pinned: bool = False
    ) -> None:
        self.split, self.seed, self.n_ctx, self.rank, self.plan = split, seed, n_ctx, rank, plan
        self.pinned = pinned
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._ahead: tuple[int, Future[list[MicroBatch]]] | None = None  # the step after the one that was taken
        self.n_windows = split.n_windows(n_ctx)
        if not self.n_windows:
            raise ConfigError(
                f"the train split has {split.n_tokens} tokens, not one window of {n_ctx + 1}",
                fix="Give more text, or a smaller model.n_ctx.",
            )

    def window_ids(self, step: int) -> Windows:
        """The windows of the whole batch, in order: the same at every world size."""
        return window_ids(self.seed, step, self.plan.batch_windows, self.n_windows)

    def take(self, step: int) -> tuple[Windows, list[MicroBatch]]:
        """A step's windows, and this worker's share of them; meanwhile a thread reads the next step's."""
        if self._ahead is None or self._ahead[0] != step:
            self._ahead = self._read(step)
        mine = self._ahead[1].result()
        self._ahead = self._read(step + 1)
        return self.window_ids(step), mine

    def _read(self, step: int) -> tuple[int, Future[list[MicroBatch]]]:
        return step, self._reader.submit(lambda: list(self.micro_batches(self.window_ids(step))))

    def close(self) -> None:
        self._reader.shutdown(cancel_futures=True)

    def micro_batches(self, ids: Windows) -> Iterator[MicroBatch]:
        """This worker's share of a batch's windows."""
        import torch

        plan = self.plan
        own = share_of(ids, self.rank, plan.world_size)
        filled = np.concatenate([own, np.full(plan.windows_per_worker - len(own), own[-1])])
        for start in range(0, len(filled), plan.micro_batch):
            counted = min(plan.micro_batch, max(0, len(own) - start))
            windows = torch.from_numpy(self.split.windows(filled[start : start + plan.micro_batch], self.n_ctx))
            windows = windows.pin_memory() if self.pinned else windows
            yield MicroBatch(windows, counted, counted * plan.world_size / plan.batch_windows)
