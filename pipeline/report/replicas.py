"""Seeds as replicas: their means, with intervals over seeds where there are several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.intervals import of_values
from pipeline.report.study import Study
from pipeline.report.text import is_of_autoencoder


def mean_and_half(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and half its 95 % interval by Student's t: NaN for a single value, or equal ones."""
    found = of_values(values)
    return float(np.mean(values)), found.interval[1] - found.value if found else float("nan")


def over_seeds(study: Study, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of scores, those that differ in the seed of their training alone made one, under the name of the first of its cells.

    The interval of such a row is over seeds; `seeds` says how many there are, `cells` which. What several cells share is in it
    once. Rows without a mean are left out.
    """
    groups: dict[Any, dict[str, dict[str, Any]]] = {}
    for row in rows:
        if row["mean"] is not None:
            cell, stage = study.by_name[row["cell"]], scored_by(row["family"])
            like = (cell.made_of(stage, of_any_seed=True), row["family"], row["metric"], row.get("layer"))
            groups.setdefault(like, {}).setdefault(cell.made_of(stage), row)
    return [_joined(list(group.values())) for group in groups.values()]


def scored_by(family: str) -> str:
    """The stage whose artifact has the scores of a family."""
    return "interpret_features" if is_of_autoencoder(family) else "interpret"


def _joined(rows: list[dict[str, Any]]) -> dict[str, Any]:
    if len(rows) == 1:
        return rows[0] | {"seeds": 1, "cells": [rows[0]["cell"]]}
    means = [row["mean"] for row in rows]
    found = of_values(means)
    low, high = found.interval if found else (None, None)
    joined = rows[0] | {
        "seeds": len(rows),
        "cells": [row["cell"] for row in rows],
        "mean": float(np.mean(means)),
        "low": low,
        "high": high,
    }
    for spread in ("std", "variance"):
        if spread in joined:
            joined[spread] = float(np.mean([row[spread] or 0.0 for row in rows]))
    return joined | {count: sum(row[count] for row in rows) for count in ("n_scored", "n_neurons") if count in joined}
