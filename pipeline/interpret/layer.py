"""One site (a layer's neurons, or the features of one SAE): choose excerpts, have them judged, score. Pure; knows no Ray."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa

from pipeline.artifacts.scores import NEURON_SCHEMA
from pipeline.artifacts.tokens import TokenSplit
from pipeline.config import InterpretConfig
from pipeline.interpret import scoring, statistics
from pipeline.interpret.basis import Basis, layer_facts
from pipeline.interpret.excerpts import Chosen, LayerExcerpts, Metric, choose, needed_selections
from pipeline.interpret.reading import Site
from pipeline.interpret.scoring import Status
from pipeline.intervals import Estimate

if TYPE_CHECKING:
    from pipeline.interpret.stage import Settings

NULLS = ("null_other", "null_shuffled", "null_empty")
Columns = dict[str, Any]  # columns of the neurons' table for one metric, and their `basis`


@dataclass(frozen=True)
class Judged:
    """What a judge makes of a selection's excerpts. Arrays are (neurons, excerpts, width) like the score block's."""

    texts: list[str | None]  # explanations
    failures: list[Status | None]  # why a neuron has no simulation, where the judge failed
    predicted: np.ndarray
    other: np.ndarray  # simulated with another neuron's explanation
    empty: np.ndarray  # simulated with an empty explanation
    controlled: np.ndarray  # (neurons,) bool: which rows of `other` and `empty` there are
    controls_refused: np.ndarray  # (neurons,) bool: which the judge refused


class Judge(Protocol):
    @property
    def label(self) -> str:
        """Who judged; shown wherever a score is."""

    @property
    def chunk(self) -> int | None:
        """Neurons judged together; None: all of a site."""

    @property
    def metric_suffix(self) -> str:
        """Appended to metrics' names where the way of simulating makes other metrics of them."""

    def judge(self, chosen: Chosen, rng: np.random.Generator, controls: int) -> Judged:
        """Explain and simulate; at least `controls` neurons also with another's and with an empty explanation, if they can."""


@dataclass(frozen=True)
class SiteScores:
    """The result for one site: rows of `scores.parquet`, and what the model's statistics need."""

    site: str
    layer: int
    neurons: pa.Table
    rows: dict[str, dict[str, Any]]  # by metric, as are the estimates of the means and what was explained and scored
    estimates: dict[str, Estimate | None]
    basis: dict[str, tuple[Basis, np.ndarray]]  # of all neurons, and which of them have a score


def score_site(
    settings: Settings,
    site: Site,
    excerpts: dict[bool, LayerExcerpts],  # long? -> excerpts of the same neurons
    split: TokenSplit,
    judge: Judge,
    tell: Callable[[int], None] = lambda done: None,  # told how many neurons are done
) -> SiteScores:
    """Score the given neurons of a site, in their order, on all metrics of the configuration.

    Ends early when `half_width` is set and every metric's interval is as narrow: the neurons are a random sample then.
    """
    config, seed = settings.interpret, settings.seed
    n_neurons = len(excerpts[True].neurons)
    chunk = judge.chunk or max(1, n_neurons)
    parts: dict[str, list[Columns]] = {}
    controls: Counter[str] = Counter()  # neurons that have theirs, by selection
    for first in range(0, n_neurons, chunk):
        rows = slice(first, first + chunk)
        for selection in needed_selections(config.metrics):
            chosen = choose(selection, excerpts[selection.long].of(rows), split, config.protocol == "corrected")
            rng = _generator(seed, site.name, selection.name, first)
            judged = judge.judge(chosen, rng, max(0, config.control_neurons - controls[selection.name]))
            controls[selection.name] += int(judged.controlled.sum())
            for metric in chosen.metric_excerpts:
                parts.setdefault(metric + judge.metric_suffix, []).append(_columns(chosen, judged, metric, rng))
        tell(min(first + chunk, n_neurons))
        if config.half_width and _narrow(parts, config, seed):
            break
    return _site_scores(config, seed, site, {metric: _joined(of_chunks) for metric, of_chunks in parts.items()})


def _site_scores(config: InterpretConfig, seed: int, site: Site, columns: dict[str, Columns]) -> SiteScores:
    rows, estimates, basis = {}, {}, {}
    for metric, of_metric in columns.items():
        rng = _generator(seed, site.name, metric)
        estimates[metric] = statistics.layer_estimate(of_metric["score"], config.bootstrap, rng)
        basis[metric] = of_metric["basis"], ~np.isnan(of_metric["score"])
        rows[metric] = {"site": site.name, "layer": site.layer, "metric": metric, "n_units": site.n_neurons}
        rows[metric] |= statistics.layer_row(of_metric["score"], of_metric["status"], estimates[metric])
        rows[metric] |= layer_facts(of_metric["basis"], of_metric["n_tokens"], basis[metric][1])
        rows[metric] |= {name: statistics.mean(of_metric[name]) for name in NULLS}
        rows[metric] |= {f"n_{name}": int(np.count_nonzero(~np.isnan(of_metric[name]))) for name in NULLS}
        refused = int(of_metric["controls_refused"].sum())
        rows[metric] |= {"n_controls": int(of_metric["controlled"].sum()) + refused, "n_controls_refused": refused}
    tables = [_table(site.name, site.layer, metric, of_metric) for metric, of_metric in columns.items()]
    return SiteScores(site.name, site.layer, pa.concat_tables(tables), rows, estimates, basis)


def _generator(seed: int, *names: object) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32("/".join(map(str, names)).encode())])


def _narrow(parts: dict[str, list[Columns]], config: InterpretConfig, seed: int) -> bool:
    """Whether every metric's mean so far has a 95 % interval, and it is within +- half_width.

    A metric whose excerpts no neuron has is not waited for.
    """
    for metric, chunks in parts.items():
        if not any(chunk["basis"].enough().any() for chunk in chunks):
            continue
        scores = np.concatenate([chunk["score"] for chunk in chunks])
        estimate = statistics.layer_estimate(scores, config.bootstrap, _generator(seed, metric))
        low, high = statistics.interval([estimate], [int(np.count_nonzero(~np.isnan(scores)))])
        if low is None or high is None or high - low > 2 * config.half_width:
            return False
    return True


def _columns(chosen: Chosen, judged: Judged, metric: Metric, rng: np.random.Generator) -> Columns:
    """The columns of one metric, arrays over neurons. Tokens without a prediction (NaN) count on neither side."""
    basis = chosen.basis[metric]
    enough = basis.enough()
    flat = (len(chosen.neurons), int(np.prod(chosen.score.mask.shape[1:])))
    scored = (chosen.score.mask & chosen.metric_excerpts[metric][:, None]).reshape(flat) & enough[:, None]
    true = chosen.score.activations.reshape(flat)

    def correlation(predicted: np.ndarray, tried: np.ndarray) -> np.ndarray:
        mask = scored[tried] & ~np.isnan(predicted[tried])
        result = np.full(len(tried), np.nan)
        result[tried] = scoring.correlations(true[tried], np.nan_to_num(predicted[tried]), mask)
        return result

    predicted = judged.predicted.reshape(flat)
    mask = scored & ~np.isnan(predicted)
    failed = np.array([failure is not None for failure in judged.failures], bool)
    found = scoring.statuses(true, np.nan_to_num(predicted), mask)
    statuses = [
        (Status.SILENT if dead else Status.TOO_FEW_EXCERPTS) if not has else failure or status
        for has, dead, failure, status in zip(enough, chosen.dead, judged.failures, found, strict=True)
    ]
    return {
        "basis": basis,
        "neuron": chosen.neurons,
        "score": correlation(predicted, ~failed),
        "status": statuses,
        "n_explained": basis.count(explained=True),
        "n_excerpts": basis.count(explained=False),
        "n_tokens": mask.sum(1),
        "explanation": judged.texts,
        "null_other": correlation(judged.other.reshape(flat), judged.controlled & ~failed),
        "null_shuffled": correlation(shuffled(predicted, mask, rng), ~failed),
        "null_empty": correlation(judged.empty.reshape(flat), judged.controlled & ~failed),
        "controlled": judged.controlled & enough,
        "controls_refused": judged.controls_refused & enough,
    }


def _joined(chunks: list[Columns]) -> Columns:
    """Columns of all chunks, one after the other."""
    return {name: _concatenated([chunk[name] for chunk in chunks]) for name in chunks[0]}


def _concatenated(values: list[Any]) -> Any:
    if isinstance(values[0], Basis):
        return reduce(Basis.joined, values)
    return np.concatenate(values) if isinstance(values[0], np.ndarray) else [v for chunk in values for v in chunk]


def shuffled(values: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each row's masked values in random order; the rest stay behind them."""
    noise = np.where(mask, rng.random(mask.shape), 2)
    order = np.argsort(noise, axis=1)
    places = np.argsort(~mask, axis=1, kind="stable")  # masked places first, in order
    result = np.zeros_like(values)
    np.put_along_axis(result, places, np.take_along_axis(values, order, 1), 1)
    return result


def _table(site: str, layer: int, metric: str, columns: Columns) -> pa.Table:
    count = len(columns["neuron"])
    fixed = {"site": [site] * count, "layer": [layer] * count, "metric": [metric] * count}
    filled = columns | fixed | {"status": [str(status) for status in columns["status"]]}
    arrays = []
    for field in NEURON_SCHEMA:
        value_type = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        array = pa.array(filled[field.name], value_type, from_pandas=True)
        arrays.append(array.dictionary_encode() if pa.types.is_dictionary(field.type) else array)
    return pa.table(arrays, schema=NEURON_SCHEMA)


def other_neurons(explained: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each row another row that has an explanation, (rows,); -1 where there is none. No row gets itself."""
    rows = rng.permutation(np.flatnonzero(explained))
    partner = np.full(len(explained), -1)
    if len(rows) > 1:
        partner[rows] = np.roll(rows, 1)
    return partner
