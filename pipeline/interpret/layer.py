"""One site (a layer's neurons, or the features of one SAE): choose excerpts, have them judged, score. Pure; knows no Ray."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from pipeline.artifacts.scores import NEURON_SCHEMA
from pipeline.config import InterpretConfig
from pipeline.interpret import scoring, statistics
from pipeline.interpret.excerpts import Chosen, LayerExcerpts, Metric, choose, needed_selections
from pipeline.interpret.scoring import Status


@dataclass(frozen=True)
class Judged:
    """What a judge makes of a selection's excerpts. Arrays are (neurons, excerpts, width) like the score block's."""

    texts: list[str | None]  # explanations
    failures: list[Status | None]  # why a neuron has no simulation, where the judge failed
    predicted: np.ndarray
    other: np.ndarray  # simulated with another neuron's explanation
    empty: np.ndarray  # simulated with an empty explanation
    controlled: np.ndarray  # (neurons,) bool: which rows of `other` and `empty` were tried


class Judge(Protocol):
    @property
    def label(self) -> str: ...

    def judge(self, chosen: Chosen, rng: np.random.Generator) -> Judged: ...


@dataclass(frozen=True)
class SiteScores:
    """The result for one site: rows of `scores.parquet`, and what the model's statistics need."""

    site: str
    layer: int
    neurons: pa.Table
    rows: dict[Metric, dict[str, Any]]
    bootstraps: dict[Metric, np.ndarray]


def score_site(
    config: InterpretConfig,
    seed: int,
    site: str,
    layer: int,
    excerpts: dict[bool, LayerExcerpts],  # long? -> excerpts of the same neurons
    split,
    judge: Judge,
) -> SiteScores:
    """Score all given neurons of a site on all metrics of the configuration."""
    tables, rows, bootstraps = [], {}, {}
    for selection in needed_selections(config.metrics):
        chosen = choose(selection, excerpts[selection.long], split, leakage_free=config.protocol == "corrected")
        rng = np.random.default_rng([seed, zlib.crc32(f"{site}/{selection.name}".encode())])
        judged = judge.judge(chosen, rng)
        for metric in chosen.metric_excerpts:
            columns = _score(chosen, judged, metric, rng)
            tables.append(_table(site, layer, metric, chosen.neurons, columns))
            scores = columns["score"]
            bootstraps[metric] = statistics.bootstrap_means(scores, config.bootstrap, rng)
            rows[metric] = {"site": site, "layer": layer, "metric": metric}
            rows[metric] |= statistics.layer_row(scores, columns["status"], bootstraps[metric])
            rows[metric] |= {name: statistics.mean(columns[name]) for name in columns if name.startswith("null_")}
    return SiteScores(site, layer, pa.concat_tables(tables), rows, bootstraps)


def _score(chosen: Chosen, judged: Judged, metric: Metric, rng: np.random.Generator) -> dict[str, Any]:
    """The columns of one metric, arrays over neurons."""
    flat = (len(chosen.neurons), -1)
    mask = (chosen.score.mask & chosen.metric_excerpts[metric][:, None]).reshape(flat)
    true = chosen.score.activations.reshape(flat)
    failed = np.array([failure is not None for failure in judged.failures])
    predicted = judged.predicted.reshape(flat)
    status = scoring.statuses(true, predicted, mask)
    status = [failure or found for failure, found in zip(judged.failures, status, strict=True)]
    nulls = {"null_other": judged.other, "null_empty": judged.empty}
    columns = {
        name: np.where(judged.controlled, scoring.correlations(true, values.reshape(flat), mask), np.nan)
        for name, values in nulls.items()
    }
    columns["null_shuffled"] = scoring.correlations(true, shuffled(predicted, mask, rng), mask)
    columns["score"] = scoring.correlations(true, predicted, mask)
    columns = {name: np.where(failed, np.nan, values) for name, values in columns.items()}
    return columns | {"status": status, "n_tokens": mask.sum(1), "explanation": judged.texts}


def shuffled(values: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each row's masked values in random order; the rest stay behind them."""
    noise = np.where(mask, rng.random(mask.shape), 2)
    order = np.argsort(noise, axis=1)
    places = np.argsort(~mask, axis=1, kind="stable")  # masked places first, in order
    result = np.zeros_like(values)
    np.put_along_axis(result, places, np.take_along_axis(values, order, 1), 1)
    return result


def _table(site: str, layer: int, metric: Metric, neurons: np.ndarray, columns: dict[str, Any]) -> pa.Table:
    count = len(neurons)
    fixed = {"site": [site] * count, "layer": [layer] * count, "neuron": neurons, "metric": [metric] * count}
    columns = fixed | columns | {"status": [str(status) for status in columns["status"]]}
    arrays = []
    for field in NEURON_SCHEMA:
        value_type = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        array = pa.array(columns[field.name], value_type, from_pandas=True)
        arrays.append(array.dictionary_encode() if pa.types.is_dictionary(field.type) else array)
    return pa.table(arrays, schema=NEURON_SCHEMA)


def other_neurons(explained: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each row another row that has an explanation, (rows,); -1 where there is none. No row gets itself."""
    rows = rng.permutation(np.flatnonzero(explained))
    partner = np.full(len(explained), -1)
    if len(rows) > 1:
        partner[rows] = np.roll(rows, 1)
    return partner
