"""What both users of Ray Data need: its own talk switched off, and our errors out of its wrappings."""

from __future__ import annotations

import logging

from pipeline.errors import CrateError


def be_quiet() -> None:
    """No bars and no plans printed; errors of a worker reach the driver with what they were raised as."""
    from ray.data import DataContext

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True  # otherwise our errors lose themselves in Ray's wrapping


def own_error(error: BaseException | None) -> CrateError | None:
    """The CrateError among the causes of what Ray raised: it comes wrapped more than once."""
    while error is not None:
        if isinstance(error, CrateError):
            return error
        error = getattr(error, "cause", None) or error.__cause__ or error.__context__
    return None
