"""A small world to train in: learnable tokens over a small vocabulary, a tiny model, and a job made of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from crate_model.config import ModelConfig
from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.store import Store
from pipeline.artifacts.token_shards import ShardWriter
from pipeline.config import PretrainConfig, RuntimeConfig, TokensConfig
from pipeline.pretrain.job import PretrainSettings, TrainingJob
from pipeline.stage import Context, canonical
from pipeline.tracking import TrackerSpec

VOCAB, N_CTX = 512, 32
MODEL = ModelConfig(n_layer=2, n_head=2, d_model=32, n_ctx=N_CTX, vocab_size=VOCAB)
RECIPE = PretrainConfig(
    total_tokens=40 * 8 * N_CTX,
    batch_tokens=8 * N_CTX,
    learning_rate=3e-3,
    min_learning_rate=3e-4,
    warmup_steps=4,
    precision="fp32",
    eval_every_steps=20,
    eval_tokens=16 * N_CTX,
)
RUNTIME = RuntimeConfig(workers_per_cell=1, threads_per_worker=1, checkpoint_every_steps=7, log_every_steps=5)


def make_tokens(store: Store, n_train: int = 20_000, n_val: int = 3_000) -> Artifact:
    """A tokens artifact in two domains: after token t come only a few others, so there is something to learn."""
    making = store.making_folder("tokens")
    summary: dict[str, Any] = {"unigram_entropy": 6.0}
    for split, seed, n_tokens in (("train", 1, n_train), ("val", 2, n_val)):
        rng = np.random.default_rng(seed)
        writer = ShardWriter(making / split / "00000")
        domains: dict[str, dict[str, int]] = {}
        while writer.n_tokens < n_tokens:
            domain = ("prose", "code")[int(rng.integers(2))]
            ids = [int(rng.integers(VOCAB))]
            for _ in range(int(rng.integers(20, 200))):
                ids.append((ids[-1] * 5 + int(rng.integers(4)) + 7 * (domain == "code")) % VOCAB)
            writer.add(np.array(ids, np.uint16), 3 * len(ids), domain, "made", 1)
            facts = domains.setdefault(domain, {"n_tokens": 0})
            facts["n_tokens"] += len(ids)
        writer.close()
        summary[split] = {
            "n_tokens": writer.n_tokens,
            "n_documents": 1,
            "n_bytes": 3 * writer.n_tokens,
            "domains": domains,
        }
    recipe = {
        "stage": "tokens",
        "version": 1,
        "fingerprint": "7" * 32,
        "settings": {"tokens": canonical(TokensConfig())},
        "inputs": {},
    }
    return store.publish(making, recipe, summary, {})


def make_job(
    root: Path,
    tokens: Artifact,
    name: str = "job",
    model: ModelConfig = MODEL,
    recipe: PretrainConfig = RECIPE,
    runtime: RuntimeConfig = RUNTIME,
    **changes: Any,
) -> TrainingJob:
    """A job with a scratch and an output folder of its own under `root`; `changes` replace fields of the recipe."""
    out = root / name
    out.mkdir(parents=True, exist_ok=True)
    recipe = PretrainConfig(**{**recipe.model_dump(), **changes})
    context = Context(Store(root / "store"), runtime, "test", f"{name}/pretrain", name, TrackerSpec())
    return TrainingJob(PretrainSettings(0, model, recipe), tokens, out, context)


def with_runtime(job: TrainingJob, **changes: Any) -> TrainingJob:
    runtime = RuntimeConfig(**{**job.context.runtime.model_dump(), **changes})
    return replace(job, context=replace(job.context, runtime=runtime))
