"""Which excerpts of a neuron are shown to the explainer and which are simulated and scored, for each metric.

Two explanations are written a neuron: `openai`, from long excerpts, serves both OpenAI metrics; `anthropic`, from short ones,
serves the third. An excerpt is simulated once a neuron, and a metric scores a subset of its explanation's simulations. A neuron
that has too few of a metric's excerpts (`basis.py`) has no score of it, and nothing is asked for it.

*Source:* Bills et al. 2023 and Bricken et al. 2023, with the ranks of the released CRATE code. There, windows that overlap may be
both explained and scored; protocol `corrected` puts the next excerpt of the same kind in place of one that leaks so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from pipeline.artifacts.tokens import TokenSplit
from pipeline.interpret.basis import Basis, Part

Metric = Literal["top_and_random", "random_only", "anthropic"]
OUT_OF_CONTEXT_TOKENS = 3


@dataclass(frozen=True)
class Pick:
    """Excerpts of one kind by rank. `reserve` are ranks to go on with when one of `ranks` leaks (`corrected` only)."""

    kind: Literal["top", "random", "quantile"]
    ranks: tuple[int, ...]
    reserve: tuple[int, ...] = ()
    metrics: tuple[Metric, ...] = ()  # that score them; empty for those that are explained
    out_of_context: bool = False  # only the three tokens around the one it was chosen for

    def part(self, n_bins: int, width: int) -> Part:
        """What it gives a neuron that has it all, of excerpts of `width` tokens in so many quantile bins."""
        kind = "out of context" if self.out_of_context else self.kind
        count = len(self.ranks) * (n_bins if self.kind == "quantile" else 1)
        return Part(kind, not self.metrics, count, OUT_OF_CONTEXT_TOKENS if self.out_of_context else width)


@dataclass(frozen=True)
class Selection:
    """The excerpts of one explanation."""

    name: Literal["openai", "anthropic"]
    long: bool  # excerpts of `activations.window` tokens, else `window_short`
    explain: tuple[Pick, ...]
    score: tuple[Pick, ...]

    def metrics(self) -> tuple[Metric, ...]:
        return tuple(dict.fromkeys(metric for pick in self.score for metric in pick.metrics))

    def picks_of(self, metric: Metric) -> tuple[Pick, ...]:
        """What a metric stands on: all that is explained, and what it scores."""
        return self.explain + tuple(pick for pick in self.score if metric in pick.metrics)


def ranks(*bounds: int) -> tuple[int, ...]:
    return tuple(range(*bounds))


SELECTIONS = (
    Selection(
        name="openai",
        long=True,
        explain=(Pick("top", ranks(0, 10, 2)),),
        score=(
            Pick("random", ranks(0, 10, 2), ranks(1, 10, 2) + ranks(10, 50), ("top_and_random", "random_only")),
            Pick("top", ranks(1, 10, 2), ranks(10, 50), ("top_and_random",)),
        ),
    ),
    Selection(
        name="anthropic",
        long=False,
        explain=(Pick("top", ranks(15)), Pick("quantile", ranks(2)), Pick("random", ranks(5))),
        score=(
            Pick("top", ranks(15, 25), ranks(35, 45), ("anthropic",)),
            Pick("quantile", ranks(2, 4), ranks(4, 20), ("anthropic",)),
            Pick("random", ranks(5, 10), ranks(10, 50), ("anthropic",)),
            Pick("top", ranks(25, 35), ranks(45, 50), ("anthropic",), out_of_context=True),
        ),
    ),
)


def needed_selections(metrics: tuple[Metric, ...]) -> tuple[Selection, ...]:
    """The selections that these metrics need, with only the score excerpts that one of them uses, and for no other metric."""
    cut = []
    for selection in SELECTIONS:
        picks = [replace(p, metrics=tuple(m for m in p.metrics if m in metrics)) for p in selection.score]
        cut.append(replace(selection, score=tuple(pick for pick in picks if pick.metrics)))
    return tuple(selection for selection in cut if selection.score)


@dataclass(frozen=True)
class LayerExcerpts:
    """All kept excerpts of one width of some neurons of a layer. `column` finds a (kind, bin, rank) among the excerpts."""

    neurons: np.ndarray  # (neurons,) indices in the layer
    n_bins: int  # quantile bins that there should be
    column: dict[tuple[str, int, int], int]
    starts: np.ndarray  # (neurons, excerpts) int64, global token offset in val; -1 where the neuron has no such excerpt
    lengths: np.ndarray  # (neurons, excerpts) tokens; 0 where there is none
    centers: np.ndarray  # (neurons, excerpts) index of the token that an excerpt was chosen for
    activations: np.ndarray  # (neurons, excerpts, width) float32, padded with zeros

    def of(self, rows: slice) -> LayerExcerpts:
        """The same for some of the neurons."""
        arrays = (self.starts, self.lengths, self.centers, self.activations)
        return LayerExcerpts(self.neurons[rows], self.n_bins, self.column, *(values[rows] for values in arrays))

    @property
    def width(self) -> int:
        return self.activations.shape[2]

    def columns(self, pick: Pick, these: tuple[int, ...]) -> list[list[int]]:
        """Columns of these ranks, a list a bin; ranks that no neuron has are left out."""
        bins = range(self.n_bins) if pick.kind == "quantile" else [-1]
        return [[c for r in these if (c := self.column.get((pick.kind, b, r))) is not None] for b in bins]


@dataclass(frozen=True)
class Block:
    """Chosen excerpts of some neurons, padded: (neurons, excerpts, width)."""

    tokens: np.ndarray  # int64 ids
    activations: np.ndarray  # float32, of the model that is explained
    mask: np.ndarray  # bool: False where padded, or where the neuron has fewer excerpts


@dataclass(frozen=True)
class Chosen:
    """What one selection gives for some neurons of a layer."""

    selection: Selection
    neurons: np.ndarray
    explain: Block
    score: Block
    metric_excerpts: dict[Metric, np.ndarray]  # metric -> (excerpts,) bool over the score block
    basis: dict[Metric, Basis]  # what each neuron has of them
    dead: np.ndarray  # (neurons,) bool: it fires not even in its top excerpts


def choose(selection: Selection, layer: LayerExcerpts, split: TokenSplit, leakage_free: bool) -> Chosen:
    """Choose excerpts and read their tokens from `split` (the val TokenSplit).

    The blocks are empty where no metric has enough: nothing is to be asked there.
    """
    usable = layer.lengths > 0
    tops = [column for (kind, _, _), column in layer.column.items() if kind == "top"]
    fires = layer.activations[:, tops].max(2, initial=0) > 0
    if leakage_free:  # a text on which the neuron does nothing is no top excerpt of it, however few there are
        usable[:, tops] &= fires
    shown = {pick: _pick(layer, pick, usable, None) for pick in selection.explain}
    explain = np.concatenate(list(shown.values()), axis=1)
    spans = _spans(layer, explain) if leakage_free else None
    scored = {pick: _pick(layer, pick, usable, spans) for pick in selection.score}
    score = np.concatenate(list(scored.values()), axis=1)
    of_pick = np.repeat(np.arange(len(scored)), [columns.shape[1] for columns in scored.values()])
    cut = np.array([pick.out_of_context for pick in selection.score])[of_pick]
    there = {pick: (columns >= 0).sum(1) for pick, columns in (shown | scored).items()}
    metric_excerpts, basis = {}, {}
    for metric in selection.metrics():
        metric_excerpts[metric] = np.array([metric in pick.metrics for pick in selection.score])[of_pick]
        basis[metric] = Basis({p.part(layer.n_bins, layer.width): there[p] for p in selection.picks_of(metric)})
    wanted = np.any([basis[m].enough()[:, None] & excerpts for m, excerpts in metric_excerpts.items()], axis=0)
    return Chosen(
        selection,
        layer.neurons,
        _block(layer, np.where(wanted.any(1, keepdims=True), explain, -1), split, np.zeros(explain.shape[1], bool)),
        _block(layer, np.where(wanted, score, -1), split, cut),
        metric_excerpts,
        basis,
        (layer.lengths[:, tops] > 0).any(1) & ~fires.any(1),
    )


def _pick(
    layer: LayerExcerpts, pick: Pick, there: np.ndarray, avoid: tuple[np.ndarray, np.ndarray] | None
) -> np.ndarray:
    """Columns (neurons, picked) of a pick, -1 where a neuron has none. `there` (neurons, excerpts) says which it has, `avoid`
    are spans that must not be touched."""
    chosen = []
    reserves = layer.columns(pick, pick.reserve)
    for first, reserve in zip(layer.columns(pick, pick.ranks), reserves, strict=True):
        candidates = np.array(first + (reserve if avoid else []), dtype=np.int64)
        usable = there[:, candidates]
        if avoid is not None:
            usable &= ~_overlaps(layer, candidates, avoid)
        order = np.argsort(~usable, axis=1, kind="stable")[:, : len(pick.ranks)]  # usable ones first, by preference
        chosen.append(np.where(np.take_along_axis(usable, order, 1), candidates[order], -1))
    return np.concatenate(chosen, axis=1) if chosen else np.empty((len(layer.neurons), 0), np.int64)


def _spans(layer: LayerExcerpts, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and past-the-last token (neurons, columns) of excerpts; an absent one is an empty span before the text."""
    starts = np.where(columns >= 0, np.take_along_axis(layer.starts, columns, 1), -1)
    lengths = np.where(columns >= 0, np.take_along_axis(layer.lengths, columns, 1), 0)
    return starts, starts + lengths


def _overlaps(layer: LayerExcerpts, candidates: np.ndarray, spans: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """(neurons, candidates): does the candidate share a token with any span of its neuron."""
    begin = layer.starts[:, candidates, None]
    end = begin + layer.lengths[:, candidates, None]
    return ((begin < spans[1][:, None, :]) & (spans[0][:, None, :] < end)).any(axis=2)


def _block(layer: LayerExcerpts, columns: np.ndarray, split: TokenSplit, cut: np.ndarray) -> Block:
    """Gather activations and tokens; excerpts with `cut` keep the token they were chosen for and one on each side."""
    width = layer.activations.shape[2]
    there = columns >= 0
    activations = np.take_along_axis(layer.activations, np.maximum(columns, 0)[:, :, None], axis=1)
    lengths = np.where(there, np.take_along_axis(layer.lengths, columns, 1), 0)
    position = np.arange(width)
    mask = position < lengths[:, :, None]
    centers = np.take_along_axis(layer.centers, np.maximum(columns, 0), 1)
    mask &= ~cut[:, None] | (np.abs(position - centers[:, :, None]) <= 1)
    starts = np.where(there, np.take_along_axis(layer.starts, columns, 1), 0)
    tokens = _read_tokens(split, starts.ravel(), width).reshape(mask.shape)
    return Block(np.where(mask, tokens, 0), np.where(mask, activations, 0), mask)


def _read_tokens(split: TokenSplit, starts: np.ndarray, width: int) -> np.ndarray:
    """Rows (len(starts), width) of token ids; what would lie past the end of the text is 0."""
    places, inverse = np.unique(starts, return_inverse=True)
    last = max(0, split.n_tokens - width)
    rows = np.asarray(split.rows(np.minimum(places, last), min(width, split.n_tokens)))
    rows = np.pad(rows, ((0, 0), (0, width - rows.shape[1])))
    for index in np.flatnonzero(places > last):  # excerpts cut short by the end of the text
        shift = places[index] - last
        rows[index] = np.concatenate([rows[index, shift:], np.zeros(shift, rows.dtype)])
    return rows[inverse]
