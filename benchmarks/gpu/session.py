"""What a stage of the evidence works with: where its rows go, how long it has, how large its sizes are.

A row is one line of JSON in `gpu.jsonl`: which run, when, which stage and name, on what (`card`, `torch`, `cuda`, `git`), and
either `values`, or `error` with the end of its traceback, or why it was `left out`. Rows are written as they are found: what
a crash or a time box cuts off loses nothing that was known before.
"""

from __future__ import annotations

import gc
import json
import math
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

FILE = "gpu.jsonl"
STAGE = "stage"  # the name of the row that says how a stage ended
Row = dict[str, Any]
Chosen = TypeVar("Chosen")


@dataclass(frozen=True)
class Session:
    """One run of the program. Plain data: it travels to the process of every stage."""

    run: str  # when it began, UTC; all its rows carry it
    out: str  # the folder of gpu.jsonl, summary.txt and other texts
    work: str  # a folder that is deleted afterwards
    store: str  # a store with tokens that was brought along, or empty
    tiny: bool  # small sizes on a CPU
    card: str | None
    torch: str
    cuda: str | None
    git: str | None

    def write(self, stage: str, name: str, **facts: Any) -> None:
        """Append a row; `facts` holds one of `values`, `error` (with `trace`) and `left_out`."""
        row = {"run": self.run, "time": utc_now(), "stage": stage, "name": name, **facts}
        row |= {"card": self.card, "torch": self.torch, "cuda": self.cuda, "git": self.git, "tiny": self.tiny}
        with (Path(self.out) / FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(plain(row)) + "\n")  # in one write: stages that run side by side share the file


class Evidence:
    """A stage under way, in its own process."""

    def __init__(self, session: Session, stage: str, deadline: float) -> None:
        self.session, self.stage, self.deadline = session, stage, deadline  # seconds since the epoch
        self.device = "cpu" if session.tiny else "cuda"
        self.out, self.work = Path(session.out), Path(session.work)

    @property
    def tiny(self) -> bool:
        return self.session.tiny

    def left(self) -> float:
        """Seconds that this stage still has."""
        return self.deadline - time.time()

    def pick(self, on_card: Chosen, tiny: Chosen) -> Chosen:
        """A size: the one for a card, or the one that a CPU can do in a moment."""
        return tiny if self.tiny else on_card

    def row(self, name: str, **values: Any) -> None:
        self.session.write(self.stage, name, values=values)

    def left_out(self, name: str, why: str) -> None:
        self.session.write(self.stage, name, left_out=why)

    def attempt(self, name: str, function: Callable[..., Any], *arguments: Any, needs: float = 0.0) -> Any:
        """`function(self, *arguments)`, a piece of the stage. What it raises becomes a row, and the next piece runs.

        Left out when fewer than `needs` seconds are left. Returns the function's result, None where there is none.
        """
        if self.left() < needs:
            return self.left_out(name, f"{self.left():.0f} s were left, it takes about {needs:.0f}")
        try:
            return function(self, *arguments)
        except Exception as error:  # noqa: BLE001 - whatever a piece raises is what was to be found out
            trace = traceback.format_exc().splitlines()[-12:]
            self.session.write(self.stage, name, error=f"{type(error).__name__}: {error}"[:600], trace=trace)
            return None
        finally:
            self._free_memory()

    def _free_memory(self) -> None:
        """What a piece held is gone before the next one's memory is measured."""
        import torch

        gc.collect()
        if torch.cuda.is_available():
            try:
                torch.cuda.empty_cache()
            except RuntimeError as error:  # a crash on the device: each later piece will say so in a row of its own
                print(f"the device's memory was not freed: {error}", flush=True)


def utc_now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def plain(value: Any) -> Any:
    """JSON's types; floats to five digits, and those that are not finite as words, which every JSON reader takes."""
    if hasattr(value, "tolist"):  # a tensor or an array
        value = value.tolist()
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, str | int | bool | None) else str(value)


def read_rows(folder: Path) -> list[Row]:
    """The rows of the last run in a folder; none where there is no file."""
    path = folder / FILE
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []
    return [row for row in rows if row["run"] == rows[-1]["run"]]
