"""What a person reads when Ray itself failed a step: the cause in two lines, not the name of Ray's class alone."""

from __future__ import annotations

from ray.exceptions import RayTaskError, WorkerCrashedError

from pipeline.execute import lost


def test_a_step_that_could_not_start_names_what_was_missing() -> None:
    told = "The remote function failed to import on the worker.\n\nTraceback ...\nModuleNotFoundError: No module named 'x'\n"
    error = lost("crate-1l/pretrain", RayTaskError("run_step", "traceback", RuntimeError(told)).as_instanceof_cause())
    what, fix = str(error).split("\n")
    assert what.startswith("crate-1l/pretrain could not start: The remote function failed to import on the worker.")
    assert what.endswith("[ModuleNotFoundError: No module named 'x']") and "same packages" in fix


def test_a_step_whose_process_is_gone_says_so() -> None:
    what, fix = str(lost("gpt2-1l/interpret", WorkerCrashedError())).split("\n")
    assert what.startswith("gpt2-1l/interpret was lost: WorkerCrashedError: ") and "to continue" in fix
