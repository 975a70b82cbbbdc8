"""What stages read: tokens of real text for whole trainings, made-up ones where only speed is asked."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from crate_model.config import ModelConfig
from gpu.models import ours
from gpu.session import Evidence
from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.checkpoint import write_model
from pipeline.artifacts.store import Store
from pipeline.artifacts.token_shards import ShardWriter
from pipeline.config import Config, RuntimeConfig, TokensConfig
from pipeline.errors import CrateError
from pipeline.stage import Context, canonical
from pipeline.tracking import TrackerSpec

VOCABULARY = 50_257
MADE_UP = "e" * 32


def read_text(evidence: Evidence) -> None:
    """The stage `tokens`: makes `text_store` while others run."""
    evidence.attempt("tokens", text_store)


def text_store(evidence: Evidence) -> tuple[Path, dict[str, Any]]:
    """A store with the tokens of real text, and the section of a configuration that names them; made when first asked for.

    What was brought along (`--store`); else the packaged text, by the pipeline's own stage, which needs no Ray for so little;
    else, where what carries that text is not installed, made-up tokens under its name, which is told.
    """
    folder, config = evidence.work / "text", TokensConfig()
    if not (folder / "tokens").is_dir():
        how = _make_text(evidence, folder, config)
        [tokens] = Store(folder).all_of("tokens")
        evidence.row("text", how=how, n_tokens=tokens.summary["train"]["n_tokens"])
    return folder, canonical(config)


def _make_text(evidence: Evidence, folder: Path, config: TokensConfig) -> str:
    if evidence.session.store:
        shutil.copytree(evidence.session.store, folder)
        return f"brought along in {evidence.session.store}"
    making = folder.with_name("text-making")  # the finished store appears at once, under its name
    shutil.rmtree(making, ignore_errors=True)
    try:
        tokenize(Store(making), config)
        how = "the packaged text, by the tokens stage"
    except (ImportError, CrateError) as error:
        shutil.rmtree(making, ignore_errors=True)
        made_up_tokens(Store(making), evidence.pick(8_000_000, 40_000), evidence.pick(400_000, 4_000), config)
        how = f"made up, since the tokens stage cannot run here: {error}"
    making.replace(folder)
    return how


def tokenize(store: Store, config: TokensConfig) -> Artifact:
    """Run the pipeline's own stage in this process and publish what it makes."""
    from pipeline.this_machine import provenance
    from pipeline.tokens.stage import STAGE

    settings = STAGE.settings_of(Config(tokens=config))
    recipe = STAGE.recipe(settings, {})
    context = Context(store, RuntimeConfig(), "evidence", "tokens", recipe["fingerprint"], TrackerSpec())
    making = store.making_folder(recipe["fingerprint"])
    summary = STAGE.run(settings, {}, making, context)
    return store.publish(making, recipe, summary, provenance())


def made_up(evidence: Evidence) -> tuple[Store, Artifact]:
    """A store with made-up tokens in both splits, for what asks only how fast; made once a run."""
    store = Store(evidence.work / "made-up")
    found = store.find("tokens", MADE_UP)
    n_train, n_val, n_words = evidence.pick((4_000_000, 1_000_000, VOCABULARY), (40_000, 20_000, 512))
    return store, found or made_up_tokens(store, n_train, n_val, TokensConfig(), n_words)


def made_up_tokens(store: Store, n_train: int, n_val: int, config: TokensConfig, n_words: int = VOCABULARY) -> Artifact:
    """Tokens with Zipf's frequencies, every second of which follows from the one before it: something to learn."""
    making = store.making_folder("tokens")
    summary: dict[str, Any] = {"unigram_entropy": 7.0}
    last = n_words - 1  # ends a text
    for seed, (split, n_tokens) in enumerate((("train", n_train), ("val", n_val))):
        rng = np.random.default_rng(seed)
        ids = (float(last) ** rng.random(n_tokens)).astype(np.uint16) - 1  # density 1 / rank
        before = ids[: n_tokens // 2 * 2 : 2]
        ids[1::2] = (before.astype(np.int64) * 7 + 3) % last
        ends = np.cumsum(rng.integers(50, 1000, n_tokens // 50 + 1))
        documents = np.split(ids, ends[ends < n_tokens])
        writer = ShardWriter(making / split / "00000")
        for number, document in enumerate(documents):
            document[-1] = last
            writer.add(document, 4 * len(document), "made-up", "made-up", number)
        writer.close()
        facts = {"n_tokens": n_tokens, "n_documents": len(documents), "n_bytes": 4 * n_tokens}
        summary[split] = facts | {"domains": {"made-up": facts}}
    return _publish(store, "tokens", making, MADE_UP, {"tokens": canonical(config)}, summary)


def untrained(store: Store, config: ModelConfig) -> Artifact:
    """A pretrain artifact with a model as it was initialised; made once a run."""
    fingerprint = hashlib.sha256(repr(config).encode()).hexdigest()[:32]
    if found := store.find("pretrain", fingerprint):
        return found
    making = store.making_folder(fingerprint)
    write_model(making, config, ours(config, "cpu").state_dict())
    return _publish(store, "pretrain", making, fingerprint, {}, {})


def _publish(
    store: Store, stage: str, making: Path, fingerprint: str, settings: dict[str, Any], summary: dict[str, Any]
) -> Artifact:
    recipe = {"stage": stage, "version": 1, "fingerprint": fingerprint, "settings": settings, "inputs": {}}
    return store.publish(making, recipe, summary, {})
