"""A configuration's whole sweep, forecast for a cluster: hours, what bounds each stage, cost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from pipeline.config import Config
from pipeline.config_load import LoadedConfig
from pipeline.dag import Plan, Step, plan, stage_in
from pipeline.forecast.machine import Machine, Rates
from pipeline.forecast.schedule import Task, Timeline, play
from pipeline.forecast.work import Costs, Work
from pipeline.runtime import resolve

HOUR = 3600.0


@dataclass(frozen=True)
class Forecast:
    """A played sweep and what it would cost."""

    machine: Machine
    workers_per_cell: int
    parallel_cells: int
    timeline: Timeline

    @property
    def hours(self) -> float:
        return self.timeline.makespan / HOUR

    @property
    def gpu_hours(self) -> float:
        """Paid for: every GPU, from the first step to the report."""
        return self.machine.gpus * self.hours

    @property
    def busy(self) -> float:
        """The share of them that was at work."""
        return self.timeline.gpu_seconds / HOUR / self.gpu_hours if self.gpu_hours else 0.0

    @property
    def price(self) -> float:
        return self.gpu_hours * self.machine.gpu_hour + self.machine.cores * self.hours * self.machine.core_hour

    def stages(self) -> dict[str, tuple[float, float, str]]:
        """Of every stage: hours of the longest one, GPU-hours in all, and what bounds the longest."""
        longest: dict[str, Work] = {}
        total: defaultdict[str, float] = defaultdict(float)
        for name, task in self.timeline.tasks.items():
            stage = stage_in(name)
            total[stage] += task.work.gpus * task.work.seconds / HOUR
            if stage not in longest or task.work.seconds > longest[stage].seconds:
                longest[stage] = task.work
        return {stage: (work.seconds / HOUR, total[stage], work.bound) for stage, work in longest.items()}


def forecast(
    loaded: LoadedConfig,
    machine: Machine,
    rates: Rates | None = None,
    kept: Collection[str] = (),
    text_bytes: Mapping[str, int] | None = None,
) -> Forecast:
    """Plays the sweep with the workers and the cells side by side that it would choose on this cluster.

    Steps of which the store has the artifact, `kept`, take nothing. `text_bytes` says how much text each tokens step has
    by its name; without it, `tokens.expected_text_bytes` does.
    """
    whole = plan(loaded)
    resources = {"GPU": float(machine.gpus), "CPU": float(machine.cores)}
    runtime = resolve(loaded.config.runtime, resources, len(whole.cells))
    per_worker = runtime.gpus_per_worker if machine.gpus else 0.0
    costs = Costs(machine, rates or Rates(), runtime.workers_per_cell, per_worker)
    tasks = tasks_of(whole, costs, kept, text_bytes or {})
    timeline = play(tasks, machine.gpus, machine.cores, runtime.parallel_cells)
    return Forecast(machine, runtime.workers_per_cell, runtime.parallel_cells, timeline)


def tasks_of(whole: Plan, costs: Costs, kept: Collection[str], text_bytes: Mapping[str, int]) -> list[Task]:
    made_by, tasks = whole.made_by, []
    for name, step in whole.steps.items():
        if name not in kept:
            work = costs.of(step.stage.name, _with_text(whole, step, text_bytes))
            waits_for = tuple(other for other in step.inputs.values() if other not in kept)
            if made_by[name] != name:
                work, waits_for = Work(0, 0, 0.0, "made by another cell"), (made_by[name],)
            tasks.append(Task(name, step.cell, waits_for, work))
    report = Work(0, 1, costs.rates.report_seconds, "one core")
    return [*tasks, Task("report", "", tuple(task.name for task in tasks), report)]


def _with_text(whole: Plan, step: Step, text_bytes: Mapping[str, int]) -> Config:
    """A step's configuration, told how much text it has."""
    config = whole.config_of(step)
    text = whole.texts[step.cell] if step.cell else step.name
    if text not in text_bytes:
        return config
    tokens = config.tokens.model_copy(update={"expected_text_bytes": text_bytes[text]})
    return config.model_copy(update={"tokens": tokens})


def best_split(loaded: LoadedConfig, machine: Machine, rates: Rates | None = None) -> list[Forecast]:
    """Forecasts for every number of cells side by side that divides the cluster, the shortest first."""
    cells = len(loaded.cells())
    tried = []
    for side_by_side in range(1, min(cells, max(machine.gpus, 1)) + 1):
        if machine.gpus % side_by_side == 0:
            runtime = loaded.config.runtime.model_copy(
                update={"parallel_cells": side_by_side, "workers_per_cell": machine.gpus // side_by_side}
            )
            config = loaded.config.model_copy(update={"runtime": runtime})
            tried.append(forecast(replace(loaded, config=config), machine, rates))
    return sorted(tried, key=lambda found: found.hours)
