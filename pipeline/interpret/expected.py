"""From what a language model expects in place of "unknown" to an activation: the expected value over the numbers 0..10.

`corrected` compares all eleven numbers. Where a tokenizer writes "10" as "1" and "0", the weight of "1" is shared between 1
and 10 by what the model expects after "1": a "0" or the end of the line.
`paper` looks at the five likeliest tokens only, takes those that are whole numbers in 0..10, and predicts 0 if none is: so a 10
written in two tokens is read as 1.
"""

from __future__ import annotations

import numpy as np

HIGHEST = 10
PAPER_TOP = 5
VALUES = np.arange(HIGHEST + 1, dtype=np.float64)
NOT_A_NUMBER = -1


def number_of(text: str) -> int:
    """The number 0..10 that a token's text is, or -1."""
    return int(text) if text.isascii() and text.isdigit() and text == str(int(text)) and int(text) <= HIGHEST else -1


def from_numbers(logits: np.ndarray) -> np.ndarray:
    """(n,) expected values from logits or log-probabilities (n, 11) of the numbers 0..10; -inf for one that cannot be."""
    weights = _weights(logits)
    return weights @ VALUES / weights.sum(-1)


def from_digits(logits: np.ndarray, zero_after_one: np.ndarray) -> np.ndarray:
    """(n,) expected values where "10" is "1" then "0": logits (n, 10) of the digits, probability (n,) of a "0" after "1"."""
    weights = _weights(logits)
    shares = weights / weights.sum(-1, keepdims=True)
    return shares @ VALUES[:HIGHEST] + shares[:, 1] * zero_after_one * (HIGHEST - 1)


def from_top(values: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """(n,) expected values as published, from the top tokens' numbers (n, k) (-1: not a number) and logits (n, k)."""
    numbers = values != NOT_A_NUMBER
    weights = _weights(np.where(numbers, logits, -np.inf))
    total = weights.sum(-1)
    return np.where(total > 0, (weights * np.where(numbers, values, 0)).sum(-1) / np.where(total > 0, total, 1), 0.0)


def _weights(logits: np.ndarray) -> np.ndarray:
    """exp(logits), scaled row by row so that the largest is 1; a row of -inf gives zeros."""
    logits = np.asarray(logits, dtype=np.float64)
    highest = logits.max(-1, keepdims=True)
    return np.exp(logits - np.where(np.isfinite(highest), highest, 0))
