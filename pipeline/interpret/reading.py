"""Excerpts from the records artifact, as padded arrays; which neurons are taken."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.artifacts.store import Artifact
from pipeline.interpret.excerpts import LayerExcerpts

BINS, RANKS = 1 << 12, 1 << 20  # more than any neuron has


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


def layer_excerpts(table: pa.Table, neurons: np.ndarray, width: int) -> LayerExcerpts:
    """Arrays from rows of `excerpts.parquet` of one site and width: `neuron, kind, bin, rank, start, center, activations`."""
    kinds = table["kind"].combine_chunks().dictionary_encode()
    bins, ranks = table["bin"].to_numpy().astype(np.int64), table["rank"].to_numpy().astype(np.int64)
    codes = (kinds.indices.to_numpy() * BINS + bins + 1) * RANKS + ranks
    unique, columns = np.unique(codes, return_inverse=True)
    column = {
        (kinds.dictionary[code // RANKS // BINS].as_py(), code // RANKS % BINS - 1, code % RANKS): index
        for index, code in enumerate(unique.tolist())
    }
    row_of = np.full(max(neurons.max(initial=0), table["neuron"].to_numpy().max(initial=0)) + 1, -1)
    row_of[neurons] = np.arange(len(neurons))
    rows = row_of[table["neuron"].to_numpy()]

    values = table["activations"].combine_chunks()
    lengths = np.diff(values.offsets.to_numpy()) if len(values) else np.empty(0, np.int64)
    flat = values.flatten().to_numpy()
    shape = (len(neurons), len(column))
    taken = rows >= 0
    result = LayerExcerpts(
        np.asarray(neurons),
        column,
        np.full(shape, -1),
        np.zeros(shape, np.int64),
        np.zeros(shape, np.int64),
        np.zeros((*shape, width), np.float32),
    )
    result.starts[rows[taken], columns[taken]] = table["start"].to_numpy()[taken]
    result.lengths[rows[taken], columns[taken]] = lengths[taken]
    result.centers[rows[taken], columns[taken]] = table["center"].to_numpy()[taken]
    excerpt = np.repeat(np.arange(len(rows)), lengths)  # of every flat value
    position = np.arange(len(flat)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    kept = taken[excerpt]
    result.activations[rows[excerpt[kept]], columns[excerpt[kept]], position[kept]] = flat[kept]
    return result


def sites_of(records: Artifact) -> list[Site]:
    """The sites that the records hold, by layer."""
    table = pq.read_table(records.file("neurons.parquet"), columns=["site", "layer"])
    counts = Counter(zip(table["site"].to_pylist(), table["layer"].to_pylist(), strict=True))
    return [
        Site(name, layer, n) for (name, layer), n in sorted(counts.items(), key=lambda item: (item[0][1], item[0][0]))
    ]


def read_excerpts(records: Artifact, site: Site, neurons: np.ndarray) -> dict[bool, LayerExcerpts]:
    """Excerpts of some neurons of a site: {True: the long ones, False: the short ones}."""
    columns = ["neuron", "width", "kind", "bin", "rank", "start", "center", "activations"]
    table = pq.read_table(records.file("excerpts.parquet"), columns=columns, filters=[("site", "==", site.name)])
    widths = pc.unique(table["width"]).to_pylist()
    return {
        width == max(widths): layer_excerpts(table.filter(pc.equal(table["width"], width)), neurons, width)
        for width in sorted(widths, reverse=True)
    }
