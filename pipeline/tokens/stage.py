"""The tokens stage: text files to token shards, split, counted, with nothing lost on the way."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artifacts.store import Artifact
from pipeline.config import TokensConfig
from pipeline.errors import StageError
from pipeline.progress import Progress
from pipeline.stage import Context, Stage, Summary
from pipeline.tokens.shard import Facts, make_shard
from pipeline.tokens.sources import Source, list_sources

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class TokensSettings:
    tokens: TokensConfig


def run(settings: TokensSettings, inputs: Mapping[str, Artifact], out: Path, context: Context) -> Summary:
    """Tokenize every source into its shard, held-out ones first, then lay the shards out as the artifact."""
    config = settings.tokens
    sources = list_sources(config, context.scratch)
    shards = context.scratch / "shards"
    progress = context.progress(sum(source.bytes for source in sources), "bytes")
    done = 0
    facts: list[Facts] = []
    held_out: Path | None = None
    for source in sources:
        if source.split == "train" and held_out is None:
            held_out = _held_out(sources, shards)
        facts.append(make_shard(source, config, held_out, shards, partial(_report, progress, done)))
        done += source.bytes
    progress.update(done)
    _stop_if_too_bad(sources, facts, config.max_bad_fraction)
    _lay_out(sources, shards, out)
    if config.source == "packaged":
        shutil.copytree(context.scratch / "corpus", out / "corpus")
    return summarize(facts, out)


def _report(progress: Progress, done: int, position: int) -> None:
    progress.update(done + position)


def _held_out(sources: list[Source], shards: Path) -> Path:
    digests = [np.load(shards / source.name / "digests.npy") for source in sources if source.split in ("val", "test")]
    path = shards / "held_out.npy"
    np.save(path, np.unique(np.concatenate(digests)))
    return path


def _stop_if_too_bad(sources: list[Source], facts: list[Facts], max_bad_fraction: float) -> None:
    bad, documents = sum(f.quarantined for f in facts), sum(f.documents_in for f in facts)
    if bad <= max_bad_fraction * documents:
        return
    source, worst = max(zip(sources, facts, strict=True), key=lambda pair: pair[1].quarantined)
    kinds = ", ".join(f"{count} {kind}" for kind, count in worst.bad.items())
    raise StageError(
        f"{bad} of {documents} documents are unreadable; the worst file is {source.origin} ({kinds})",
        fix="Repair or leave out that file, or raise tokens.max_bad_fraction.",
        stage="tokens",
    )


def _lay_out(sources: list[Source], shards: Path, out: Path) -> None:
    """Name the finished shards' files as the artifact does, without copying where the disk can link."""
    with (out / "quarantine.jsonl").open("wb") as quarantine:
        for source in sources:
            quarantine.write((shards / source.name / "quarantine.jsonl").read_bytes())
            for split in SPLITS:
                for suffix in (".arrow", ".documents.parquet"):
                    made = shards / source.name / f"{split}{suffix}"
                    if made.is_file():
                        (out / split).mkdir(exist_ok=True)
                        _link(made, out / split / f"{source.number:05d}{suffix}")


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # some file systems have no hard links
        shutil.copyfile(source, target)


def summarize(facts: list[Facts], out: Path) -> Summary:
    """The artifact's facts: counts a split and domain, what was left out and why, the entropy of val's tokens."""
    splits = {split: _split_summary([f.splits[split] for f in facts if split in f.splits]) for split in SPLITS}
    for split in ("train", "val"):
        if not splits[split]["n_documents"]:
            raise StageError(f"no document is left for {split}", fix="Give more text, or another tokens.val_fraction.")
    return {split: counts for split, counts in splits.items() if counts["n_documents"]} | {
        "documents_in": sum(f.documents_in for f in facts),
        "duplicates": sum(f.duplicates for f in facts),
        "duplicates_dropped": sum(f.duplicates_dropped for f in facts),
        "bad": dict(sorted(sum((Counter(f.bad) for f in facts), Counter()).items())),
        "unigram_entropy": unigram_entropy(out / "val"),
    }


def _split_summary(parts: list[dict[str, dict[str, int]]]) -> dict[str, Any]:
    domains: dict[str, Counter[str]] = {}
    for part in parts:
        for domain, counts in part.items():
            domains.setdefault(domain, Counter()).update(counts)
    total = sum(domains.values(), Counter())
    names = ("n_tokens", "n_documents", "n_bytes")
    return {name: total[name] for name in names} | {"domains": {name: dict(domains[name]) for name in sorted(domains)}}


def unigram_entropy(folder: Path) -> float:
    """Nats a token of a split under its own token frequencies: what a model that knows only frequencies would score."""
    import pyarrow as pa

    counts = np.zeros(1 << 16, np.int64)
    for path in sorted(folder.glob("*.arrow")):
        for batch in pa.ipc.open_stream(pa.memory_map(str(path))):
            counts += np.bincount(batch.column(0).to_numpy(), minlength=len(counts))
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


STAGE = Stage(name="tokens", version=1, scope="sweep", reads=(), settings=TokensSettings, run=run)
