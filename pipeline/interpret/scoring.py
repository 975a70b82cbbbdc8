"""How well predicted activations follow true ones: Pearson correlation over all tokens of all score excerpts of a neuron.

A neuron without a correlation is never given a number: it gets a status that says why.
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np


class Status(StrEnum):
    SCORED = "scored"
    TOO_FEW_EXCERPTS = "too few excerpts"  # under half of a kind that the metric explains or scores: not that metric
    SILENT = "silent"  # its true activations do not vary over the excerpts: nothing to correlate, or nothing to explain
    CONSTANT_PREDICTION = "constant prediction"  # the judge predicted one value everywhere
    UNPARSED = "unparsed"  # the judge's reply could not be read
    REFUSED = "refused"  # the judge gave no reply, or one without text, also when asked again
    OVER_BUDGET = "over budget"


def correlations(true: np.ndarray, predicted: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Pearson's r of each row over the places where `mask` holds, (rows,) float64; NaN where either side is constant."""
    count = np.maximum(mask.sum(1), 1)
    true, predicted = (np.where(mask, values, 0).astype(np.float64) for values in (true, predicted))
    true_rest, predicted_rest = (
        np.where(mask, values - values.sum(1, keepdims=True) / count[:, None], 0) for values in (true, predicted)
    )
    products = (true_rest * predicted_rest).sum(1)
    scale = np.sqrt((true_rest**2).sum(1) * (predicted_rest**2).sum(1))
    defined = varies(true, mask) & varies(predicted, mask) & (scale > 0)
    return np.where(defined, np.clip(products / np.where(defined, scale, 1), -1, 1), np.nan)


def varies(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(rows,) whether a row has two different values. Exact: a variance of constants can be a rounding error above 0."""
    highest = np.where(mask, values, -np.inf).max(1, initial=-np.inf)
    lowest = np.where(mask, values, np.inf).min(1, initial=np.inf)
    return highest > lowest


def quantise(activations: np.ndarray, maximum: np.ndarray | float) -> np.ndarray:
    """Activations as whole numbers 0..10 of `maximum` (broadcast), as prompts show them; all 0 where it is not above 0.

    *Source:* Bills et al. 2023: `min(10, floor(10 * relu(a) / max))`.
    """
    maximum = np.asarray(maximum, dtype=np.float64)
    safe = np.where(maximum > 0, maximum, 1)
    tenths = np.floor(10 * np.maximum(activations, 0).astype(np.float64) / safe)
    return np.where(maximum > 0, np.minimum(10, tenths), 0).astype(np.int64)


def statuses(true: np.ndarray, predicted: np.ndarray, mask: np.ndarray) -> list[Status]:
    """Why each row has a correlation or none, where the judge did its part."""
    silent, constant = ~varies(true, mask), ~varies(predicted, mask)
    return [
        Status.SILENT if s else Status.CONSTANT_PREDICTION if c else Status.SCORED
        for s, c in zip(silent, constant, strict=True)
    ]
