"""Records as the JSON files of OpenAI's automated interpretability: `<folder>/<layer>/<neuron>.json`, one a neuron.

*Source:* `NeuronRecord` of the package automated-interpretability (Bills et al. 2023). Differences: our moments are standardised,
as the field's names say there too, and its quantile boundaries are activations (the released CRATE code writes bin means).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.artifacts.records import Excerpt, NeuronRecord, Records
from pipeline.artifacts.tokens import TokenSplit


def export_neuron_records(
    records: Records,
    split: TokenSplit,
    strings: list[str],
    folder: Path,
    layer: int | str,
    neurons: Iterable[int] | None = None,
    width: int | None = None,
) -> int:
    """Write neurons (None: all) of a layer, or of a site by name; `strings` are the tokens' texts by id.

    `width` picks the excerpts, None the longest. Returns how many files were written. Raises ConfigError for what is not there.
    """
    found = records.iter_layer(layer) if neurons is None else (records.neuron(layer, index) for index in neurons)
    count = 0
    for record in found:
        path = folder / str(record.layer) / f"{record.neuron}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        exported = neuron_record(record, split, strings, width or max(record.excerpts))
        path.write_text(json.dumps(exported, ensure_ascii=False, allow_nan=False), encoding="utf-8")
        count += 1
    return count


def neuron_record(record: NeuronRecord, split: TokenSplit, strings: list[str], width: int) -> dict[str, Any]:
    """A neuron as the fields of `NeuronRecord`."""

    def told(excerpts: list[Excerpt]) -> list[dict[str, Any]]:
        return [_activation_record(excerpt, split, strings) for excerpt in excerpts]

    groups, statistics = record.excerpts[width], record.statistics
    edges = statistics["edges" if width == max(record.excerpts) else "edges_short"]
    return {
        "dataclass_name": "NeuronRecord",
        "neuron_id": {"dataclass_name": "NeuronId", "layer_index": record.layer, "neuron_index": record.neuron},
        "random_sample": told(groups.get(("random", -1), [])),
        "random_sample_by_quantile": [told(groups.get(("quantile", bin_), [])) for bin_ in range(len(edges) + 1)],
        "quantile_boundaries": edges,
        **{name: _finite(statistics[name]) for name in ("mean", "variance", "skewness", "kurtosis")},
        "most_positive_activation_records": told(groups.get(("top", -1), [])),
    }


def _activation_record(excerpt: Excerpt, split: TokenSplit, strings: list[str]) -> dict[str, Any]:
    ids = split.read(excerpt.start, len(excerpt.activations)).tolist()
    return {
        "dataclass_name": "ActivationRecord",
        "tokens": [strings[token] for token in ids],
        "activations": excerpt.activations.tolist(),
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
