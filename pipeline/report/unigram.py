"""Which models show that they use context: whose loss is below what any model without context must have on that text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.report.study import Cell

MOST_SPREAD = 5.51  # nats: the standard deviation of a token's -log p is never more with 50,257 kinds of tokens
NORMAL_QUANTILE = 1.96


@dataclass(frozen=True)
class ContextUsers:
    cells: tuple[Cell, ...]  # measured, with a known entropy of their text
    below: tuple[Cell, ...]
    entropies: str  # of their texts, nats
    margin: str  # what is asked for beyond the entropy, for a sentence; empty where nothing is


def context_users(models: Sequence[Cell]) -> ContextUsers | None:
    """Of the models that `evaluate` measured; None where there are none.

    On the whole text no model without context has a loss below the text's unigram entropy. On a part of it chance may, by what
    a mean over its tokens can be off.
    """
    measured = [(cell, *facts) for cell in models if (facts := _facts(cell))]
    if not measured:
        return None
    below = tuple(cell for cell, loss, entropy, margin in measured if loss < entropy - margin)
    ends = [limit([entropy for _, _, entropy, _ in measured]) for limit in (min, max)]
    widest = max(margin for *_, margin in measured)
    said = f", by more than the {widest:.2f} nats that the part of it that was measured may be off" if widest else ""
    entropies = " to ".join(dict.fromkeys(f"{entropy:.3f}" for entropy in ends))
    return ContextUsers(tuple(cell for cell, *_ in measured), below, entropies, said)


def _facts(cell: Cell) -> tuple[float, float, float] | None:
    """Loss, entropy and margin, nats a token."""
    if "evaluate" not in cell.artifacts:
        return None
    summary = cell.artifacts["evaluate"].summary
    if cell.tokens is None or cell.unigram_entropy is None:
        return None
    whole = summary["val_tokens"] >= cell.tokens.summary["val"]["n_tokens"] - 1  # nothing stands before the first
    return float(summary["val_loss"]), cell.unigram_entropy, 0.0 if whole else margin(summary["val_tokens"])


def margin(n_tokens: int) -> float:
    """How far the mean surprise of `n_tokens` tokens of a text may be below that of all of them, nats; 95 %.

    Tokens of one document are more alike than these; the largest variance that any text can have leaves some room for that.

    *Source:* the variance of -log p is at most 1 + log(K - 1)^2 / 4 for K kinds of tokens: Reeb and Wolf, IEEE Transactions on
    Information Theory 61 (2015).
    """
    return NORMAL_QUANTILE * MOST_SPREAD / n_tokens**0.5
