"""The DAG played through in simulated time: the same order and the same limits as `pipeline.execute`, no work done."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.forecast.work import Work


@dataclass(frozen=True)
class Task:
    """A step to be played: its cell (empty for steps of the whole sweep), what it waits for, what it takes."""

    name: str
    cell: str
    waits_for: tuple[str, ...]
    work: Work


@dataclass(frozen=True)
class Timeline:
    """When every task began and ended, in seconds from the start."""

    begun: Mapping[str, float]
    ended: Mapping[str, float]
    tasks: Mapping[str, Task] = field(repr=False)

    @property
    def makespan(self) -> float:
        return max(self.ended.values(), default=0.0)

    @property
    def gpu_seconds(self) -> float:
        """Of GPUs that were at work; a cluster pays for the others as well."""
        return sum(task.work.gpus * task.work.seconds for task in self.tasks.values())

    def critical_path(self) -> list[str]:
        """The chain of tasks, each waiting for the one before it or for its GPUs, that ends last."""
        path = [max(self.ended, key=lambda name: self.ended[name])] if self.ended else []
        while path and self.begun[path[-1]] > 0:
            start = self.begun[path[-1]]
            before = [name for name, end in self.ended.items() if abs(end - start) < 1e-6 and name not in path]
            if not before:
                break
            inputs = [name for name in before if name in self.tasks[path[-1]].waits_for]
            path.append((inputs or before)[0])
        return path[::-1]


def play(tasks: list[Task], gpus: float, cores: float, parallel_cells: int) -> Timeline:
    """Tasks in their given order as soon as their inputs, the GPUs and the cores are there; at most so many cells at once.

    Raises ValueError when a task wants more than the whole cluster has.
    """
    too_large = [task.name for task in tasks if task.work.gpus > gpus + 1e-9 or task.work.cores > cores + 1e-9]
    if too_large:
        raise ValueError(f"{', '.join(too_large)} can never start on {gpus:g} GPUs and {cores:g} cores")
    state = _State(tasks, gpus, cores, parallel_cells)
    while state.waiting or state.running:
        state.start_what_can()
        state.wait_for_the_next_end()
    return Timeline(state.begun, state.ended, {task.name: task for task in tasks})


class _State:
    def __init__(self, tasks: list[Task], gpus: float, cores: float, parallel_cells: int) -> None:
        self.waiting, self.gpus, self.cores, self.room = list(tasks), gpus, cores, parallel_cells
        self.now, self.begun, self.ended = 0.0, {}, {}  # type: float, dict[str, float], dict[str, float]
        self.running: list[tuple[float, int, Task]] = []
        self.order = {task.name: index for index, task in enumerate(tasks)}
        self.left = {cell: sum(task.cell == cell for task in tasks) for cell in {task.cell for task in tasks}}
        self.under_way: set[str] = set()

    def start_what_can(self) -> None:
        for task in list(self.waiting):
            if self._may_start(task):
                self.waiting.remove(task)
                self.gpus, self.cores = self.gpus - task.work.gpus, self.cores - task.work.cores
                self.begun[task.name] = self.now
                heapq.heappush(self.running, (self.now + task.work.seconds, self.order[task.name], task))

    def _may_start(self, task: Task) -> bool:
        if task.cell and task.cell not in self.under_way:
            if len(self.under_way) >= self.room:
                return False
            self.under_way.add(task.cell)
        fits = task.work.gpus <= self.gpus + 1e-9 and task.work.cores <= self.cores + 1e-9
        return fits and all(name in self.ended for name in task.waits_for)

    def wait_for_the_next_end(self) -> None:
        self.now, _, task = heapq.heappop(self.running)
        self.gpus, self.cores = self.gpus + task.work.gpus, self.cores + task.work.cores
        self.ended[task.name] = self.now
        self.left[task.cell] -= 1
        if not self.left[task.cell]:
            self.under_way.discard(task.cell)
