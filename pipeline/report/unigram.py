"""Which models show that they use context: whose loss is below what any model without context must have on those tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.report.study import Cell


@dataclass(frozen=True)
class ContextUsers:
    cells: tuple[Cell, ...]  # measured
    below: tuple[Cell, ...]
    entropies: str  # of the tokens that their losses are of, nats


def context_users(models: Sequence[Cell]) -> ContextUsers | None:
    """Of the models that `evaluate` measured; None where there are none.

    No model without context has a loss below the entropy of the very tokens that are predicted, under their own frequencies.
    That of the complete text would not do for a part of it: a few windows of easy text are below it by chance.
    """
    measured = tuple(cell for cell in models if "evaluate" in cell.artifacts)
    if not measured:
        return None
    summaries = [cell.artifacts["evaluate"].summary for cell in measured]
    entropies = [f"{entropy:.3f}" for entropy in sorted(summary["unigram_entropy"] for summary in summaries)]
    below = tuple(
        cell
        for cell, summary in zip(measured, summaries, strict=True)
        if summary["val_loss"] < summary["unigram_entropy"]
    )
    return ContextUsers(measured, below, " to ".join(dict.fromkeys((entropies[0], entropies[-1]))))
