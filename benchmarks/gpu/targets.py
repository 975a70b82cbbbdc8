"""The targets on one H100 or H200, and which row each is read from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from verdicts import Verdicts

from gpu.session import Row, Session


class Missing(Exception):
    """No row tells a target's value; the text says why."""


@dataclass(frozen=True)
class Target:
    """A figure with its bound, or one that is only stated (bound 0)."""

    name: str
    unit: str
    bound: float
    value: Callable[[list[Row]], float]
    at_most: bool = False

    @property
    def told(self) -> str:
        return f"{'<=' if self.at_most else '>='} {self.bound:g}" if self.bound else ""


def judge(verdicts: Verdicts, session: Session, rows: list[Row]) -> None:
    """Print and keep the verdict of every target. Tiny sizes are read like a card's, and judged by nothing."""
    for target in TARGETS:
        if not session.card and not session.tiny:
            verdicts.not_run(target.name, target.unit, target.told, "no CUDA device")
            continue
        try:
            value = target.value(rows)
        except Missing as why:
            verdicts.not_run(target.name, target.unit, target.told, str(why))
            continue
        if not target.bound or session.tiny:
            verdicts.measured(target.name, value, target.unit)
        elif target.at_most:
            verdicts.at_most(target.name, value, target.unit, target.bound)
        else:
            verdicts.at_least(target.name, value, target.unit, target.bound)


def found(rows: list[Row], stage: str, name: str, **wanted: Any) -> list[dict[str, Any]]:
    """The values of a stage's rows of one name that have all `wanted` values. Raises Missing when there are none."""
    values = [row["values"] for row in rows if (row["stage"], row["name"]) == (stage, name) and "values" in row]
    matching = [of_row for of_row in values if all(of_row.get(key) == value for key, value in wanted.items())]
    if not matching:
        raise Missing(f"no row {name} of the stage {stage}")
    return matching


def best(rows: list[Row], stage: str, name: str, field: str, **wanted: Any) -> float:
    values = [of_row[field] for of_row in found(rows, stage, name, **wanted) if field in of_row]
    if not values:
        raise Missing(f"the peak of {rows[-1]['card'] or 'a CPU'} is not known")
    return max(values)


def compiled_step(architecture: str, field: str) -> Callable[[list[Row]], float]:
    wanted = {"side": "ours", "architecture": architecture, "how": "compiled"}
    return lambda rows: best(rows, "train", "step", field, **wanted)


def over_plain(architecture: str) -> Callable[[list[Row]], float]:
    """Our compiled step over the plain model's fastest compiled one in the same run."""

    def value(rows: list[Row]) -> float:
        wanted = {"side": "plain", "architecture": architecture, "how": "compiled"}
        return compiled_step(architecture, "tokens_per_second")(rows) / best(
            rows, "train", "step", "tokens_per_second", **wanted
        )

    return value


def percent(value: Callable[[list[Row]], float]) -> Callable[[list[Row]], float]:
    return lambda rows: 100 * value(rows)


def one_layer_step(rows: list[Row]) -> float:
    """The least milliseconds of a step of 8,192 tokens of CRATE-1L, however it is run."""
    steps = found(rows, "small", "step", architecture="crate", size="1L")
    fewest = min(step["rows"] for step in steps)
    return min(step["ms"] for step in steps if step["rows"] == fewest)


TARGETS = (
    Target("gpt2_b_step", "tokens/s", 520_000, compiled_step("gpt2", "tokens_per_second")),
    Target("gpt2_b_step_mfu", "%", 45, percent(compiled_step("gpt2", "mfu"))),
    Target("crate_b_step_mfu", "%", 45, percent(compiled_step("crate", "mfu"))),
    Target("gpt2_b_over_plain", "x", 1.25, over_plain("gpt2")),
    Target("crate_b_over_plain", "x", 1.25, over_plain("crate")),
    Target("crate_1l_step_of_8192_tokens", "ms", 1, one_layer_step, at_most=True),
)
