"""What bench_activations reads: random ids, a model with untrained weights; and the stage's arguments."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from verdicts import ROOT

sys.path.insert(0, str(ROOT))
VOCABULARY, N_CTX = 50_257, 1024


def world(folder: Path, n_tokens: int, n_layer: int = 3) -> tuple[dict[str, Any], Any]:
    """Artifacts `tokens` (a val split of `n_tokens`) and `pretrain`, made where they are not there, and their store."""
    from pipeline.artifacts.store import Store

    store = Store(folder / f"store-{n_tokens}-{n_layer}")
    found = {stage: store.find(stage, stage.ljust(32, "0")) for stage in ("tokens", "pretrain")}
    if not found["pretrain"]:
        found = {"tokens": make_tokens(store, n_tokens), "pretrain": make_model(store, n_layer)}
    return found, store


def make_tokens(store: Any, n_tokens: int) -> Any:
    import numpy as np

    from pipeline.artifacts.token_shards import ShardWriter
    from tests.unit.activation_cases import publish

    rng = np.random.default_rng(0)
    frequencies = 1 / (np.arange(VOCABULARY - 1) + 2.7)  # Zipf's law, with Mandelbrot's shift
    making = store.making_folder("tokens")
    (making / "val").mkdir()
    writer = ShardWriter(making / "val" / "00000")
    total = documents = 0
    while total < n_tokens:
        length = int(rng.lognormal(6.5, 1.0)) + 2
        ids = rng.choice(VOCABULARY - 1, length, p=frequencies / frequencies.sum()).astype(np.uint16)
        ids[-1] = VOCABULARY - 1
        writer.add(ids, length, "random", "random", documents)
        total, documents = total + length, documents + 1
    writer.close()
    facts = {"n_tokens": total, "n_documents": documents, "n_bytes": total, "domains": {"random": {}}}
    return publish(store, "tokens", making, {"val": facts})


def make_model(store: Any, n_layer: int) -> Any:
    import torch

    from crate_model.config import ModelConfig
    from crate_model.model import LanguageModel
    from pipeline.artifacts.checkpoint import write_model
    from tests.unit.activation_cases import publish

    torch.manual_seed(0)
    config = ModelConfig(n_layer=n_layer, n_head=4, d_model=128, n_ctx=N_CTX)
    making = store.making_folder("pretrain")
    write_model(making, config, LanguageModel(config).state_dict())
    return publish(store, "pretrain", making, {})


def stage_arguments(
    folder: Path, n_tokens: int, workers: int, n_layer: int = 3, precision: str = "fp32"
) -> tuple[Any, ...]:
    """Settings, inputs and context of the stage, its scratch folder empty."""
    import shutil

    from pipeline.activations.stage import Settings
    from pipeline.config import ActivationsConfig, RuntimeConfig
    from pipeline.stage import Context
    from pipeline.tracking import TrackerSpec

    inputs, store = world(folder, n_tokens, n_layer)
    shutil.rmtree(store.root / ".scratch", ignore_errors=True)
    asked = ActivationsConfig(tokens=n_tokens, tokens_short=short_tokens(n_tokens), precision=precision)
    context = Context(
        store=store,
        runtime=RuntimeConfig(workers_per_cell=workers),
        run_name="bench",
        step_name="bench/activations",
        fingerprint="b" * 32,
        tracker=TrackerSpec(),
    )
    return Settings(0, asked), inputs, context


def short_tokens(n_tokens: int) -> int:
    """Tokens read for the short excerpts: a tenth, as in the published protocol, but rows enough for all excerpts."""
    return max(n_tokens // 10, 100 * N_CTX)
