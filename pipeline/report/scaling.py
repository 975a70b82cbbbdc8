"""What the losses say about scaling: a fitted law a series, and how far CRATE is from GPT-2 at equal size and equal compute."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from pipeline.report.cells import SHAPE_KEYS, TOKENS_KEY
from pipeline.report.fits import SAME_TOKENS
from pipeline.report.pairs import conditions
from pipeline.report.series import AXES, COMPUTE, FITTED, Series, all_series, budgets
from pipeline.report.study import OF_A_SHAPE, Study
from pipeline.report.text import amount

NO_INTERVAL = "no interval, since not both have an identified law: which is lower cannot be said from this"


def fit_rows(study: Study) -> list[dict[str, Any]]:
    """One row a series and fitted axis, with or without a law."""
    return [fit_row(series) for axis in FITTED for series in all_series(study, axis)]


def fit_row(series: Series) -> dict[str, Any]:
    row: dict[str, Any] = {"series": series.name, "architecture": series.architecture, "against": series.axis}
    row |= {"n_models": len(series.lawful.cells), "n_sizes": len(np.unique(series.lawful.sizes)), "note": series.note}
    constants = series.fit.named_constants() if series.fit else {}
    row |= {name: constants.get(name) for name in ("E", "A", "B")}
    row["E_low"], row["E_high"] = series.fit.floor_interval if series.fit else (None, None)
    for index, name in enumerate(("alpha", "beta")):
        there = series.fit is not None and index < len(series.fit.exponents)
        low, high = series.fit.exponent_interval(index) if series.fit and there else (None, None)
        row |= {
            name: float(series.fit.exponents[index]) if series.fit and there else None,
            f"{name}_low": low,
            f"{name}_high": high,
        }
        row[f"{name}_identified"] = bool(series.fit and there and series.fit.identified(index))
    row["E_identified"] = bool(series.fit and series.fit.all_identified)
    return row


def offset_rows(study: Study) -> list[dict[str, Any]]:
    """CRATE's loss minus GPT-2's at equal size, for each axis, at the largest size that both series reach.

    Of series of one recipe, text and measurement of the loss, and of models that saw the same number of tokens: the largest
    that both have. `low`, `high` come from the bootstraps of both laws where there are laws; the value itself is between
    measured points. A CRATE series without such a partner has a row that says why.
    """
    rows = []
    for axis in AXES:
        series = all_series(study, axis)
        for crate in (s for s in series if s.architecture == "crate"):
            others = [(_unlike(crate, gpt2), gpt2) for gpt2 in series if gpt2.architecture == "gpt2"]
            alike = [found for found in others if not found[0]]
            for unlike, gpt2 in alike or sorted(others, key=lambda found: len(found[0]))[:1]:
                names = {"against": axis, "crate": crate.name, "gpt2": gpt2.name}
                found = _no_offset("not trained alike: " + "; ".join(unlike)) if unlike else _offset(crate, gpt2)
                rows.append(names | found)
    return rows


def _unlike(crate: Series, gpt2: Series) -> list[str]:
    """In what the recipes of two series differ, beside size and tokens, for a note."""
    a, b = (conditions(series.cells[0], "losses") for series in (crate, gpt2))
    keys = sorted((a.keys() | b.keys()) - {*SHAPE_KEYS, *OF_A_SHAPE, TOKENS_KEY})
    return [f"{key.rpartition('.')[2]} {a.get(key)} against {b.get(key)}" for key in keys if a.get(key) != b.get(key)]


def _offset(crate: Series, gpt2: Series) -> dict[str, Any]:
    seen = [budgets(series.tokens) for series in (crate, gpt2)]
    common = _near(seen[1], seen[0])
    if not common:
        told = [", ".join(map(amount, tokens)) for tokens in seen]
        return _no_offset(f"not trained on equally many tokens: {told[0]} against {told[1]}")
    whole = [common] if crate.axis == COMPUTE else []  # equal compute of models that had the same tokens to choose from
    for tokens in [*whole, *([one] for one in reversed(common))]:
        own = crate.trained_on(tokens), gpt2.trained_on(_near(tokens, seen[1]))
        low_end, high_end = max(s.means[0].min() for s in own), min(s.means[0].max() for s in own)
        if low_end <= high_end:
            return _offset_at(*own, float(high_end), tokens[-1])
    return _no_offset(f"no common size at equal tokens: {_span(crate)} against {_span(gpt2)}")


def _near(tokens: Iterable[float], others: Iterable[float]) -> list[float]:
    """Those of `others` that are the same as one of `tokens`."""
    return [other for other in others if any(seen / SAME_TOKENS <= other <= seen * SAME_TOKENS for seen in tokens)]


def _offset_at(crate: Series, gpt2: Series, size: float, tokens: float) -> dict[str, Any]:
    at = np.array([size])
    losses = [float(series.loss_at(at)[0]) for series in (crate, gpt2)]
    low, high = _offset_interval(crate, gpt2, at)
    row = {"at": size, "crate_loss": losses[0], "gpt2_loss": losses[1], "offset": losses[0] - losses[1]}
    note = f"models of {amount(tokens)} tokens" + (f"; {NO_INTERVAL}" if low is None else "")
    return row | {"low": low, "high": high, "train_tokens": tokens, "note": note}


def _no_offset(note: str) -> dict[str, Any]:
    empty = dict.fromkeys(("at", "crate_loss", "gpt2_loss", "offset", "low", "high", "train_tokens"))
    return empty | {"note": note}


def _offset_interval(crate: Series, gpt2: Series, size: np.ndarray) -> tuple[float | None, float | None]:
    if crate.law is None or gpt2.law is None:
        return None, None
    drawn = crate.law.drawn(size) - gpt2.law.drawn(size)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(low), float(high)


def _span(series: Series) -> str:
    return f"{series.name} has {amount(series.sizes.min())} to {amount(series.sizes.max())}"
