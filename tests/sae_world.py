"""A small world for sparse autoencoders and steering: token shards, a model whose layers matter, records of its neurons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from training_world import make_tokens

from crate_model.checkpoint import save_checkpoint
from crate_model.config import ModelConfig
from crate_model.model import LanguageModel
from pipeline.artifacts import records
from pipeline.artifacts.activation_stream import forward_to
from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.saes import Site
from pipeline.artifacts.scores import write_scores
from pipeline.artifacts.store import Store
from pipeline.config import RuntimeConfig, SAEConfigSection
from pipeline.stage import Context
from pipeline.tracking import TrackerSpec

N_CTX = 32
SETTINGS = SAEConfigSection(
    expansions=(2,),
    total_tokens=40 * 64,
    batch_tokens=64,
    buffer_tokens=320,
    batch_rows=4,
    warmup_steps=5,
    learning_rate=3e-3,
    resample_steps=(15, 30),
    resample_window_steps=10,
    resample_rows=64,
    measure_tokens=640,
    loss_tokens=320,
)


def changed(settings: SAEConfigSection = SETTINGS, **values: Any) -> SAEConfigSection:
    return SAEConfigSection(**{**settings.model_dump(), **values})


def site(
    name: str = "code-l0-2x", layer: int = 0, variant: str = "relu", sparsity: float = 1e-3, expansion: int = 2
) -> Site:
    return Site(name, layer, "code", expansion, variant, sparsity)


def make_model(architecture: str = "crate", vocab_size: int = 512, n_layer: int = 2) -> LanguageModel:
    """A random model with large weights, so that its activations and what is done to them change the predictions."""
    torch.manual_seed(0)
    config = ModelConfig(
        architecture=architecture,  # type: ignore[arg-type]
        n_layer=n_layer,
        n_head=2,
        d_model=16,
        n_ctx=N_CTX,
        vocab_size=vocab_size,
    )
    model = LanguageModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and not name.endswith("dictionary"):
                parameter.mul_(10)
    return model


class World:
    """A store with tokens, a pretrained model and, for steering, records and scores of its neurons."""

    def __init__(self, root: Path, architecture: str = "crate", vocab_size: int = 512) -> None:
        self.store = Store(root)
        self.tokens = make_tokens(self.store, n_train=4000, n_val=1500)
        self.model = make_model(architecture, vocab_size)
        self.pretrain = self.publish("pretrain", "1" * 32, lambda folder: save_checkpoint(self.model, folder))

    def publish(self, stage: str, fingerprint: str, write: Any, summary: dict[str, Any] | None = None) -> Artifact:
        making = self.store.making_folder(fingerprint)
        written = write(making)
        recipe = {"stage": stage, "version": 1, "fingerprint": fingerprint, "settings": {}, "inputs": {}}
        return self.store.publish(making, recipe, summary or written or {}, {})

    def context(self, fingerprint: str = "a" * 32, stage: str = "sae", **runtime: Any) -> Context:
        settings = {"threads_per_worker": 1, "workers_per_cell": 1, "checkpoint_every_steps": 1000, **runtime}
        return Context(self.store, RuntimeConfig(**settings), "test", f"cell/{stage}", fingerprint, TrackerSpec())

    @property
    def inputs(self) -> dict[str, Artifact]:
        return {"tokens": self.tokens, "pretrain": self.pretrain}

    def publish_records(self) -> Artifact:
        """Statistics of every neuron over some random ids; no excerpts."""
        points = [f"blocks.{layer}.code" for layer in range(self.model.config.n_layer)]
        ids = torch.randint(self.model.config.vocab_size, (8, N_CTX), generator=torch.Generator().manual_seed(3))
        values = forward_to(self.model, ids, points)

        def write(folder: Path) -> None:
            with records.RecordsWriter(folder) as writer:
                for layer, point in enumerate(points):
                    writer.statistics(_statistics(layer, values[point].flatten(0, 1).numpy()))

        return self.publish("activations", "2" * 32, write)

    def publish_scores(self) -> Artifact:
        """Neurons 3 and 1 of each layer are the best understood."""

        def write(folder: Path) -> None:
            tables, rows = [], []
            for layer in range(self.model.config.n_layer):
                scores = {3: 0.9, 1: 0.5, 2: 0.1}
                columns = {"neuron": list(scores), "score": list(scores.values())}
                constant = {"site": f"code-l{layer}", "layer": layer, "metric": "top_and_random", "status": "scored"}
                columns |= {name: [value] * 3 for name, value in constant.items()}
                columns |= {
                    "n_explained": [5] * 3,
                    "n_excerpts": [5] * 3,
                    "n_tokens": [64] * 3,
                    "explanation": ["x"] * 3,
                }
                columns |= {name: [None] * 3 for name in ("null_other", "null_shuffled", "null_empty")}
                tables.append(_ordered(columns))
                counts = ("n_silent", "n_constant_prediction", "n_unparsed", "n_refused", "n_over_budget")
                rows.append(constant | {"mean": 0.5, "n_scored": 3, "n_neurons": 3} | dict.fromkeys(counts, 0))
            write_scores(folder, tables, rows)

        return self.publish("interpret", "3" * 32, write, {"judge": "test", "metrics": {}})


def _ordered(columns: dict[str, list[Any]]) -> pa.Table:
    from pipeline.artifacts.scores import NEURON_SCHEMA

    return pa.table({name: columns[name] for name in NEURON_SCHEMA.names})


def _statistics(layer: int, values: np.ndarray) -> pa.Table:
    n = values.shape[1]
    return pa.table(
        {
            "site": [f"code-l{layer}"] * n,
            "layer": np.full(n, layer),
            "neuron": np.arange(n),
            "mean": values.mean(0),
            "variance": values.var(0, ddof=1),
            "skewness": [None] * n,
            "kurtosis": [None] * n,
            "maximum": values.max(0),
            "fraction_nonzero": (values != 0).mean(0),
            "histogram": pa.array([[0] * len(records.histogram_edges())] * n, pa.list_(pa.int64())),
            "edges": [None] * n,
            "edges_short": [None] * n,
        },
        schema=records.NEURON_SCHEMA,
    )
