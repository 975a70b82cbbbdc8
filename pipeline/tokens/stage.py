"""The tokens stage: text files to token shards, split, counted, with nothing lost on the way."""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artifacts.artifact import Artifact
from pipeline.config import TokensConfig
from pipeline.errors import StageError
from pipeline.stage import Context, Stage, Summary
from pipeline.tokens.documents import Bad
from pipeline.tokens.job import JobProgress, TokensJob, make_here
from pipeline.tokens.on_ray import make_shards
from pipeline.tokens.packaged import corpus_digest
from pipeline.tokens.shard import Facts
from pipeline.tokens.sources import Source, list_sources, read

SPLITS = ("train", "val", "test")
LARGE_BYTES = 32 << 20  # on disk; less than this is tokenized sooner than Ray Data starts
LOOK_AHEAD = 1000  # documents read before the work begins
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokensSettings:
    tokens: TokensConfig


def run(settings: TokensSettings, inputs: Mapping[str, Artifact], out: Path, context: Context) -> Summary:
    """Tokenize every source into its shard, held-out ones first, then lay the shards out as the artifact."""
    job = TokensJob(settings.tokens, context, tuple(list_sources(settings.tokens, context.scratch)))
    job.clear_leftovers()
    progress = JobProgress(job)
    held_out, others = job.phases()
    _stop_if_hopeless(job, others[0])
    make = make_shards if job.total_bytes >= LARGE_BYTES else make_here
    if held_out:
        make(job, held_out, progress)
        job.gather_digests()
    make(job, others, progress)
    facts = [job.facts(source) for source in job.sources]
    _tell_mismatches(job, facts, progress)
    _tell_damaged(job, facts, progress)
    _stop_if_too_bad(job, facts)
    _lay_out(job, out)
    return summarize(facts, out)


def _stop_if_hopeless(job: TokensJob, source: Source) -> None:
    """Do not find out at the end, days later, that tokens.text_field is wrong."""
    first = list(islice(read(source, job.config, lambda position: None), LOOK_AHEAD))
    bad = Counter(document.kind for document in first if isinstance(document, Bad))
    if job.config.max_bad_fraction < 1 and len(first) == LOOK_AHEAD == bad.total():
        kinds = ", ".join(f"{count} {kind}" for kind, count in bad.items())
        raise StageError(
            f"none of the first {LOOK_AHEAD} documents of {source.origin} can be read ({kinds})",
            fix="Check tokens.source and tokens.text_field, or leave out that file.",
            stage="tokens",
        )


def _tell_mismatches(job: TokensJob, facts: list[Facts], progress: JobProgress) -> None:
    files = [source.origin for source, fact in zip(job.sources, facts, strict=True) if fact.mismatched]
    if files:
        logger.warning("fastokens differed from tiktoken in %d shards, made by tiktoken alone: %s", len(files), files)
        progress.tell(shards_by_tiktoken_alone=len(files))


def _tell_damaged(job: TokensJob, facts: list[Facts], progress: JobProgress) -> None:
    """However much of a file is lost, it is one entry in quarantine: too few to stop, so it is said aloud."""
    files = [source.origin for source, fact in zip(job.sources, facts, strict=True) if "damaged_file" in fact.bad]
    if files:
        logger.warning("of %d sources only a part could be read: %s", len(files), files)
        progress.tell(partly_read_sources=len(files))


def _stop_if_too_bad(job: TokensJob, facts: list[Facts]) -> None:
    bad, documents = sum(f.quarantined for f in facts), sum(f.documents_in for f in facts)
    if bad <= job.config.max_bad_fraction * documents:
        return
    source, worst = max(zip(job.sources, facts, strict=True), key=lambda pair: pair[1].quarantined)
    kinds = ", ".join(f"{count} {kind}" for kind, count in worst.bad.items())
    raise StageError(
        f"{bad} of {documents} documents are unreadable; the worst file is {source.origin} ({kinds})",
        fix=f"See {job.shards / source.name / 'quarantine.jsonl'}; repair the file, leave it out, or raise "
        "tokens.max_bad_fraction.",
        stage="tokens",
    )


def _lay_out(job: TokensJob, out: Path) -> None:
    """Name the finished shards' files as the artifact does, without copying where the disk can link."""
    with (out / "quarantine.jsonl").open("wb") as quarantine:
        for source in job.sources:
            shard = job.shards / source.name
            quarantine.write((shard / "quarantine.jsonl").read_bytes())
            for path in sorted([*shard.glob("*.arrow"), *shard.glob("*.documents.parquet")]):
                split, _, suffix = path.name.partition(".")
                (out / split).mkdir(exist_ok=True)
                _link(path, out / split / f"{source.number:05d}.{suffix}")
    if job.config.source == "packaged":
        shutil.copytree(job.context.scratch / "corpus", out / "corpus")


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


def outside(settings: TokensSettings) -> dict[str, str]:
    """The packaged corpus depends on the Python and the packages that are installed."""
    return {"packaged corpus": corpus_digest()} if settings.tokens.source == "packaged" else {}


STAGE = Stage(name="tokens", version=3, scope="sweep", reads=(), settings=TokensSettings, run=run, outside=outside)
