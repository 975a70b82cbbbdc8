"""Excerpts from the records artifact, as padded arrays; which neurons are taken."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.records import EXCERPT_SCHEMA, Records, quantile_bins
from pipeline.config import ActivationsConfig
from pipeline.interpret.excerpts import LayerExcerpts


@dataclass(frozen=True)
class Site:
    name: str  # "code-l3", or an SAE's name
    layer: int
    n_neurons: int


def sampled_neurons(site: Site, count: int, seed: int) -> np.ndarray:
    """`count` neurons of a site drawn by hash, in drawing order: a larger sample begins with every smaller one. 0: all."""
    if not count:
        return np.arange(site.n_neurons)
    keys = [hashlib.sha256(f"{seed}/{site.name}/{neuron}".encode()).digest() for neuron in range(site.n_neurons)]
    return np.array(sorted(range(site.n_neurons), key=keys.__getitem__)[:count])


def layer_excerpts(table: pa.Table, neurons: np.ndarray, width: int, bins: int) -> LayerExcerpts:
    """Arrays from rows of `excerpts.parquet` of one site and width: `neuron, kind, bin, rank, start, center, activations`."""
    column, columns = _columns(table)
    of_row = table["neuron"].to_numpy()
    row_of = np.full(max(neurons.max(initial=0), of_row.max(initial=0)) + 1, -1)
    row_of[neurons] = np.arange(len(neurons))
    rows = row_of[of_row]
    taken = slice(None) if (rows >= 0).all() else rows >= 0
    place = rows[taken], columns[taken]

    lengths, padded = _padded(table["activations"].combine_chunks(), width)
    shape = (len(neurons), len(column))
    result = LayerExcerpts(
        np.asarray(neurons),
        bins,
        column,
        np.full(shape, -1),
        np.zeros(shape, np.int64),
        np.zeros(shape, np.int64),
        np.zeros((*shape, width), np.float32),
    )
    result.starts[place] = table["start"].to_numpy()[taken]
    result.lengths[place] = lengths[taken]
    result.centers[place] = table["center"].to_numpy()[taken]
    result.activations[place] = padded[taken]
    return result


def _columns(table: pa.Table) -> tuple[dict[tuple[str, int, int], int], np.ndarray]:
    """A number for each (kind, bin, rank) there is, and every row's."""
    kinds = table["kind"].combine_chunks().dictionary_encode()
    bins, ranks = table["bin"].to_numpy().astype(np.int64) + 1, table["rank"].to_numpy().astype(np.int64)
    n_bins, n_ranks = bins.max(initial=0) + 1, ranks.max(initial=0) + 1
    codes = (kinds.indices.to_numpy() * n_bins + bins) * n_ranks + ranks
    there = np.flatnonzero(np.bincount(codes))
    number = np.zeros(there.max(initial=0) + 1, np.int64)
    number[there] = np.arange(len(there))
    names = kinds.dictionary.to_pylist()
    column = {
        (names[code // n_ranks // n_bins], code // n_ranks % n_bins - 1, code % n_ranks): index
        for index, code in enumerate(there.tolist())
    }
    return column, number[codes]


def _padded(values: pa.ListArray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows,) lengths and (rows, width) values, zeros behind them."""
    lengths, flat = np.diff(values.offsets.to_numpy()), values.flatten().to_numpy()
    if len(flat) == len(lengths) * width:
        return lengths, flat.reshape(-1, width)
    padded = np.zeros((len(lengths), width), np.float32)
    padded[np.arange(width) < lengths[:, None]] = flat
    return lengths, padded


def sites_of(records: Artifact) -> list[Site]:
    """The sites that the records hold, by layer."""
    table = pq.read_table(records.file("neurons.parquet"), columns=["site", "layer"])
    counts = Counter(zip(table["site"].to_pylist(), table["layer"].to_pylist(), strict=True))
    return [
        Site(name, layer, n) for (name, layer), n in sorted(counts.items(), key=lambda item: (item[0][1], item[0][0]))
    ]


def read_excerpts(
    records: Artifact, site: Site, neurons: np.ndarray, asked: ActivationsConfig
) -> dict[bool, LayerExcerpts]:
    """Excerpts of some neurons of a site, records of which were `asked` for: {True: the long ones, False: the short ones}."""
    tables = Records(records).excerpts(site.name)
    none = pa.Table.from_pylist([], schema=EXCERPT_SCHEMA)
    widths = {True: asked.window, False: asked.window_short}
    return {
        long: layer_excerpts(tables.get(width, none), neurons, width, quantile_bins(asked.protocol, long))
        for long, width in widths.items()
    }
