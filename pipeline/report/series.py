"""Series of models that are alike in all but size, tokens and seed: their lines over size, and the law that they follow."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from pipeline.report.cells import canonical_text
from pipeline.report.fits import LEAST_SIZES, POINTS_A_CONSTANT, SAME_TOKENS, Fit, fit, varies
from pipeline.report.replicas import mean_and_half
from pipeline.report.study import Cell, Study

AXES: dict[str, Callable[[Cell], float]] = {
    "parameters": lambda cell: cell.size.total_without_positions,
    "non-embedding parameters": lambda cell: cell.size.non_embedding,
    "training FLOPs": lambda cell: cell.train_flops,
}
FITTED = ("non-embedding parameters", "training FLOPs")
COMPUTE = "training FLOPs"
# How often a text is read until its tokens count as new ones no more. *Source:* Muennighoff et al. 2023 (arXiv 2305.16264):
# up to four epochs, repeated tokens are worth nearly as much as new ones.
EPOCHS_AS_NEW = 4.0


@dataclass(frozen=True)
class Series:
    """The measured models of one architecture and variant against one measure of size: alike in all but size, tokens and seed."""

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
        return self.axis != COMPUTE and varies(self.tokens)

    @cached_property
    def lawful(self) -> Series:
        """The models that a law is told from: repeated tokens are no new ones, so where tokens are an axis, all without those
        that saw their text too often.
        """
        if not varies(self.tokens):
            return self
        return replace(self, cells=tuple(cell for cell in self.cells if (cell.epochs or 0) <= EPOCHS_AS_NEW))

    @cached_property
    def fit(self) -> Fit | None:
        """Where models saw different numbers of tokens, the law of compute is that of the best models at their compute."""
        own = self.lawful
        if not own.cells:
            return None
        if own.axis == COMPUTE and varies(own.tokens):
            return fit(own.losses[own.best], own.sizes[own.best])
        return fit(own.losses, own.sizes, own.tokens if own.tokens_vary else None)

    @cached_property
    def best(self) -> np.ndarray:
        """Which models (models,) none with less training compute is as good as, by means over seeds: no lucky seed leads."""
        by_compute = np.argsort([cell.train_flops for cell in self.cells], kind="stable")
        found = np.zeros(len(self.cells), bool)
        means = np.array([self.losses[own].mean() for own in self._replicas_of_each])
        found[by_compute] = means[by_compute] <= np.minimum.accumulate(means[by_compute])
        return found

    @cached_property
    def lines(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Distinct sizes, ascending, and the mean loss at each: a line for each number of tokens, the largest last.

        Against FLOPs, which tokens are part of, it is one line, of the best models at their compute.
        """
        if self.axis == COMPUTE and varies(self.tokens):
            return [self._line(self.best)]
        return [self._line(same_tokens(self.tokens, seen)) for seen in budgets(self.tokens)]

    def _line(self, shown: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sizes = np.unique(self.sizes[shown])
        return sizes, np.array([self.losses[shown & (self.sizes == size)].mean() for size in sizes])

    @property
    def means(self) -> tuple[np.ndarray, np.ndarray]:
        """The line of the models that were trained longest."""
        return self.lines[-1]

    @cached_property
    def _replicas_of_each(self) -> list[list[int]]:
        """For each model, where its replicas stand, itself among them."""
        alike: dict[str, list[int]] = {}
        for index, cell in enumerate(self.cells):
            alike.setdefault(cell.replicated, []).append(index)
        return [alike[cell.replicated] for cell in self.cells]

    @cached_property
    def replicas(self) -> list[tuple[float, float, float]]:
        """(size, mean, half its 95 % interval) of every training that was done with several seeds."""
        firsts = {own[0]: own for own in self._replicas_of_each if len(own) > 1}
        alike = [(float(self.sizes[first]), self.losses[own]) for first, own in firsts.items()]
        return [(size, *mean_and_half(losses.tolist())) for size, losses in alike]

    def trained_on(self, tokens: Iterable[float]) -> Series:
        """Those of its models that saw one of these numbers of tokens."""
        kept = np.any([same_tokens(self.tokens, seen) for seen in tokens], axis=0)
        return replace(self, cells=tuple(cell for cell, keep in zip(self.cells, kept, strict=True) if keep))

    def loss_at(self, sizes: np.ndarray) -> np.ndarray:
        """Loss between the measured sizes: straight lines over the logarithm of size. NaN outside."""
        known, losses = self.means
        return np.interp(np.log(sizes), np.log(known), losses, left=np.nan, right=np.nan)

    @property
    def law(self) -> Fit | None:
        """The fit, where it is of this axis alone and says something."""
        return self.fit if self.fit and not self.lawful.tokens_vary and self.fit.identified() else None

    @property
    def note(self) -> str:
        """What the fit can and cannot say."""
        own, said = self.lawful, []
        if left_out := len(self.cells) - len(own.cells):
            said.append(
                f"{left_out} model{'s' if left_out > 1 else ''} beyond {EPOCHS_AS_NEW:.0f} epochs left out: "
                "repeated tokens are no new ones"
            )
        elif (epochs := max(cell.epochs or 0 for cell in self.cells)) > EPOCHS_AS_NEW:
            said.append(f"of models that saw their text {epochs:.3g} times")
        if self.fit is None:
            n_sizes = len(np.unique(own.sizes))
            sizes = f"{n_sizes} distinct size{'s' if n_sizes != 1 else ''}"
            return "; ".join([f"{sizes}: {LEAST_SIZES} or more tell a law from a coincidence", *said])
        if not own.tokens_vary and self.axis != COMPUTE:
            said.append(
                f"beta cannot be identified: all models saw the same number of tokens (within {100 * (SAME_TOKENS - 1):.0f} %), "
                "so E holds whatever more tokens would take away"
            )
        return "; ".join([*said, *self._not_identified(self.fit)])

    @staticmethod
    def _not_identified(found: Fit) -> list[str]:
        if not found.has_points_enough:
            needed = POINTS_A_CONSTANT * len(found.law)
            return [
                f"nothing is identified by {found.n_points} points: fewer than {needed} lie on a law by chance too often"
            ]
        names = list(enumerate(("alpha", "beta")[: len(found.exponents)]))
        intervals = {name: found.exponent_interval(index) for index, name in names if not found.identified(index)}
        return [
            f"{name} is not identified by these sizes: its interval is {low:.2g} to {high:.2g}"
            for name, (low, high) in intervals.items()
        ]


def budgets(tokens: Iterable[float]) -> list[float]:
    """The different numbers of tokens, ascending; those within SAME_TOKENS of a smaller one are the same."""
    found: list[float] = []
    for seen in sorted(tokens):
        if not found or seen > SAME_TOKENS * found[-1]:
            found.append(seen)
    return found


def same_tokens(tokens: np.ndarray, seen: float) -> np.ndarray:
    """Which (models,) saw this many of the `budgets`."""
    return (tokens >= seen) & (tokens <= SAME_TOKENS * seen)


def all_series(study: Study, axis: str) -> list[Series]:
    """The series of a sweep; their laws are fitted once."""
    if ("series", axis) not in study.memo:
        study.memo["series", axis] = _all_series(study, axis)
    return study.memo["series", axis]


def _all_series(study: Study, axis: str) -> list[Series]:
    alike: dict[str, list[Cell]] = {}
    for cell in study.measured:
        alike.setdefault(canonical_text([cell.architecture, cell.variant, cell.loss_note]), []).append(cell)
    return [Series(own[0].series, own[0].architecture, axis, tuple(own)) for own in alike.values()]
