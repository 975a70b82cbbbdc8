"""The targets on one H100 or H200, and which row each is read from."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from verdicts import Verdicts

from gpu.session import Row, Session
from pipeline.config import PretrainConfig

Value = Callable[[list[Row]], float]


class Missing(Exception):
    """No row tells a target's value; the text says why."""


@dataclass(frozen=True)
class Target:
    """A figure with its bound, or one that is only stated (bound 0)."""

    name: str
    unit: str
    bound: float
    value: Value
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


def found(rows: list[Row], stage: str, name: str, /, **wanted: Any) -> list[dict[str, Any]]:
    """The values of a stage's rows of one name that have all `wanted` values. Raises Missing when there are none."""
    values = [row["values"] for row in rows if (row["stage"], row["name"]) == (stage, name) and "values" in row]
    matching = [of_row for of_row in values if all(of_row.get(key) == value for key, value in wanted.items())]
    if not matching:
        raise Missing(f"no row {name} of the stage {stage}")
    return matching


def best(rows: list[Row], stage: str, name: str, field: str, /, **wanted: Any) -> float:
    values = [of_row[field] for of_row in found(rows, stage, name, **wanted) if field in of_row]
    if not values:
        raise Missing(f"the peak of {rows[-1]['card'] or 'a CPU'} is not known")
    return max(values)


def compiled_step(architecture: str, field: str) -> Value:
    """Of our bare compiled step, forward and backward."""
    wanted = {"side": "ours", "architecture": architecture, "how": "compiled"}
    return lambda rows: best(rows, "train", "step", field, **wanted)


def engine(architecture: str, field: str) -> Value:
    """Of the engine's whole optimizer steps on the product's own settings."""
    wanted = {"architecture": architecture, "size": "B", "plan": "as the product sets it"}
    return lambda rows: best(rows, "engine", "engine", field, **wanted)


def loop(architecture: str, field: str) -> Value:
    return lambda rows: best(rows, "loop", "loop", field, architecture=architecture)


def plain_step(architecture: str) -> Value:
    """Tokens a second of the plain model's compiled step, in the way that is faster."""
    wanted = {"side": "plain", "architecture": architecture, "how": "compiled"}
    return lambda rows: best(rows, "train", "step", "tokens_per_second", **wanted)


def ratio(value: Value, over: Value) -> Value:
    return lambda rows: value(rows) / over(rows)


def percent(value: Value) -> Value:
    return lambda rows: 100 * value(rows)


def one_layer_step(rows: list[Row]) -> float:
    """The least milliseconds of a step of 8,192 tokens of CRATE-1L, however it is run."""
    steps = found(rows, "small", "step", architecture="crate", size="1L")
    fewest = min(step["rows"] for step in steps)
    return min(step["ms"] for step in steps if step["rows"] == fewest)


def extraction(size: str) -> Value:
    """The lower of both precisions, at the larger number of rows a forward pass."""

    def value(rows: list[Row]) -> float:
        read = found(rows, "activations", "extraction", size=size)
        most = max(of_row["rows"] for of_row in read)
        return min(of_row["read_over_forward"] for of_row in read if of_row["rows"] == most)

    return value


def ista_block(rows: list[Row]) -> float:
    return best(rows, "kernels", "ista_block", "ratio")


def ladder(rows: list[Row]) -> float:
    """Hours on one card for all ten models of the paper on all of its tokens, each by its fastest step."""
    hours = 0.0
    for size, architecture in itertools.product(SIZES, ("gpt2", "crate")):
        stage = "train" if size == "B" else "small"
        speed = best(rows, stage, "step", SPEED, side="ours", size=size, architecture=architecture)
        hours += PretrainConfig().total_tokens / speed / 3600
    return hours


SPEED = "tokens_per_second"
SIZES = ("1L", "2L", "3L", "S", "B")
TARGETS = (
    Target("gpt2_b_step", "tokens/s", 520_000, compiled_step("gpt2", SPEED)),
    Target("gpt2_b_step_mfu", "%", 45, percent(compiled_step("gpt2", "mfu"))),
    Target("crate_b_step_mfu", "%", 45, percent(compiled_step("crate", "mfu"))),
    Target("gpt2_b_over_plain", "x", 1.25, ratio(compiled_step("gpt2", SPEED), plain_step("gpt2"))),
    Target("crate_b_over_plain", "x", 1.25, ratio(compiled_step("crate", SPEED), plain_step("crate"))),
    Target("gpt2_b_engine", "tokens/s", 520_000, engine("gpt2", SPEED)),
    Target("crate_b_engine_mfu", "%", 45, percent(engine("crate", "mfu"))),
    Target("gpt2_b_engine_over_step", "x", 0.95, ratio(engine("gpt2", SPEED), compiled_step("gpt2", SPEED))),
    Target("crate_b_engine_over_step", "x", 0.95, ratio(engine("crate", SPEED), compiled_step("crate", SPEED))),
    Target("gpt2_b_loop_over_step", "x", 0.95, ratio(loop("gpt2", SPEED), compiled_step("gpt2", SPEED))),
    Target("crate_b_loop_over_step", "x", 0.95, ratio(loop("crate", SPEED), compiled_step("crate", SPEED))),
    Target("crate_1l_step_of_8192_tokens", "ms", 1, one_layer_step, at_most=True),
    Target("crate_b_extraction_over_forward", "x", 0.6, extraction("B")),
    Target("crate_3l_extraction_over_forward", "x", 0.6, extraction("3L")),
    Target("ista_block_over_compiled_plain", "x", 1.25, ista_block),
    Target("paper_ladder", "GPU h", 0, ladder),
    Target("gpt2_b_step_peak", "GiB", 0, compiled_step("gpt2", "peak_gib")),
    Target("crate_b_step_peak", "GiB", 0, compiled_step("crate", "peak_gib")),
    Target("gpt2_b_engine_peak", "GiB", 0, engine("gpt2", "peak_gib")),
    Target("crate_b_engine_peak", "GiB", 0, engine("crate", "peak_gib")),
)
