"""The tokens stage run on a few files, without a sweep around it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import zstandard

from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.store import Store
from pipeline.config import RuntimeConfig, TokensConfig
from pipeline.stage import Context
from pipeline.tokens.job import TokensJob
from pipeline.tokens.sources import list_sources
from pipeline.tokens.stage import STAGE, TokensSettings, run
from pipeline.tracking import TrackerSpec


def context(store: Store | Path, config: TokensConfig) -> Context:
    fingerprint = STAGE.fingerprint(TokensSettings(config), {})
    store = store if isinstance(store, Store) else Store(store)
    return Context(store, RuntimeConfig(), "lab", "tokens", fingerprint, TrackerSpec())


def job(store: Store | Path, config: TokensConfig) -> TokensJob:
    """The work of the stage, to be done piece by piece."""
    stage_context = context(store, config)
    return TokensJob(config, stage_context, tuple(list_sources(config, stage_context.scratch)))


def make(store: Store | Path, config: TokensConfig) -> Artifact:
    """Run the stage as the DAG does and publish its artifact in the store (or in one at that folder)."""
    settings, stage_context = TokensSettings(config), context(store, config)
    making = stage_context.store.making_folder(stage_context.fingerprint)
    summary = run(settings, {}, making, stage_context)
    return stage_context.store.publish(making, STAGE.recipe(settings, {}), summary, {})


def jsonl(**options: Any) -> TokensConfig:
    return TokensConfig(source="jsonl", **options)


def record(text: Any, domain: str = "Test") -> bytes:
    return json.dumps({"text": text, "meta": {"pile_set_name": domain}}).encode()


def write_lines(path: Path, lines: Iterable[bytes]) -> Path:
    """Write lines as JSON lines, compressed as the name says."""
    data = b"".join(line + b"\n" for line in lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(zstandard.compress(data) if path.suffix == ".zst" else data)
    return path


def contents(artifact: Artifact) -> dict[str, Any]:
    """All that must be equal in equal artifacts: every file's sha256, and the summary."""
    return {file.name: file.sha256 for file in artifact.manifest.files} | {"summary": artifact.summary}


def quarantine(artifact: Artifact) -> list[dict[str, Any]]:
    return [json.loads(line) for line in artifact.file("quarantine.jsonl").read_text("utf-8").splitlines()]
