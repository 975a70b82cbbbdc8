"""Records of neurons (stage `activations`) or SAE features (stage `features`): statistics and excerpts.

- `neurons.parquet`, a row group a site: a row a neuron (NEURON_SCHEMA).
- `excerpts.parquet`, sorted by site, width and neuron: a row an excerpt (EXCERPT_SCHEMA). Row groups hold a few dozen
  neurons of one site and width, so that one neuron is opened without reading its layer.

A *site* is what the neurons belong to: `code-l3` for a layer's code, an SAE's name for features. Excerpts point into the val
split of the token store (`start`) instead of holding text.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.artifacts.artifact import Artifact
from pipeline.errors import ArtifactError, ConfigError

NEURONS, EXCERPTS = "neurons.parquet", "excerpts.parquet"
KINDS = ("top", "random", "quantile")
NEURONS_A_ROW_GROUP = 64

NEURON_SCHEMA = pa.schema(
    {
        "site": pa.string(),
        "layer": pa.int32(),
        "neuron": pa.int32(),
        "mean": pa.float64(),
        "variance": pa.float64(),  # unbiased
        "skewness": pa.float64(),  # third standardised moment; null where the variance is 0
        "kurtosis": pa.float64(),  # fourth standardised moment, 3 for a normal distribution; null where the variance is 0
        "maximum": pa.float64(),
        "fraction_nonzero": pa.float64(),
        "histogram": pa.list_(pa.int64()),  # measured tokens by size of activation, see `histogram_edges`
        "edges": pa.list_(pa.float64()),  # activations at the inner edges of the long excerpts' quantile bins
        "edges_short": pa.list_(pa.float64()),  # of the short excerpts' bins
    }
)
EXCERPT_SCHEMA = pa.schema(
    {
        "site": pa.string(),
        "layer": pa.int32(),
        "neuron": pa.int32(),
        "width": pa.int32(),
        "kind": pa.string(),  # "top", "random", "quantile"
        "bin": pa.int32(),  # quantile bin, 0 the lowest; else -1
        "rank": pa.int32(),  # 0-based within its kind and bin
        "start": pa.int64(),  # of the excerpt, a token's offset in val
        "center": pa.int32(),  # which token of the excerpt it was chosen for
        "activations": pa.list_(pa.float32()),
    }
)
FIRST_OCTAVE, LAST_OCTAVE = -24, 16


def histogram_edges() -> np.ndarray:
    """Lower edges of the histogram's bins: below zero, zero, above zero, then one a power of two from 2^-23 to 2^15.

    The histogram is of the tokens on which the quantiles of the long excerpts were measured: `pilot_tokens` in the summary.
    """
    positive = 2.0 ** np.arange(FIRST_OCTAVE + 1, LAST_OCTAVE)
    return np.concatenate([[-np.inf, 0.0, np.finfo(np.float32).tiny], positive])


def quantile_bins(protocol: str, long: bool) -> int:
    """Quantile bins that excerpts are drawn from. `paper`, as the released code, never samples the short ones' top twelfth."""
    return 5 if long else 11 if protocol == "paper" else 12


@dataclass(frozen=True)
class Excerpt:
    start: int  # offset in val
    center: int
    activations: np.ndarray  # (width,) float32


@dataclass(frozen=True)
class NeuronRecord:
    """Everything kept of one neuron. `excerpts[width][kind, bin]` are in order of rank; bin is -1 but for quantiles."""

    site: str
    layer: int
    neuron: int
    statistics: dict[str, Any]
    excerpts: dict[int, dict[tuple[str, int], list[Excerpt]]]


class RecordsWriter:
    """Writes the two files site by site. Use as a context manager."""

    def __init__(self, folder: Path) -> None:
        options: dict[str, Any] = {"compression": "zstd"}
        coded = ["site", "kind", "layer", "width", "bin", "rank", "center", "neuron"]
        self._neurons = pq.ParquetWriter(folder / NEURONS, NEURON_SCHEMA, **options)
        self._excerpts = pq.ParquetWriter(
            folder / EXCERPTS,
            EXCERPT_SCHEMA,
            use_dictionary=coded,
            use_byte_stream_split=["activations.list.element"],
            column_encoding={"start": "DELTA_BINARY_PACKED"},
            **options,
        )

    def __enter__(self) -> RecordsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._neurons.close()
        self._excerpts.close()

    def statistics(self, table: pa.Table) -> None:
        """All neurons of one site."""
        self._neurons.write_table(table.cast(NEURON_SCHEMA), row_group_size=max(1, table.num_rows))

    def excerpts(self, table: pa.Table) -> None:
        """Excerpts of up to NEURONS_A_ROW_GROUP neurons of one site and width, sorted by neuron: one row group."""
        if table.num_rows:
            self._excerpts.write_table(table.cast(EXCERPT_SCHEMA), row_group_size=table.num_rows)


@dataclass(frozen=True)
class _Group:
    """A row group of `excerpts.parquet`, as its statistics tell it."""

    index: int
    site: str
    width: int
    first: int
    last: int


class Records:
    """Reads a records artifact. Raises ArtifactError when a file is missing or torn."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self._neurons = _opened(artifact, NEURONS)
        self._excerpts = _opened(artifact, EXCERPTS)
        self._statistics: dict[str, pa.Table] = {}  # of the sites that were asked for

    @property
    def sites(self) -> list[str]:
        return list(self._sites)

    @property
    def layers(self) -> list[int]:
        return list(dict.fromkeys(layer for layer, _ in self._sites.values()))

    def layer_of(self, site: str) -> int:
        return self._sites[self._site(site)][0]

    def n_neurons(self, layer: int | str) -> int:
        """Neurons of a layer, or of a site by name."""
        return self._neurons.metadata.row_group(self._sites[self._site(layer)][1]).num_rows

    def statistics(self, layer: int | str) -> pa.Table:
        """A row a neuron (NEURON_SCHEMA) of a layer, or of a site by name, in order of the neurons."""
        site = self._site(layer)
        if site not in self._statistics:
            self._statistics[site] = self._neurons.read_row_group(self._sites[site][1])
        return self._statistics[site]

    def neuron(self, layer: int | str, index: int) -> NeuronRecord:
        """One neuron of a layer, or of a site by name. Raises ConfigError when there is none of that index."""
        site = self._site(layer)
        table = self.statistics(site)
        if not 0 <= index < table.num_rows:
            raise ConfigError(
                f"{site} has no neuron {index}", fix=f"It has {table.num_rows}: give 0 to {table.num_rows - 1}."
            )
        groups = [g.index for g in self._groups if g.site == site and g.first <= index <= g.last]
        rows = self._excerpts.read_row_groups(groups)
        return _record(table.slice(index, 1).to_pylist()[0], rows.filter(pc.equal(rows["neuron"], index)))

    def excerpts(self, layer: int | str) -> dict[int, pa.Table]:
        """All excerpts of a layer, or of a site by name, by their width (EXCERPT_SCHEMA), sorted by neuron."""
        site = self._site(layer)
        widths = sorted({g.width for g in self._groups if g.site == site})
        groups = {width: [g.index for g in self._groups if (g.site, g.width) == (site, width)] for width in widths}
        return {width: self._excerpts.read_row_groups(indices) for width, indices in groups.items()}

    def longest(self) -> int:
        """Tokens of the longest excerpts."""
        return max(group.width for group in self._groups)

    def excerpt_rows(self, site: str, width: int, columns: list[str], neurons: Iterable[int] | None = None) -> pa.Table:
        """Some columns of a site's excerpts of one width, sorted by neuron. Of `neurons`, where they are given, and of others
        that happen to lie beside them."""
        places = None if neurons is None else sorted(neurons)
        groups = [
            g.index
            for g in self._groups
            if (g.site, g.width) == (site, width)
            and (places is None or bisect(places, g.last) > bisect(places, g.first - 1))
        ]
        return self._excerpts.read_row_groups(groups, columns=columns)

    def iter_layer(self, layer: int | str) -> Iterator[NeuronRecord]:
        """The neurons of a layer in order, a few dozen in memory at a time."""
        site = self._site(layer)
        statistics = self.statistics(site).to_pylist()
        spans = sorted({(g.first, g.last) for g in self._groups if g.site == site})
        for first, last in spans:
            groups = [g.index for g in self._groups if (g.site, g.first, g.last) == (site, first, last)]
            rows = self._excerpts.read_row_groups(groups)
            for index in range(first, last + 1):
                yield _record(statistics[index], rows.filter(pc.equal(rows["neuron"], index)))

    def _site(self, layer: int | str) -> str:
        sites = [site for site, (of_layer, _) in self._sites.items() if layer in (site, of_layer)]
        if len(sites) == 1:
            return sites[0]
        if sites:
            raise ConfigError(f"layer {layer} has {len(sites)} sites", fix="Name one of: " + ", ".join(sites))
        what = f"layer {layer}" if isinstance(layer, int) else f"site {layer!r}"
        raise ConfigError(f"these records have no {what}", fix="They have: " + ", ".join(self.sites))

    @cached_property
    def _sites(self) -> dict[str, tuple[int, int]]:
        """Each site's layer, and its row group in `neurons.parquet`."""
        found = _row_groups(self._neurons.metadata, "site", "layer")
        return {site.min: (layer.min, index) for index, (site, layer) in enumerate(found)}

    @cached_property
    def _groups(self) -> list[_Group]:
        found = _row_groups(self._excerpts.metadata, "site", "width", "neuron")
        return [
            _Group(index, site.min, width.min, neuron.min, neuron.max)
            for index, (site, width, neuron) in enumerate(found)
        ]


def _row_groups(metadata: pq.FileMetaData, *names: str) -> Iterator[list[pq.Statistics]]:
    """The least and greatest values of these columns in every row group."""
    column = {metadata.schema.column(i).path: i for i in range(metadata.num_columns)}
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        yield [group.column(column[name]).statistics for name in names]


def _opened(artifact: Artifact, name: str) -> pq.ParquetFile:
    path = artifact.file(name)
    try:
        return pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise ArtifactError(
            f"{path} is no Parquet file: {error}", fix=f"Delete {path.parent} and run again."
        ) from error


def _record(statistics: dict[str, Any], rows: pa.Table) -> NeuronRecord:
    excerpts: dict[int, dict[tuple[str, int], list[Excerpt]]] = {}
    for row in rows.sort_by([("width", "descending"), ("bin", "ascending"), ("rank", "ascending")]).to_pylist():
        of_kind = excerpts.setdefault(row["width"], {}).setdefault((row["kind"], row["bin"]), [])
        of_kind.append(Excerpt(row["start"], row["center"], np.array(row["activations"], np.float32)))
    site, layer, neuron = (statistics.pop(name) for name in ("site", "layer", "neuron"))
    return NeuronRecord(site, layer, neuron, statistics, excerpts)
