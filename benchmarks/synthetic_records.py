"""Records of a model that need not exist, to measure how quickly one neuron of many is found again."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.manifest import Manifest, list_files
from pipeline.artifacts.records import NEURONS_A_ROW_GROUP, Records, RecordsWriter

N_LAYER, N_NEURONS, WIDTHS = 12, 3072, (64, 8)
OPENED = 5  # times that the files are opened
READ = 100  # neurons read, at random


def time_one_neuron(folder: Path, excerpts: int) -> dict[str, float]:
    """Milliseconds to open the files and read a first neuron, and to read any other; `excerpts` a neuron and width."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    with RecordsWriter(folder) as writer:
        for layer in range(N_LAYER):
            writer.statistics(_statistics(layer, rng))
            for width in WIDTHS:
                for first in range(0, N_NEURONS, NEURONS_A_ROW_GROUP):
                    writer.excerpts(_excerpts(layer, first, width, excerpts, rng))
    files = list_files(folder)
    artifact = Artifact(folder, Manifest("activations", 1, "0", {}, {}, files, {}))
    opening = [_milliseconds(lambda: Records(artifact).neuron(7, 1234)) for _ in range(OPENED)]
    records = Records(artifact)
    wanted = [divmod(int(i), N_NEURONS) for i in rng.integers(0, N_LAYER * N_NEURONS, READ)]
    reading = [_milliseconds(lambda one=one: records.neuron(*one)) for one in wanted]
    return {"open_ms": median(opening), "read_ms": median(reading), "bytes": sum(file.bytes for file in files)}


def _milliseconds(call: Any) -> float:
    started = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - started)


def _statistics(layer: int, rng: np.random.Generator) -> pa.Table:
    numbers = ("mean", "variance", "skewness", "kurtosis", "maximum", "fraction_nonzero")
    return pa.table(
        {
            "site": pa.repeat(f"code-l{layer}", N_NEURONS),
            "layer": np.full(N_NEURONS, layer, np.int32),
            "neuron": np.arange(N_NEURONS, dtype=np.int32),
            **{name: rng.random(N_NEURONS) for name in numbers},
            "histogram": _lists(rng.integers(0, 9000, (N_NEURONS, 42))),
            "edges": _lists(rng.random((N_NEURONS, 4))),
            "edges_short": _lists(rng.random((N_NEURONS, 10))),
        }
    )


def _excerpts(layer: int, first: int, width: int, excerpts: int, rng: np.random.Generator) -> pa.Table:
    """A row group: half of the activations are zero."""
    n_rows = NEURONS_A_ROW_GROUP * excerpts
    return pa.table(
        {
            "site": pa.repeat(f"code-l{layer}", n_rows),
            "layer": np.full(n_rows, layer, np.int32),
            "neuron": np.repeat(np.arange(first, first + NEURONS_A_ROW_GROUP, dtype=np.int32), excerpts),
            "width": np.full(n_rows, width, np.int32),
            "kind": pa.repeat("top", n_rows),
            "bin": np.full(n_rows, -1, np.int32),
            "rank": np.tile(np.arange(excerpts, dtype=np.int32), NEURONS_A_ROW_GROUP),
            "start": rng.integers(0, 1 << 23, n_rows),
            "center": np.full(n_rows, width // 2, np.int32),
            "activations": _lists(np.maximum(rng.random((n_rows, width), np.float32) - 0.5, 0)),
        }
    )


def _lists(values: np.ndarray) -> pa.ListArray:
    offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.ravel()))
