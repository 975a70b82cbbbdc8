"""How a training speaks to the outside: none of it changes a result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Figures = dict[str, dict[str, Any]]  # site -> a row of the curve


@dataclass(frozen=True)
class Watcher:
    """`states` is where an interrupted training is found again; the functions do nothing unless given."""

    states: Path
    checkpoint_every_steps: int
    on_start: Callable[[int], None] = lambda step: None
    on_figures: Callable[[int, Figures], None] = lambda step, figures: None
    keep: Callable[[Path], None] = lambda path: None  # called with each state file written
    stop_requested: Callable[[], bool] = lambda: False
    close: Callable[[], None] = lambda: None  # when the training ends, however it ends
