"""What tokenizing will take, before it is done: from the sources' sizes and this machine's speed on a sample of them."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.artifacts.artifact import Artifact
from pipeline.config import TokensConfig
from pipeline.errors import ResourceError
from pipeline.tokens.documents import SourceDocument
from pipeline.tokens.encode import encode_exactly, encode_fast, fast_encoder
from pipeline.tokens.sources import Source, list_sources, read

SAMPLE_BYTES = 8 << 20  # of text
BYTES_A_TOKEN = 2  # on the disk


@dataclass(frozen=True)
class Sample:
    """What was seen of the first documents of a source, read and encoded by one core."""

    n_documents: int
    n_bad: int
    n_bytes: int  # of UTF-8
    n_tokens: int
    source_bytes: int  # read for them, possibly compressed
    cpu_seconds: float

    @property
    def text_per_source_byte(self) -> float:
        return self.n_bytes / max(1, self.source_bytes)


def estimate(config: TokensConfig, cores: int, artifact: Artifact | None = None) -> dict[str, Any]:
    """What the tokens stage takes on `cores` cores, as plain JSON values, with `problem` empty when its sources are at hand.

    Where they are not, or nothing in their sample can be read, `config.expected_text_bytes` stands for their size and the
    packaged corpus is the sample; the former also where a Hugging Face dataset does not tell its size. Where the `artifact`
    is made already, its own counts are told, with the domains; nothing is then left to do.
    """
    if artifact is not None:
        splits = {split: artifact.summary[split] for split in ("train", "val", "test") if split in artifact.summary}
        return {"problem": "", "hours": 0.0, "stored_bytes": artifact.manifest.total_bytes, "splits": splits}
    with tempfile.TemporaryDirectory() as scratch:
        sources, problem = _sources_or_problem(config, Path(scratch))
        sample = take_sample(config, sources[-1]) if sources else None
        if sample and not sample.n_tokens:
            problem = f"nothing at the beginning of {sources[-1].origin} can be read"
        if problem or not sample:
            packaged = TokensConfig()
            sample = take_sample(packaged, list_sources(packaged, Path(scratch))[-1])
    source_bytes = sum(source.bytes for source in sources)
    if not problem and not source_bytes:
        problem = f"{sources[-1].origin} does not tell its size"
    text_bytes = config.expected_text_bytes if problem else source_bytes * sample.text_per_source_byte
    tokens = text_bytes / max(1, sample.n_bytes) * sample.n_tokens
    rate = sample.n_tokens / sample.cpu_seconds
    largest_share = max(source.bytes for source in sources) / max(1, source_bytes) if sources else 0.0
    return {
        "problem": problem,
        "files": len(sources),
        "source_bytes": source_bytes,
        "text_bytes": round(text_bytes),
        "tokens": round(tokens),
        "stored_bytes": round(BYTES_A_TOKEN * tokens),
        "tokens_per_second_and_core": rate,
        "cores": cores,
        "hours": tokens * max(1 / cores, largest_share) / rate / 3600,  # a source is read by one core
        "sample": {"documents": sample.n_documents, "bad": sample.n_bad, "text_bytes": sample.n_bytes},
    }


def _sources_or_problem(config: TokensConfig, scratch: Path) -> tuple[list[Source], str]:
    try:
        return list_sources(config, scratch), ""
    except ResourceError as error:
        return [], error.what


def take_sample(config: TokensConfig, source: Source) -> Sample:
    """Read and encode the first documents of a source, in this process."""
    encode = encode_fast if fast_encoder() else encode_exactly
    encode(["load what is loaded once"])
    texts: list[str] = []
    seen = {"position": 0, "documents": 0, "bytes": 0}
    started = time.process_time()  # of all threads: what one core would take
    for document in read(source, config, lambda position: seen.update(position=position)):
        seen["documents"] += 1
        if isinstance(document, SourceDocument):
            texts.append(document.text)
            seen["bytes"] += len(document.utf8)
        if max(seen["bytes"], seen["position"]) >= SAMPLE_BYTES:
            break
    n_tokens = sum(len(ids) for ids in encode(texts))
    seconds = max(1e-3, time.process_time() - started)
    n_bad, source_bytes = seen["documents"] - len(texts), seen["position"] or source.bytes
    return Sample(seen["documents"], n_bad, seen["bytes"], n_tokens, source_bytes, seconds)
