"""Artifacts with neurons whose behaviour is known: neuron i of a layer fires on its own few tokens, with known strength.

Excerpts are taken from the planted activations by the published rules, so that a test knows what to find later.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from crate_model.config import ModelConfig
from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.records import EXCERPT_SCHEMA, NEURON_SCHEMA, RecordsWriter
from pipeline.artifacts.store import Store
from pipeline.artifacts.token_shards import ShardWriter
from pipeline.config import ActivationsConfig, InterpretConfig
from pipeline.interpret.stage import Settings

WIDTHS = {64: 5, 8: 11}  # width of an excerpt -> quantile bins


def settings(interpret: InterpretConfig | None = None, seed: int = 0, n_layer: int = 1, window: int = 64) -> Settings:
    """Of the interpret stage, for records as they are planted here: with eleven bins of short excerpts."""
    read = ActivationsConfig(protocol="paper", window=window)
    return Settings(seed, ModelConfig(n_layer=n_layer), read, interpret or InterpretConfig())


def publish(store: Store, stage: str, making: Path, summary: dict) -> Artifact:
    recipe = {"stage": stage, "version": 1, "fingerprint": "0" * 32, "settings": {}, "inputs": {}}
    return store.publish(making, recipe, summary, {})


def tokens_artifact(store: Store, ids: np.ndarray) -> Artifact:
    making = store.making_folder("tokens")
    (making / "val").mkdir()
    writer = ShardWriter(making / "val" / "00000")
    writer.add(ids.astype(np.uint16), len(ids), "planted", "planted", 1)
    writer.close()
    facts = {"n_tokens": len(ids), "n_documents": 1, "n_bytes": len(ids), "domains": {"planted": {}}}
    return publish(store, "tokens", making, {"val": facts})


def planted_activations(ids: np.ndarray, n_neurons: int, rng: np.random.Generator) -> tuple[np.ndarray, list[dict]]:
    """(tokens, neurons) activations and, of each neuron, {token id: strength}. Strengths are 1..10."""
    vocabulary = np.unique(ids)
    fires = [
        dict(zip(rng.choice(vocabulary, 3, replace=False).tolist(), (10.0, 7.0, 4.0), strict=True))
        for _ in range(n_neurons)
    ]
    table = np.zeros((int(vocabulary.max()) + 1, n_neurons), np.float32)
    for neuron, strengths in enumerate(fires):
        for token, strength in strengths.items():
            table[token, neuron] = strength
    return table[ids], fires


def excerpt_rows(activations: np.ndarray, neuron: int, width: int, bins: int, rng: np.random.Generator) -> list[dict]:
    """Rows of `excerpts.parquet` of one neuron: 50 top, 50 random, 20 a quantile bin; `activations` (tokens,)."""
    places = np.arange(width, len(activations) - width)
    by_value = places[np.argsort(-activations[places], kind="stable")]
    edges = (np.arange(bins + 1) / (bins + 1) * len(places)).astype(int)
    ascending = by_value[::-1]
    apart = max(1, min(97, int((activations[places] > 0).sum()) // 50))  # they lie apart, and the neuron fires in each
    by_strength = by_value[: 50 * apart : apart]
    top = np.concatenate([by_strength[first::3] for first in range(3)])  # few ranks have all strengths
    groups = [("top", -1, top), ("random", -1, rng.choice(places, 50))]
    groups += [("quantile", b, rng.choice(ascending[edges[b] : edges[b + 1]], 20, replace=False)) for b in range(bins)]
    return [
        {
            "neuron": neuron,
            "width": width,
            "kind": kind,
            "bin": bin_,
            "rank": rank,
            "start": int(place) - width // 2,
            "center": width // 2,
            "activations": activations[place - width // 2 : place + width // 2],
        }
        for kind, bin_, chosen in groups
        for rank, place in enumerate(chosen)
    ]


def records_artifact(
    store: Store, layers: list[np.ndarray], widths: dict[int, int], rng: np.random.Generator
) -> Artifact:
    """Records of `layers`, each (tokens, neurons) activations."""
    making = store.making_folder("records")
    with RecordsWriter(making) as writer:
        for layer, activations in enumerate(layers):
            neurons = range(activations.shape[1])
            site = {"site": f"code-l{layer}", "layer": layer}
            writer.statistics(pa.Table.from_pylist([site | {"neuron": n} for n in neurons], schema=NEURON_SCHEMA))
            for width, bins in widths.items():
                rows = [site | row for n in neurons for row in excerpt_rows(activations[:, n], n, width, bins, rng)]
                writer.excerpts(pa.Table.from_pylist(rows, schema=EXCERPT_SCHEMA))
    return publish(store, "activations", making, {})


def planted(
    folder: Path,
    n_layers: int = 1,
    n_neurons: int = 8,
    n_tokens: int = 20_000,
    seed: int = 0,
    widths: dict[int, int] = WIDTHS,
    vocabulary: tuple[int, ...] = tuple(range(300, 364)),
):
    """(tokens artifact, records artifact, what fires: [layer][neuron] -> {token: strength})."""
    rng = np.random.default_rng(seed)
    store = Store(folder)
    ids = rng.choice(vocabulary, n_tokens)  # few different tokens, so that every neuron fires in most excerpts
    made = [planted_activations(ids, n_neurons, rng) for _ in range(n_layers)]
    records = records_artifact(store, [activations for activations, _ in made], widths, rng)
    return tokens_artifact(store, ids), records, [fires for _, fires in made]
