"""What the losses say about scaling: a fitted law a series, and how far CRATE is from GPT-2 at equal size and equal compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pipeline.report.fits import LEAST_SIZES, SAME_TOKENS, Fit, fit, varies
from pipeline.report.replicas import mean_and_half
from pipeline.report.study import Cell, Study
from pipeline.report.text import amount

AXES: dict[str, Callable[[Cell], float]] = {
    "parameters": lambda cell: cell.size.total_without_positions,
    "non-embedding parameters": lambda cell: cell.size.non_embedding,
    "training FLOPs": lambda cell: cell.train_flops,
}
FITTED = ("non-embedding parameters", "training FLOPs")


@dataclass(frozen=True)
class Series:
    """The measured models of one architecture and variant against one measure of size."""

    name: str
    architecture: str
    axis: str
    cells: tuple[Cell, ...]

    @cached_property
    def sizes(self) -> np.ndarray:
        return np.array([AXES[self.axis](cell) for cell in self.cells], float)

    @cached_property
    def losses(self) -> np.ndarray:
        return np.array([cell.val_loss for cell in self.cells], float)

    @cached_property
    def tokens(self) -> np.ndarray:
        return np.array([cell.train_tokens for cell in self.cells], float)

    @property
    def tokens_vary(self) -> bool:
        """Against FLOPs, which tokens are part of, no second term is fitted."""
        return self.axis != "training FLOPs" and varies(self.tokens)

    @cached_property
    def fit(self) -> Fit | None:
        """Where models saw different numbers of tokens, the law of compute is that of the best models at their compute."""
        if self.axis == "training FLOPs" and varies(self.tokens):
            return fit(self.losses[self.best], self.sizes[self.best])
        return fit(self.losses, self.sizes, self.tokens if self.tokens_vary else None)

    @cached_property
    def best(self) -> np.ndarray:
        """Which models (models,) no model with less training compute is as good as."""
        by_compute = np.argsort([cell.train_flops for cell in self.cells], kind="stable")
        found = np.zeros(len(self.cells), bool)
        found[by_compute] = self.losses[by_compute] <= np.minimum.accumulate(self.losses[by_compute])
        return found

    @cached_property
    def means(self) -> tuple[np.ndarray, np.ndarray]:
        """Distinct sizes, ascending, and the mean loss at each: replicas are averaged.

        Where tokens vary, it is that of the models trained longest; against FLOPs, of the best ones at their compute.
        """
        shown = np.ones(len(self.cells), bool)
        if varies(self.tokens):
            longest = [self.tokens[self.sizes == size].max() for size in self.sizes]
            shown = self.best if self.axis == "training FLOPs" else self.tokens >= longest
        sizes = np.unique(self.sizes[shown])
        return sizes, np.array([self.losses[shown & (self.sizes == size)].mean() for size in sizes])

    @cached_property
    def replicas(self) -> list[tuple[float, float, float]]:
        """(size, mean, half its 95 % interval) of every size and amount of training of which several seeds were trained."""
        kinds = dict.fromkeys(zip(self.sizes.tolist(), self.tokens.tolist(), strict=True))
        alike = [(size, self.losses[(self.sizes == size) & (self.tokens == tokens)]) for size, tokens in kinds]
        return [(size, *mean_and_half(losses.tolist())) for size, losses in alike if len(losses) > 1]

    def loss_at(self, sizes: np.ndarray) -> np.ndarray:
        """Loss between the measured sizes: straight lines over the logarithm of size. NaN outside."""
        known, losses = self.means
        return np.interp(np.log(sizes), np.log(known), losses, left=np.nan, right=np.nan)

    @property
    def law(self) -> Fit | None:
        """The fit, where it is of this axis alone and says something."""
        return self.fit if self.fit and not self.tokens_vary and self.fit.identified() else None

    @property
    def note(self) -> str:
        """What the fit can and cannot say."""
        if self.fit is None:
            return f"{len(np.unique(self.sizes))} distinct sizes: {LEAST_SIZES} or more tell a law from a coincidence"
        said = []
        if not self.tokens_vary and self.axis != "training FLOPs":
            said.append(
                f"beta cannot be identified: all models saw the same number of tokens (within {100 * (SAME_TOKENS - 1):.0f} %), "
                "so E holds whatever more tokens would take away"
            )
        for index, name in enumerate(("alpha", "beta")[: len(self.fit.exponents)]):
            if not self.fit.identified(index):
                low, high = self.fit.exponent_interval(index)
                said.append(f"{name} is not identified by these sizes: its interval is {low:.2g} to {high:.2g}")
        return "; ".join(said)


def all_series(study: Study, axis: str) -> list[Series]:
    """The series of a sweep; their laws are fitted once."""
    if ("series", axis) not in study.memo:
        study.memo["series", axis] = _all_series(study, axis)
    return study.memo["series", axis]


def _all_series(study: Study, axis: str) -> list[Series]:
    measured = [cell for cell in study.models if cell.val_loss is not None]
    names = dict.fromkeys((cell.series, cell.architecture) for cell in measured)
    return [Series(name, arch, axis, tuple(cell for cell in measured if cell.series == name)) for name, arch in names]


def fit_rows(study: Study) -> list[dict[str, Any]]:
    """One row a series and fitted axis, with or without a law."""
    return [fit_row(series) for axis in FITTED for series in all_series(study, axis)]


def fit_row(series: Series) -> dict[str, Any]:
    row: dict[str, Any] = {"series": series.name, "architecture": series.architecture, "against": series.axis}
    row |= {"n_models": len(series.cells), "n_sizes": len(np.unique(series.sizes)), "note": series.note}
    constants = series.fit.named_constants() if series.fit else {}
    row |= {name: constants.get(name) for name in ("E", "A", "B")}
    for index, name in enumerate(("alpha", "beta")):
        there = series.fit is not None and index < len(series.fit.exponents)
        low, high = series.fit.exponent_interval(index) if series.fit and there else (None, None)
        row |= {
            name: float(series.fit.exponents[index]) if series.fit and there else None,
            f"{name}_low": low,
            f"{name}_high": high,
        }
        row[f"{name}_identified"] = bool(series.fit and there and series.fit.identified(index))
    return row


def offset_rows(study: Study) -> list[dict[str, Any]]:
    """CRATE's loss minus GPT-2's at equal size, for each axis, at the largest size that both series reach.

    `low`, `high` come from the bootstraps of both laws where there are laws; the value itself is between measured points.
    """
    rows = []
    for axis in AXES:
        series = all_series(study, axis)
        for crate in (s for s in series if s.architecture == "crate"):
            for gpt2 in (s for s in series if s.architecture == "gpt2"):
                rows.append({"against": axis, "crate": crate.name, "gpt2": gpt2.name, **_offset(crate, gpt2)})
    return rows


def _offset(crate: Series, gpt2: Series) -> dict[str, Any]:
    low_end, high_end = max(crate.sizes.min(), gpt2.sizes.min()), min(crate.sizes.max(), gpt2.sizes.max())
    if low_end > high_end:
        nothing = {"at": None, "crate_loss": None, "gpt2_loss": None, "offset": None, "low": None, "high": None}
        return nothing | {"note": f"no common size: {_span(crate)} against {_span(gpt2)}"}
    size = np.array([high_end])
    losses = [float(series.loss_at(size)[0]) for series in (crate, gpt2)]
    low, high = _offset_interval(crate, gpt2, size)
    row = {"at": float(high_end), "crate_loss": losses[0], "gpt2_loss": losses[1], "offset": losses[0] - losses[1]}
    return row | {"low": low, "high": high, "note": ""}


def _offset_interval(crate: Series, gpt2: Series, size: np.ndarray) -> tuple[float | None, float | None]:
    if crate.law is None or gpt2.law is None:
        return None, None
    drawn = crate.law.drawn(size) - gpt2.law.drawn(size)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(low), float(high)


def _span(series: Series) -> str:
    return f"{series.name} has {amount(series.sizes.min())} to {amount(series.sizes.max())}"
