"""Small artifacts for the activations stage: text with many short documents, a small model with some sparse and dead neurons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from crate_model.config import ModelConfig
from crate_model.model import LanguageModel
from pipeline.activations.extract import Extractor
from pipeline.activations.finish import write_records
from pipeline.activations.job import plan_job
from pipeline.activations.stage import Settings
from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.checkpoint import write_model
from pipeline.artifacts.store import Store
from pipeline.artifacts.token_shards import ShardWriter
from pipeline.config import ActivationsConfig, RuntimeConfig
from pipeline.stage import Context
from pipeline.tracking import TrackerSpec

VOCABULARY = 97


def publish(store: Store, stage: str, making: Path, summary: dict, fingerprint: str = "") -> Artifact:
    recipe = {
        "stage": stage,
        "version": 1,
        "fingerprint": fingerprint or stage.ljust(32, "0"),
        "settings": {},
        "inputs": {},
    }
    return store.publish(making, recipe, summary, {})


def tokens_artifact(store: Store, n_tokens: int, seed: int = 0, vocabulary: int = VOCABULARY) -> Artifact:
    """Documents of 2 to about 200 tokens in two shards, not a whole number of rows."""
    rng = np.random.default_rng(seed)
    making = store.making_folder("tokens")
    (making / "val").mkdir()
    total = documents = 0
    for shard in range(2):
        writer = ShardWriter(making / "val" / f"{shard:05d}")
        while total < n_tokens * (shard + 1) // 2:
            length = int(rng.choice([2, 5, 11, 40, 90, 200]))
            ids = rng.integers(0, vocabulary, length).astype(np.uint16)
            ids[-1] = vocabulary - 1
            writer.add(ids, length, "domain", "file", documents)
            total, documents = total + length, documents + 1
        writer.close()
    facts = {"n_tokens": total, "n_documents": documents, "n_bytes": total, "domains": {"domain": {}}}
    return publish(store, "tokens", making, {"val": facts})


def model_artifact(
    store: Store, architecture: str = "crate", n_layer: int = 2, n_ctx: int = 32, spoil: bool = False
) -> Artifact:
    torch.manual_seed(1)
    config = ModelConfig(
        architecture=architecture, n_layer=n_layer, n_head=2, d_model=8, n_ctx=n_ctx, vocab_size=VOCABULARY
    )
    model = LanguageModel(config)
    with torch.no_grad():
        for block in model.blocks:
            if architecture == "crate":
                block.feedforward.dictionary[0] = 0.0  # a dead neuron
                block.feedforward.dictionary[1] *= 0.2  # a rare one
        if spoil:
            model.final_norm.weight[0] = torch.nan
    making = store.making_folder("pretrain")
    write_model(making, config, model.state_dict())
    return publish(store, "pretrain", making, {})


def settings(**changes: Any) -> Settings:
    defaults = {
        "tokens": 3000,
        "window": 16,
        "tokens_short": 1600,
        "window_short": 4,
        "top": 7,
        "random": 6,
        "per_quantile": 3,
        "quantile_tokens": 1024,
        "batch_rows": 4,
    }
    return Settings(3, ActivationsConfig(**defaults | changes))


def context(store: Store, workers: int = 1, fingerprint: str = "f" * 32) -> Context:
    runtime = RuntimeConfig(workers_per_cell=workers)
    return Context(
        store=store,
        runtime=runtime,
        run_name="run",
        step_name="cell/activations",
        fingerprint=fingerprint,
        tracker=TrackerSpec(),
    )


def extract(
    store: Store,
    asked: Settings,
    inputs: dict[str, Artifact],
    workers: int = 1,
    order: Any = None,
    fingerprint: str = "f" * 32,
) -> Artifact:
    """The artifact, made without Ray: `workers` extractors take the shards in the given order (of shard numbers)."""
    job = plan_job(asked, inputs, context(store, workers, fingerprint))
    extractors = [Extractor(job) for _ in range(workers)]
    for turn, shard in enumerate(order or range(len(job.shards))):
        extractors[turn % workers].read_shard(shard)
    making = store.making_folder(fingerprint)
    summary = write_records(job, job.corpus(), making)
    return publish(store, "activations", making, summary, fingerprint)


def all_activations(inputs: dict[str, Artifact], asked: Settings, store: Store) -> dict[str, np.ndarray]:
    """Every site's activations (tokens, neurons) over the rows that are read, batch by batch as the stage reads them."""
    job = plan_job(asked, inputs, context(store))
    extractor = Extractor(job)
    parts: dict[str, list[np.ndarray]] = {}
    for batch in range(extractor.corpus.n_batches):
        for site, values in extractor.reader.read(torch.from_numpy(extractor.corpus.ids(batch))):
            parts.setdefault(site.name, []).append(values.flatten(0, 1).float().numpy())
    return {name: np.concatenate(of_site) for name, of_site in parts.items()}
