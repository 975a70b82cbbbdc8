"""Made-up sweeps for the report: artifacts of every kind, published through the store by their own writers.

The numbers follow simple laws (loss a power of size, scores falling with depth, sparse activations with a favourite token a
neuron), so that a test knows what a report must say. Nothing here is a result.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.records import (
    EXCERPT_SCHEMA,
    NEURONS_A_ROW_GROUP,
    RecordsWriter,
)
from pipeline.artifacts.store import Store
from pipeline.config import Config
from pipeline.interpret.basis import Part
from pipeline.report.cells import Cell
from pipeline.report.stage import Outcome, ReportSettings
from pipeline.stage import canonical
from tests.synthetic_artifacts import (
    WIDTH,
    all_that_is_asked,
    final_loss,
    hash_of,
    sites_of,
    statistics_table,
    write_evaluate,
    write_interpret,
    write_pretrain,
    write_sae,
    write_steer,
    write_tokens,
)


@dataclass
class SyntheticSweep:
    """Makes artifacts in `store`; `inputs` and `settings` are what the report stage is given."""

    store: Store
    name: str = "synthetic"
    d_model: int = 128
    n_head: int = 4
    top: int = 5
    random: int = 3
    total_tokens: int = 65_536
    sae: bool = False
    metric_suffix: str = ""
    had: Callable[[Part], int] = all_that_is_asked  # excerpts of a kind that every neuron has
    hostile: str = ""  # put wherever models and people write texts
    inputs: dict[str, Artifact] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.inputs["tokens"] = self.publish("tokens", "tokens", write_tokens)
        self.val_tokens = self.inputs["tokens"].summary["val"]["n_tokens"]

    @property
    def settings(self) -> ReportSettings:
        return ReportSettings(self.name, Config().report, tuple(self.outcomes))

    def publish(self, stage: str, key: str, write: Callable[[Path], dict[str, Any]]) -> Artifact:
        fingerprint = f"{abs(hash_of(self.name + stage + key)):032x}"[:32]
        if found := self.store.find(stage, fingerprint):
            return found
        making = self.store.making_folder(fingerprint)
        summary = write(making)
        recipe = {"stage": stage, "version": 1, "fingerprint": fingerprint, "settings": {}, "inputs": {}}
        provenance = {"host": "laptop", "git": "0" * 40, "started": 1_760_000_000.0, "seconds": 12.5}
        return self.store.publish(making, recipe, summary, provenance)

    def add(
        self,
        architecture: str,
        n_layer: int,
        seed: int = 0,
        missing: Mapping[str, str] | None = None,
        text: str = "tokens",
        loss: float | None = None,
        **changed: Any,
    ) -> str:
        """A cell with all its artifacts, but for the `missing` ones. `changed` are dotted keys with `__` for the dot.

        `text` names the step in `inputs` that made what it reads. `loss` is planted; without one it follows its law. As in a
        real store, cells whose settings up to a stage are equal share that stage's artifact.
        """
        shape = {
            "architecture": architecture,
            "n_layer": n_layer,
            "d_model": self.d_model,
            "n_head": self.n_head,
            "n_ctx": 256,
        }
        pretrain = {"total_tokens": self.total_tokens, "batch_tokens": 1024}
        tree: dict[str, Any] = {"seed": seed, "model": shape, "pretrain": pretrain}
        tree["sae"] = {"expansions": [1]} if self.sae else {}
        for key, value in changed.items():
            section, _, name = key.partition("__")
            tree |= {section: tree.get(section, {}) | {name: value}} if name else {key: value}
        config = Config(**tree)
        cell = f"{architecture}-{n_layer}l" + "".join(f"-{k.rpartition('__')[2]}{v}" for k, v in changed.items())
        cell += f"-seed{seed}" if seed else ""
        settings = {k: v for k, v in canonical(config).items() if k not in ("runtime", "grid", "report", "name")}
        missing = dict(missing or {})
        self.outcomes.append(Outcome(cell, settings, missing, text))
        rng = np.random.default_rng(hash_of(cell) % 2**32)
        identity = Cell(cell, settings, {}, {}, text).made_of
        for stage, write in self._writers(config, rng, loss).items():
            if stage not in missing:
                self.inputs[f"{cell}/{stage}"] = self.publish(stage, f"{text} {identity(stage)}", write)
        return cell

    def share(self, cell: str, other: str, stages: tuple[str, ...]) -> None:
        """Give `other` the same artifacts as `cell`: large sweeps at the price of one cell."""
        for stage in stages:
            self.inputs[f"{other}/{stage}"] = self.inputs[f"{cell}/{stage}"]

    def _writers(
        self, config: Config, rng: np.random.Generator, planted: float | None
    ) -> dict[str, Callable[[Path], dict[str, Any]]]:
        model, tokens = config.model, config.pretrain.total_tokens
        sites = sites_of(model, config.activations.layers)
        drawn = final_loss(model) + 0.002 * rng.standard_normal()
        loss = drawn if planted is None else planted
        writers: dict[str, Callable[[Path], dict[str, Any]]] = {
            "pretrain": lambda folder: write_pretrain(folder, model, loss, tokens, rng),
            "evaluate": lambda folder: write_evaluate(folder, loss, model, self.hostile),
            "activations": lambda folder: self.write_records(folder, sites, rng),
            "interpret": lambda folder: write_interpret(folder, sites, model, rng, self.metric_suffix, self.had),
            "steer": lambda folder: write_steer(folder, self.hostile),
        }
        if self.sae:
            features = [("code-l0-1x", 0, model.d_code)]
            writers["sae"] = lambda folder: write_sae(folder)
            writers["features"] = lambda folder: self.write_records(folder, features, rng)
            writers["interpret_features"] = lambda folder: write_interpret(folder, features, model, rng)
        return writers

    def write_records(
        self, folder: Path, sites: list[tuple[str, int, int]], rng: np.random.Generator
    ) -> dict[str, Any]:
        with RecordsWriter(folder) as writer:
            for site, layer, n_neurons in sites:
                writer.statistics(statistics_table(site, layer, n_neurons, rng))
                for first in range(0, n_neurons, NEURONS_A_ROW_GROUP):
                    neurons = np.arange(first, min(first + NEURONS_A_ROW_GROUP, n_neurons))
                    writer.excerpts(self._excerpts(site, layer, neurons, rng))
        return {"tokens": self.val_tokens, "sites": {site: {"sparsity": 0.1, "dead": 0.0} for site, _, _ in sites}}

    def _excerpts(self, site: str, layer: int, neurons: np.ndarray, rng: np.random.Generator) -> pa.Table:
        each = self.top + self.random
        n = len(neurons) * each
        activations = np.maximum(rng.standard_normal((n, WIDTH), np.float32) - 1.2, 0)
        strength = np.tile([*np.linspace(8, 4, self.top), *[1.0] * self.random], len(neurons)).astype(np.float32)
        activations[:, WIDTH // 2] = strength
        columns = {
            "site": [site] * n,
            "layer": np.full(n, layer),
            "neuron": np.repeat(neurons, each),
            "width": np.full(n, WIDTH),
            "kind": (["top"] * self.top + ["random"] * self.random) * len(neurons),
            "bin": np.full(n, -1),
            "rank": np.tile([*range(self.top), *range(self.random)], len(neurons)),
            "start": rng.integers(0, self.val_tokens - WIDTH, n),
            "center": np.full(n, WIDTH // 2),
            "activations": pa.ListArray.from_arrays(
                np.arange(0, n * WIDTH + 1, WIDTH, dtype=np.int32), activations.reshape(-1)
            ),
        }
        return pa.table(columns).cast(EXCERPT_SCHEMA)


def fresh_store(folder: Path) -> Store:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return Store(folder)
