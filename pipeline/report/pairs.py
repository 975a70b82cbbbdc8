"""Like with like: CRATE and GPT-2 models that are equal in everything but what is compared, their architecture.

A pair is equal in every setting that both architectures have: text, tokens seen, shape, context, vocabulary, and the whole
recipe of the training. Seeds are replicas: each side has all of its own, and the sides may have different numbers of them,
since a seed is a draw and not a treatment. Where a sweep varies a setting, the pair at the value that is nearest to the
default comes first, which is the paper's: no loss decides what is compared. What CRATE alone has (lambda, the ISTA steps) is
chosen the same way.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from pipeline.config import Config
from pipeline.naming import flat
from pipeline.report.cells import ARCHITECTURES, IMPORTED_KEY, OWN_KEYS, READING, TOKENS_KEY, Cell, canonical_text
from pipeline.report.text import amount

Measured = Literal["losses", "scores", "both"]
SHOWN_DIFFERENCES = 3
LOSS = "the measurement of the loss"  # beside the dotted keys of what must be equal


@dataclass(frozen=True)
class Pair:
    """Models that may be compared: within a side they differ in their seed alone, between the sides in the architecture."""

    crate: tuple[Cell, ...]
    gpt2: tuple[Cell, ...]
    equal: str  # what is equal, for a sentence: "41.0k tokens each, 1 layer, width 64, context 256"


def pairs(cells: Iterable[Cell], of: Measured = "both") -> list[Pair]:
    """All pairs among `cells`: deepest first, then longest trained, then nearest to the paper's settings.

    `cells` are those that have the measure. `of` says what is compared and so must be equal beside the training: for `losses`
    how they were measured, for `scores` how the neurons were read and judged. Cells of one trained model count once.
    """
    sides: dict[str, dict[str, list[Cell]]] = {architecture: {} for architecture in ARCHITECTURES}
    for cell in cells:
        side = canonical_text([conditions(cell, of), _own(cell)])
        sides[cell.architecture].setdefault(side, []).append(cell)
    found = []
    for crate in sides["crate"].values():
        for gpt2 in sides["gpt2"].values():
            if conditions(crate[0], of) == conditions(gpt2[0], of):
                found.append(
                    Pair(_replicas(crate), _replicas(gpt2), _equal(crate[0]) + _alone(crate[0]) + _alone(gpt2[0]))
                )
    return sorted(found, key=_order)


def deepest_pair(cells: Iterable[Cell], of: Measured = "both") -> Pair | None:
    return next(iter(pairs(cells, of)), None)


def why_no_pair(cells: Iterable[Cell], of: Measured = "both") -> str:
    """Why `cells` hold no pair, by the two that come nearest to being one; empty where there is a pair."""
    cells = list(cells)
    if pairs(cells, of):
        return ""
    for architecture, name in ARCHITECTURES.items():
        if not any(cell.architecture == architecture for cell in cells):
            return f"there is no {name} model here to compare with"
    nearest = min(
        (
            (differences(crate, gpt2, of), crate, gpt2)
            for crate in cells
            for gpt2 in cells
            if (crate.architecture, gpt2.architecture) == ("crate", "gpt2")
        ),
        key=lambda found: len(found[0]),
    )
    return f"{_differences_said(*nearest)}: nothing equal to compare"


def conditions(cell: Cell, of: Measured = "both") -> dict[str, Any]:
    """What must be equal in two models of different architectures, by dotted key."""
    found = {key: value for key, value in cell.training.items() if key not in OWN_KEYS[cell.architecture]}
    del found["model.architecture"]
    found[IMPORTED_KEY] = cell.is_imported  # two architectures come from two folders
    found[TOKENS_KEY] = [
        cell.train_tokens,
        found.get(TOKENS_KEY),
    ]  # seen, and planned: the learning rate follows from them
    sections: tuple[str, ...] = ("tokens.",)
    if of != "losses":
        sections += READING
    if of != "scores":
        found[LOSS] = cell.measure
    return found | {key: value for key, value in cell.values.items() if key.startswith(sections)}


def differences(crate: Cell, gpt2: Cell, of: Measured = "both") -> list[str]:
    """The dotted keys in which two models are not alike."""
    a, b = conditions(crate, of), conditions(gpt2, of)
    return [key for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)]


def _own(cell: Cell) -> dict[str, Any]:
    """What tells models of one architecture apart that stand in equal conditions."""
    return {key: value for key, value in cell.training.items() if key in (*OWN_KEYS[cell.architecture], IMPORTED_KEY)}


def _replicas(cells: Iterable[Cell]) -> tuple[Cell, ...]:
    """Each trained model once."""
    first: dict[str, Cell] = {}
    for cell in cells:
        first.setdefault(cell.training_id, cell)
    return tuple(first.values())


def _order(pair: Pair) -> tuple[Any, ...]:
    crate, gpt2 = pair.crate[0], pair.gpt2[0]
    size = (-crate.model.n_layer, -crate.model.d_model, -crate.train_tokens)
    return (*size, _unusual(crate) + _unusual(gpt2), crate.name, gpt2.name)


def _unusual(cell: Cell) -> float:
    """How far what varies lies from the defaults: one for another word, more than that for numbers many times larger."""
    usual = _defaults()
    return sum(_distance(value, usual.get(key)) for key, value in cell.varying.items() if key != TOKENS_KEY)


def _distance(value: Any, usual: Any) -> float:
    if value == usual:
        return 0.0
    numbers = all(isinstance(number, int | float) and number > 0 for number in (value, usual))
    return abs(math.log(value / usual)) if numbers else 1.0


@cache
def _defaults() -> dict[str, Any]:
    return flat(Config().of_results)


def _alone(cell: Cell) -> str:
    """The values that a side has of what varies in its architecture alone."""
    own = [f"{_short(key)} {value}" for key, value in cell.variant.items() if key in OWN_KEYS[cell.architecture]]
    return f"; {ARCHITECTURES[cell.architecture]} with {', '.join(own)}" if own else ""


def _equal(cell: Cell) -> str:
    """Size and training of a pair, and the values it shares of what else the sweep varies."""
    layers, model = cell.model.n_layer, cell.model
    told = " as the configuration tells of imported models" if cell.is_imported else ""
    parts = [f"{amount(cell.train_tokens)} tokens each{told}", f"{layers} layer{'s' if layers > 1 else ''}"]
    parts += [f"width {model.d_model}", f"context {model.n_ctx}"]
    left_out = (*OWN_KEYS[cell.architecture], TOKENS_KEY, IMPORTED_KEY, "model.n_ctx")
    parts += [f"{_short(key)} {value}" for key, value in cell.variant.items() if key not in left_out]
    return ", ".join(parts)


def _differences_said(keys: list[str], crate: Cell, gpt2: Cell) -> str:
    """The settings `keys` of both, the plainest first, for a sentence."""
    if IMPORTED_KEY in keys:  # all else of an imported model's training is not known
        keys = [IMPORTED_KEY]
    keys = sorted(keys, key=lambda key: key not in (TOKENS_KEY, "model.n_layer"))[:SHOWN_DIFFERENCES]
    return ", ".join(f"{ARCHITECTURES[cell.architecture]} {_said(cell, keys)}" for cell in (crate, gpt2))


def _said(cell: Cell, keys: list[str]) -> str:
    values, parts = conditions(cell), []
    if IMPORTED_KEY in keys:
        parts.append("was trained elsewhere" if cell.is_imported else "was trained here")
    if TOKENS_KEY in keys:
        seen, planned = values[TOKENS_KEY]
        parts.append(f"was trained on {amount(seen)} tokens" + (f" of {amount(planned)}" if planned != seen else ""))
    others = [
        cell.measure_said if key == LOSS else f"{_short(key)} {values.get(key, 'none')}"
        for key in keys
        if key not in (IMPORTED_KEY, TOKENS_KEY)
    ]
    return " and ".join([*parts, f"has {', '.join(others)}"] if others else parts)


def _short(key: str) -> str:
    return key.rpartition(".")[2]
