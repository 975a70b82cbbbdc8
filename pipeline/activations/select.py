"""From candidates to excerpts: the workers' parts are put together and, by `corrected`, rows give one excerpt each at most.

The top excerpts come first, then the random ones, then the quantile bins take turns, so that where rows are few every bin goes
short alike. Then no passage that explains a neuron can also score it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa

from pipeline.activations.corpus import Corpus, Span
from pipeline.activations.keys import EMPTY, POSITION_MASK
from pipeline.activations.reservoir import merge
from pipeline.activations.sites import Site
from pipeline.activations.wanted import Wanted
from pipeline.artifacts.records import EXCERPT_SCHEMA, NEURONS_A_ROW_GROUP

Candidates = tuple[np.ndarray, np.ndarray]  # keys (neurons, bins, capacity) ascending, activations (..., width)


def excerpt_tables(
    candidates: Callable[[slice], dict[str, list[Candidates]]], site: Site, span: Span, wanted: Wanted, corpus: Corpus
) -> Iterator[tuple[pa.Table, dict[str, int]]]:
    """Tables (EXCERPT_SCHEMA) of a few dozen neurons at a time, and how many excerpts of each kind could not be had.

    `candidates(some)` gives the shards' reservoirs of these neurons by kind.
    """
    for first in range(0, site.n_neurons, NEURONS_A_ROW_GROUP):
        some = slice(first, min(first + NEURONS_A_ROW_GROUP, site.n_neurons))
        merged = {kind: merge(parts) for kind, parts in candidates(some).items()}
        chosen = choose({kind: keys for kind, (keys, _) in merged.items()}, wanted, corpus)
        tables = [_table(merged[kind], mask, kind, first, site, span, corpus) for kind, mask in chosen.items()]
        asked = {"top": wanted.top, "random": wanted.random, "quantile": span.n_bins * wanted.per_quantile}
        short = {kind: len(mask) * asked[kind] - int(mask.sum()) for kind, mask in chosen.items()}
        yield pa.concat_tables(tables).sort_by([("neuron", "ascending")]), short


def choose(keys: dict[str, np.ndarray], wanted: Wanted, corpus: Corpus) -> dict[str, np.ndarray]:
    """Which candidates (neurons, bins, capacity) become excerpts, by kind."""
    if corpus.config.protocol == "paper":
        return {kind: k != EMPTY for kind, k in keys.items()}
    n_neurons = len(keys["top"])
    n_rows = max(corpus.n_rows, corpus.n_rows_short)
    taken = np.zeros((n_neurons, n_rows + 1), bool)  # the last column stands for candidates that are not there
    taken[:, n_rows] = True
    rows = {kind: np.where(k == EMPTY, n_rows, (k & POSITION_MASK) // corpus.n_ctx) for kind, k in keys.items()}
    chosen = {kind: np.zeros(k.shape, bool) for kind, k in keys.items()}
    _take(rows["top"][:, 0], wanted.top, taken, chosen["top"][:, 0])
    _take(rows["random"][:, 0], wanted.random, taken, chosen["random"][:, 0])
    for _ in range(wanted.per_quantile):
        for bin_ in range(keys["quantile"].shape[1]):
            _take(rows["quantile"][:, bin_], 1, taken, chosen["quantile"][:, bin_])
    return chosen


def _take(rows: np.ndarray, count: int, taken: np.ndarray, chosen: np.ndarray) -> None:
    """Mark the first `count` candidates (neurons, capacity) in `chosen` whose rows are free, and their rows in `taken`."""
    neurons = np.arange(len(rows))[:, None]
    free = ~taken[neurons, rows]
    free &= np.cumsum(free, axis=1) <= count
    chosen |= free
    where, which = np.nonzero(free)
    taken[where, rows[where, which]] = True


def _table(
    candidates: Candidates, mask: np.ndarray, kind: str, first: int, site: Site, span: Span, corpus: Corpus
) -> pa.Table:
    keys, activations = candidates
    neurons, bins, _ = np.nonzero(mask)
    positions = keys[mask] & POSITION_MASK
    starts, _ = corpus.excerpt_starts(positions, span.width)
    values, lengths = activations[mask], np.full(len(positions), span.width)
    if corpus.config.protocol == "paper":
        values, lengths = _cut(values, positions - span.width // 2, span.n_rows * corpus.n_ctx)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    ranks = (np.cumsum(mask, axis=2) - 1)[mask]
    columns = {
        "site": pa.repeat(site.name, len(positions)),
        "layer": np.full(len(positions), site.layer, np.int32),
        "neuron": (neurons + first).astype(np.int32),
        "width": np.full(len(positions), span.width, np.int32),
        "kind": pa.repeat(kind, len(positions)),
        "bin": (bins if kind == "quantile" else np.full(len(positions), -1)).astype(np.int32),
        "rank": ranks.astype(np.int32),
        "start": starts,
        "center": (positions - starts).astype(np.int32),
        "activations": pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.ravel())),
    }
    return pa.table(columns).cast(EXCERPT_SCHEMA)


def _cut(values: np.ndarray, begins: np.ndarray, n_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Excerpts (n, width) that begin at `begins` without what lies before and after the text: flat values, and lengths (n,)."""
    tokens = begins[:, None] + np.arange(values.shape[1])
    inside = (tokens >= 0) & (tokens < n_tokens)
    return values[inside], inside.sum(axis=1)
