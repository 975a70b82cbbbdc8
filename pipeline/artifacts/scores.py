"""The scores of a model's neurons (or SAE features): one row a neuron and metric, one row a layer and metric.

All scores are correlations in -1..1; the published tables show them times 100. A neuron without a score has a status that
says why, and no number. A *family* is what is averaged over layers: `code` for neurons, `code-16x` for the features of the SAEs
of one size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.artifacts.artifact import Artifact

NEURONS, LAYERS = "neurons.parquet", "scores.parquet"
NAMES = pa.dictionary(pa.int32(), pa.string())

NEURON_SCHEMA = pa.schema(
    {
        "site": NAMES,
        "layer": pa.int32(),
        "neuron": pa.int32(),
        "metric": NAMES,
        "score": pa.float64(),  # null unless status is "scored"
        "status": NAMES,
        "n_explained": pa.int32(),  # excerpts that the metric's explanation is made from
        "n_excerpts": pa.int32(),  # that the metric scores
        "n_tokens": pa.int32(),  # over which the correlation is taken
        "explanation": pa.string(),
        "null_other": pa.float64(),  # with another neuron's explanation; null where not tried or not defined
        "null_shuffled": pa.float64(),  # with the neuron's own simulation, its tokens in random order
        "null_empty": pa.float64(),  # with an empty explanation
    }
)
LAYER_SCHEMA = pa.schema(
    {
        "site": pa.string(),
        "layer": pa.int32(),
        "metric": pa.string(),
        "mean": pa.float64(),  # over scored neurons; null if there is none
        "low": pa.float64(),  # 95 % interval of the mean, over neurons; null where they are too few or all alike
        "high": pa.float64(),
        "std": pa.float64(),  # over scored neurons
        "n_scored": pa.int32(),
        "n_neurons": pa.int32(),  # asked for, whatever became of them
        "n_units": pa.int32(),  # neurons or features that the site has
        "n_too_few_excerpts": pa.int32(),
        "n_silent": pa.int32(),
        "n_constant_prediction": pa.int32(),
        "n_unparsed": pa.int32(),
        "n_refused": pa.int32(),
        "n_over_budget": pa.int32(),
        "explained": pa.float64(),  # excerpts that are explained, mean of a scored neuron; null if there is none
        "explained_asked": pa.int32(),  # and how many the metric asks for
        "excerpts": pa.float64(),  # likewise those that are scored
        "excerpts_asked": pa.int32(),
        "tokens": pa.float64(),  # and their tokens
        "tokens_asked": pa.int32(),
        "null_other": pa.float64(),
        "null_shuffled": pa.float64(),
        "null_empty": pa.float64(),
        "n_null_other": pa.int32(),  # neurons that the nulls are means of
        "n_null_shuffled": pa.int32(),
        "n_null_empty": pa.int32(),
        "n_controls": pa.int32(),  # neurons that were to be simulated with another's and an empty explanation, too
        "n_controls_refused": pa.int32(),  # and where the judge gave no reply to that, also when asked again
    }
)


def family_of(site: str) -> str:
    """What a site is averaged with: its name without the layer (`code-l3` -> `code`, `code-l0-16x` -> `code-16x`)."""
    return re.sub(r"-l\d+", "", site)


def write_scores(folder: Path, neurons: Sequence[pa.Table], layers: Sequence[Mapping[str, Any]]) -> None:
    """Write both tables; `neurons` has one table a site (a row group each), in the order of `layers`' sites."""
    with pq.ParquetWriter(folder / NEURONS, NEURON_SCHEMA, compression="zstd") as writer:
        for table in neurons:
            writer.write_table(table.cast(NEURON_SCHEMA).unify_dictionaries())
    pq.write_table(pa.Table.from_pylist(list(layers), schema=LAYER_SCHEMA), folder / LAYERS)


@dataclass(frozen=True)
class Scores:
    """The reading end."""

    artifact: Artifact

    @property
    def judge(self) -> str:
        """Who explained and simulated; to be shown wherever a score is."""
        return self.artifact.summary["judge"]

    def layers(self) -> pa.Table:
        """One row a site and metric (LAYER_SCHEMA)."""
        return pq.read_table(self.artifact.file(LAYERS))

    def neurons(self, metric: str | None = None, layer: int | None = None, site: str | None = None) -> pa.Table:
        """One row a neuron and metric (NEURON_SCHEMA, names as plain strings), of one metric, layer or site if asked."""
        wanted = {"metric": metric, "layer": layer, "site": site}
        filters = [(name, "==", value) for name, value in wanted.items() if value is not None]
        table = pq.read_table(self.artifact.file(NEURONS), filters=filters or None)
        for name in ("site", "metric", "status"):
            index = table.schema.get_field_index(name)
            table = table.set_column(index, name, pc.cast(table[name], pa.string()))
        return table

    def best(self, metric: str, layer: int, count: int, site: str | None = None) -> list[dict[str, Any]]:
        """The `count` best-scored neurons of a layer, as rows."""
        table = self.neurons(metric, layer, site)
        scored = table.filter(pc.is_valid(table["score"]))
        order = pc.sort_indices(scored, sort_keys=[("score", "descending"), ("neuron", "ascending")])
        return scored.take(order[:count]).to_pylist()
