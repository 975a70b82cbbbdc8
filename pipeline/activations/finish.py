"""The workers' parts become the artifact, a few dozen neurons at a time: what is in memory does not grow with a site."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.activations.corpus import Corpus, Span
from pipeline.activations.job import Job
from pipeline.activations.moments import Moments, MomentsTree
from pipeline.activations.quantiles import edge_keys, edge_values, octaves
from pipeline.activations.select import Candidates, excerpt_tables
from pipeline.activations.sites import Site
from pipeline.artifacts.records import KINDS, RecordsWriter
from pipeline.stage import Summary

Part = dict[str, np.ndarray]  # a shard's statistics of a site


def write_records(job: Job, corpus: Corpus, folder: Path) -> Summary:
    """Write both files of the artifact from all shards' parts, wherever they were read. Returns its summary."""
    job.bring_parts()
    facts: dict[str, Any] = {}
    with RecordsWriter(folder) as writer:
        for site in _sites(job):
            parts = [_statistics(job.shard_file(shard), site) for shard in range(len(job.shards))]
            statistics, facts[site.name] = statistics_table(site, parts, _measured(job, corpus, site))
            writer.statistics(statistics)
            facts[site.name]["missing"] = _write_excerpts(writer, site, job, corpus)
    read = {"rows": corpus.n_rows, "rows_short": corpus.n_rows_short, "n_ctx": corpus.n_ctx}
    asked = {"tokens_asked": job.config.tokens, "tokens_short_asked": job.config.tokens_short}
    counts = {"tokens": corpus.n_rows * corpus.n_ctx, "tokens_short": corpus.n_rows_short * corpus.n_ctx}
    counts["pilot_tokens"] = sum(len(corpus.rows(batch)) for batch in job.pilot(corpus, corpus.n_rows)) * corpus.n_ctx
    return {"protocol": job.config.protocol, **counts, **asked, **read, "sites": facts}


def _write_excerpts(writer: RecordsWriter, site: Site, job: Job, corpus: Corpus) -> dict[str, int]:
    """Write a site's excerpts; returns how many could not be had, by "width/kind"."""
    missing: Counter[str] = Counter()
    for span in corpus.spans:
        candidates = partial(_candidates, job, site, span)
        for table, short in excerpt_tables(candidates, site, span, job.wanted(), corpus):
            writer.excerpts(table)
            missing.update({f"{span.width}/{kind}": count for kind, count in short.items()})
    return dict(missing)


def statistics_table(site: Site, parts: Sequence[Part], measured: Part) -> tuple[pa.Table, dict[str, Any]]:
    """A row a neuron (NEURON_SCHEMA), and what is said of the site as a whole. `measured` are columns (neurons, values)."""
    tree = MomentsTree()
    for part in parts:
        for name in part:
            if name.startswith("moments/"):
                height, index, n = map(int, name.split("/")[1:])
                tree.put(height, index, Moments(n, part[name]))
    total = tree.total()
    nonzero = np.sum([part["nonzero"] for part in parts], axis=0)
    columns = {
        "site": pa.repeat(site.name, site.n_neurons),
        "layer": np.full(site.n_neurons, site.layer, np.int32),
        "neuron": np.arange(site.n_neurons, dtype=np.int32),
        "mean": total.sums[0],
        "variance": total.variance(),
        "skewness": pa.array(total.skewness(), from_pandas=True),
        "kurtosis": pa.array(total.kurtosis(), from_pandas=True),
        "maximum": np.max([part["maximum"] for part in parts], axis=0).astype(np.float64),
        "fraction_nonzero": nonzero / total.n,
        **{name: _lists(values) for name, values in measured.items()},
    }
    facts = {
        "layer": site.layer,
        "n_neurons": site.n_neurons,
        "sparsity": float(1 - nonzero.mean() / total.n),  # mean share of zeros
        "dead": float((nonzero == 0).mean()),  # share of neurons that never were non-zero
    }
    return pa.table(columns), facts


def _sites(job: Job) -> list[Site]:
    from safetensors import safe_open

    with safe_open(job.shard_file(0), framework="np") as file:
        return [Site(**facts) for facts in json.loads(file.metadata()["sites"])]


def _statistics(path: Path, site: Site) -> Part:
    from safetensors import safe_open

    prefix = f"{site.name}:"
    with safe_open(path, framework="np") as file:
        names = [name.removeprefix(prefix) for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 not a mapping
        wanted = [name for name in names if name in ("maximum", "nonzero") or name.startswith("moments/")]
        return {name: file.get_tensor(prefix + name) for name in wanted}


def _candidates(job: Job, site: Site, span: Span, some: slice) -> dict[str, list[Candidates]]:
    """All shards' reservoirs of some neurons, by kind. A file is closed at once: its pages are let go."""
    from safetensors import safe_open

    found: dict[str, list[Candidates]] = {kind: [] for kind in KINDS}
    for shard in range(len(job.shards)):
        with safe_open(job.shard_file(shard), framework="np") as file:
            for kind, parts in found.items():
                name = f"{site.name}:{span.width}/{kind}"
                keys, activations = (file.get_slice(f"{name}/{part}")[some] for part in ("keys", "activations"))
                parts.append((keys, activations))
    return found


def _measured(job: Job, corpus: Corpus, site: Site) -> Part:
    """What was counted on the pilot batches: the histogram for the long excerpts, and the edges of both quantile bins."""
    counts = {span.n_rows: _pilot_counts(job, span.n_rows, site) for span in corpus.spans}
    long, short = (edge_values(edge_keys(counts[span.n_rows], span.edges, site.signed)) for span in corpus.spans)
    return {"histogram": octaves(counts[corpus.n_rows], site.signed), "edges": long, "edges_short": short}


def _pilot_counts(job: Job, n_rows: int, site: Site) -> np.ndarray:
    from safetensors import safe_open

    counts: np.ndarray | int = 0
    for part in range(job.n_pilots):
        with safe_open(job.pilot_file(part), framework="np") as file:
            counts = counts + file.get_tensor(f"{site.name}/{n_rows}").astype(np.int64)
    return np.asarray(counts)


def _lists(values: np.ndarray) -> pa.ListArray:
    """Rows (n, k) as n lists."""
    offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.ravel()))
