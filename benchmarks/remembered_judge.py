"""A layer whose judging is all on disk, to measure how quickly it is scored again."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from crate_model.config import ModelConfig
from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.records import EXCERPT_SCHEMA, NEURON_SCHEMA, NEURONS_A_ROW_GROUP, RecordsWriter
from pipeline.artifacts.store import Store
from pipeline.config import ActivationsConfig, InterpretConfig, RuntimeConfig
from pipeline.interpret.backends import Simulation, SimulationRequest, Text, Usage
from pipeline.interpret.online import score_sites_online
from pipeline.interpret.reading import sites_of
from pipeline.interpret.stage import Settings
from pipeline.stage import Context
from pipeline.tracking import TrackerSpec
from tests.interpret_world import publish, tokens_artifact

N_TOKENS, VOCABULARY = 1 << 20, 50_257
BINS = {64: 5, 8: 12}  # quantile bins of excerpts of each width
OF_LAYER = {"site": "code-l0", "layer": 0}


class Judge:
    """Explainer and simulator in one; its replies mean nothing. `asked` counts them."""

    model = identity = "made up"
    metric_suffix, excerpts_a_request = "", 1 << 20

    def __init__(self) -> None:
        self.asked = 0
        self.rng = np.random.default_rng(0)

    def explain(self, prompts: Iterable[Any]) -> Iterator[tuple[int, Text]]:
        for index, _ in enumerate(prompts):
            self.asked += 1
            yield index, Text(f"the number {self.asked}", Usage(1000, 10, 0.1))

    def most_tokens_out(self, request: SimulationRequest) -> int:
        return 0

    def simulate(self, requests: Iterable[SimulationRequest]) -> Iterator[tuple[int, Simulation]]:
        for index, request in enumerate(requests):
            self.asked += 1
            yield index, Simulation([self.rng.random(len(e)) * 10 for e in request.excerpts], Usage(1000, 0, 0.1))


def time_scoring(folder: Path, n_neurons: int) -> float:
    """Seconds to score a layer on all metrics from a cache on disk. The first call makes the layer and fills the cache."""
    store = Store(folder)
    tokens, records = store.find("tokens", "0" * 32), store.find("activations", "0" * 32)
    if not (tokens and records):
        tokens = tokens_artifact(store, np.random.default_rng(0).integers(0, VOCABULARY, N_TOKENS))
        records = _records(store, n_neurons)
        assert (
            _score(store, tokens, records, "1" * 32)[1] > 4 * n_neurons
        )  # two explanations, two requests, and controls
    seconds, asked = _score(store, tokens, records, "2" * 32)
    assert not asked, "a call was not remembered"
    return seconds


def _score(store: Store, tokens: Artifact, records: Artifact, fingerprint: str) -> tuple[float, int]:
    """Seconds, and how often the judge was asked, of the step with this fingerprint."""
    judge = Judge()
    context = Context(store, RuntimeConfig(), "run", "cell/interpret", fingerprint, TrackerSpec())
    settings = Settings(0, ModelConfig(n_layer=1), ActivationsConfig(), InterpretConfig(explainer="transformers"))
    progress, sites = context.progress(1, "neurons"), sites_of(records)
    started = time.perf_counter()
    ((site,), _) = score_sites_online(settings, tokens, records, sites, context, progress, lambda _: (judge, judge))
    seconds = time.perf_counter() - started
    assert all(row["n_scored"] == row["n_neurons"] for row in site.rows.values())
    return seconds, judge.asked


def _records(store: Store, n_neurons: int) -> Artifact:
    """As many excerpts of each kind as the default settings keep; half of the activations are zero."""
    making, rng = store.making_folder("records"), np.random.default_rng(1)
    with RecordsWriter(making) as writer:
        rows = [OF_LAYER | {"neuron": neuron} for neuron in range(n_neurons)]
        writer.statistics(pa.Table.from_pylist(rows, schema=NEURON_SCHEMA))
        for width, bins in BINS.items():
            for first in range(0, n_neurons, NEURONS_A_ROW_GROUP):
                writer.excerpts(_excerpts(range(first, min(first + NEURONS_A_ROW_GROUP, n_neurons)), width, bins, rng))
    return publish(store, "activations", making, {})


def _excerpts(neurons: range, width: int, bins: int, rng: np.random.Generator) -> pa.Table:
    kept = [("top", -1, rank) for rank in range(50)] + [("random", -1, rank) for rank in range(50)]
    kept += [("quantile", bin_, rank) for bin_ in range(bins) for rank in range(20)]
    kinds, of_bin, ranks = zip(*kept, strict=True)
    count = len(neurons) * len(kept)
    values = np.maximum(rng.random((count, width), np.float32) - 0.5, 0)
    offsets = pa.array(np.arange(count + 1, dtype=np.int32) * width)
    columns = {
        **{name: pa.repeat(value, count) for name, value in OF_LAYER.items()},
        "neuron": np.repeat(neurons, len(kept)),
        "width": pa.repeat(width, count),
        "kind": kinds * len(neurons),
        "bin": of_bin * len(neurons),
        "rank": ranks * len(neurons),
        "start": rng.integers(0, N_TOKENS - width, count),
        "center": pa.repeat(width // 2, count),
        "activations": pa.ListArray.from_arrays(offsets, pa.array(values.ravel())),
    }
    return pa.table(columns).select(EXCERPT_SCHEMA.names).cast(EXCERPT_SCHEMA)
