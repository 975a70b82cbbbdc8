"""The planned steps as Ray tasks, chained through object references.

A step waits for its inputs' references, finds its artifact or makes it, and returns a `Result`; a failed step returns its
error, so that its descendants skip themselves by name and the other cells go on. At most `parallel_cells` cells are under
way at once, largest first.
"""

from __future__ import annotations

import errno
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeline import runtime
from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.store import disk_error
from pipeline.dag import Plan, Step
from pipeline.errors import CrateError, StageError
from pipeline.stage import Context
from pipeline.this_machine import provenance
from pipeline.tracking import TrackerSpec

logger = logging.getLogger(__name__)
POLL_SECONDS = 0.25


@dataclass(frozen=True)
class Result:
    """How a step ended: with an artifact (made now or kept), or with an error of its own or of a step before it."""

    step: str
    artifact: Artifact | None = None
    made: bool = False
    seconds: float = 0.0
    error: CrateError | None = None
    skipped_for: str = ""  # the step whose failure kept this one from running

    @property
    def missing(self) -> str:
        """Why there is no artifact; empty when there is one."""
        if self.skipped_for:
            return f"not run: {self.skipped_for} failed"
        return f"failed: {self.error.what}" if self.error else ""


def run_step(step: Step, context: Context, *inputs: Result) -> Result:
    """Make one artifact, or find it made. Inputs come in the order of `step.inputs`."""
    for result in inputs:
        if result.artifact is None:
            return Result(step.name, skipped_for=result.skipped_for or result.step, error=result.error)
    started = time.monotonic()
    artifacts = {name: result.artifact for name, result in zip(step.inputs, inputs, strict=True) if result.artifact}
    try:
        with context.store.claim(step.fingerprint):
            if found := context.store.find(step.stage.name, step.fingerprint):
                return Result(step.name, found)
            artifact = _make(step, context, artifacts)
    except CrateError as error:
        return Result(step.name, error=error, seconds=time.monotonic() - started)
    except Exception as error:
        logger.exception("step %s failed", step.name)
        return Result(step.name, error=_told(step, error, context), seconds=time.monotonic() - started)
    return Result(step.name, artifact, made=True, seconds=time.monotonic() - started)


def _make(step: Step, context: Context, inputs: Mapping[str, Artifact]) -> Artifact:
    store = context.store
    step.stage.check_outside(step.settings, step.outside)
    making = store.making_folder(step.fingerprint)
    started = time.time()
    try:
        summary = step.stage.run(step.settings, inputs, making, context)
        made_in = {"started": started, "seconds": time.time() - started, "run": context.run_name}
        seals = {name: artifact.manifest.seal for name, artifact in inputs.items()}
        return store.publish(making, step.recipe | {"input_seals": seals}, summary, provenance() | made_in)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _told(step: Step, error: Exception, context: Context) -> CrateError:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_error(error, context.store.root)
    what = f"{step.name} failed: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    chained = StageError(
        what,
        fix="The traceback is in the logs named at the start. Run again to continue from what is done.",
        stage=step.stage.name,
        fingerprint=step.fingerprint,
    )
    chained.__cause__ = error
    return chained


class Execution:
    """Runs a plan on the connected Ray cluster. `on_result` is told each step's end, `on_tick` is called while waiting."""

    def __init__(
        self,
        plan: Plan,
        base: Context,
        kept: Mapping[str, Artifact],
        trackers: Mapping[str, TrackerSpec],
        on_result: Callable[[Result], None],
        on_tick: Callable[[], None],
    ) -> None:
        self.plan, self.base, self.trackers = plan, base, trackers
        self.on_result, self.on_tick = on_result, on_tick
        self.results = {name: Result(name, artifact) for name, artifact in kept.items()}
        self.refs: dict[str, Any] = {}  # step name -> Result (kept) or reference to one

    def run(self) -> dict[str, Result]:
        """All results by step name. A raised stop request ends the wait; steps under way are left to save and leave."""
        for step in self.plan.of_cell(""):
            self._submit(step)
        waiting = [cell.name for cell in self.plan.cells]
        while waiting or self._pending():
            under_way = {self.plan.steps[name].cell for name in self._pending()} - {""}
            room = self.base.runtime.parallel_cells - len(under_way)
            while waiting and room > 0:
                room -= self._start_cell(waiting.pop(0))
            self._collect()
            self.on_tick()
        return self.results

    def _start_cell(self, cell: str) -> int:
        """Submit all steps of a cell; 1 if any has to be made."""
        steps = self.plan.of_cell(cell)
        for step in steps:
            self._submit(step)
        return int(any(step.name in self._pending() for step in steps))

    def _submit(self, step: Step) -> None:
        import ray

        if step.name in self.results:
            self.refs[step.name] = self.results[step.name]
            return
        context = replace(
            self.base,
            step_name=step.name,
            fingerprint=step.fingerprint,
            tracker=self.trackers.get(step.cell, TrackerSpec()),
        )
        options = task_options(step, runtime.has_gpu(), self.base.runtime.gpus_per_worker)
        task = ray.remote(**options)(run_step)
        self.refs[step.name] = task.remote(step, context, *(self.refs[name] for name in step.inputs.values()))

    def _pending(self) -> list[str]:
        return [name for name in self.refs if name not in self.results]

    def _collect(self) -> None:
        import ray

        names = {self.refs[name]: name for name in self._pending()}
        if not names:
            return
        ready, _ = ray.wait(list(names), num_returns=len(names), timeout=POLL_SECONDS)
        for ref in ready:
            result = self._result_of(names[ref], ref)
            self.results[result.step] = result
            self.on_result(result)

    def _result_of(self, name: str, ref: Any) -> Result:
        import ray

        try:
            return ray.get(ref)
        except ray.exceptions.RayError as error:
            return Result(name, error=lost(name, error))


def lost(name: str, error: Exception) -> StageError:
    """What Ray says of a task that returned no result: it could not start (RayTaskError), or its process is gone."""
    cause = getattr(error, "cause", None)
    lines = [line for line in str(cause or error).splitlines() if line.strip()] or [type(error).__name__]
    why = lines[0] if len(lines) == 1 else f"{lines[0].strip()} [{lines[-1].strip()}]"
    if cause is not None:
        fix = "Every node needs the same packages and the job's code. Mend that and run again to continue."
        return StageError(f"{name} could not start: {why}", fix=fix, stage=name)
    fix = "Its node or process died more often than it is tried again. Run again to continue."
    return StageError(f"{name} was lost: {type(error).__name__}: {why}", fix=fix, stage=name)


def task_options(step: Step, has_gpu: bool, gpus_per_worker: float) -> dict[str, Any]:
    """Ray options of a step's task: a step that only orchestrates takes nothing, one that computes takes a core."""
    options: dict[str, Any] = {"num_cpus": int(step.stage.computes), "name": step.name, "max_retries": 2}
    if step.stage.computes and has_gpu:
        options["num_gpus"] = min(1.0, gpus_per_worker)
    return options
