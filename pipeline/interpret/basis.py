"""What a metric's scores stand on: how many of its excerpts a neuron has, and whether they are enough for the metric's name.

A metric is its excerpts: without top ones, "top and random" is "random only" under another name. So a neuron has a score of a
metric only where it has at least half of the excerpts of every kind that the metric explains and scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

LEAST_SHARE = 0.5


@dataclass(frozen=True)
class Part:
    """The excerpts of one kind that a metric asks for of a neuron."""

    kind: str  # top, random, quantile, out of context
    explained: bool  # or scored
    asked: int
    tokens: int  # an excerpt

    def enough(self, there: np.ndarray | int) -> Any:
        """Whether so many are enough for the metric's name, as is given: a bool, or an array of them."""
        return there >= LEAST_SHARE * self.asked


@dataclass(frozen=True)
class Basis:
    """Of one metric, how many excerpts of each part some neurons have, (neurons,)."""

    there: dict[Part, np.ndarray]

    def enough(self) -> np.ndarray:
        """(neurons,) bool."""
        return np.all([part.enough(there) for part, there in self.there.items()], axis=0)

    def count(self, explained: bool) -> np.ndarray:
        """(neurons,) excerpts that are explained, or scored."""
        return np.sum([there for part, there in self.there.items() if part.explained == explained], axis=0)

    def joined(self, other: Basis) -> Basis:
        """Of these neurons and then of others."""
        return Basis({part: np.concatenate([there, other.there[part]]) for part, there in self.there.items()})


def layer_facts(basis: Basis, n_tokens: np.ndarray, scored: np.ndarray) -> dict[str, Any]:
    """Columns of a layer's row: means over the neurons with a score (None where there is none) beside what a neuron should have.

    `n_tokens` (neurons,) are the tokens of each neuron's correlation, `scored` (neurons,) says which have one.
    """
    parts = list(basis.there)

    def mean(values: np.ndarray) -> float | None:
        return float(values[scored].mean()) if scored.any() else None

    return {
        "explained": mean(basis.count(explained=True)),
        "explained_asked": sum(part.asked for part in parts if part.explained),
        "excerpts": mean(basis.count(explained=False)),
        "excerpts_asked": sum(part.asked for part in parts if not part.explained),
        "tokens": mean(n_tokens),
        "tokens_asked": sum(part.asked * part.tokens for part in parts if not part.explained),
    }


def model_facts(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The same of all layers: means over all neurons with a score."""
    scored = [row for row in rows if row["n_scored"]]
    weights = [row["n_scored"] for row in scored]
    facts: dict[str, Any] = {"n_units": sum(row["n_units"] for row in rows)}
    for name in ("explained", "excerpts", "tokens"):
        facts[name] = float(np.average([row[name] for row in scored], weights=weights)) if scored else None
        facts[f"{name}_asked"] = rows[0][f"{name}_asked"]
    return facts


def by_kind(layers: list[tuple[Basis, np.ndarray]]) -> list[dict[str, Any]]:
    """One row a part, for captions: what a neuron should have of it, and the mean over the neurons with a score.

    `layers` are (basis, which neurons have a score (neurons,)) of one metric.
    """
    rows = []
    for part in layers[0][0].there:
        there = np.concatenate([basis.there[part][scored] for basis, scored in layers])
        mean = float(there.mean()) if len(there) else None
        rows.append(
            {"kind": part.kind, "explained": part.explained, "asked": part.asked, "tokens": part.tokens, "mean": mean}
        )
    return rows
