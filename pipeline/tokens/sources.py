"""Where documents come from: one function a kind of source, all yielding the same record with its origin."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import TokensConfig
from pipeline.tokens.documents import Bad, SourceDocument
from pipeline.tokens.files import ByteStream, find
from pipeline.tokens.jsonl import read_jsonl
from pipeline.tokens.packaged import write_corpus

Records = Iterator[SourceDocument | Bad]


@dataclass(frozen=True)
class Source:
    """What becomes one shard: usually a file."""

    number: int  # within its list, which is the shard's number in the artifact
    split: str  # "train", "val", "test", or "hashed": each document goes to train or val by the hash of its text
    path: str
    origin: str  # how document tables name it
    bytes: int  # on disk, possibly compressed
    modified: str  # with path and bytes: whether a finished shard still belongs to this file

    @property
    def name(self) -> str:
        identity = hashlib.sha256(f"{self.path}|{self.bytes}|{self.modified}".encode()).hexdigest()[:12]
        return f"{self.split}-{self.number:05d}-{identity}"


def list_sources(config: TokensConfig, scratch: Path) -> list[Source]:
    """All sources, held-out ones first. `scratch` is where the packaged corpus is written. Raises ResourceError."""
    if config.source == "packaged":
        return [
            Source(number, "hashed", str(path), f"corpus/{path.name}", path.stat().st_size, "")
            for number, path in enumerate(write_corpus(scratch / "corpus"))
        ]
    given = {"val": config.val, "test": config.test, "train" if config.val else "hashed": config.train}
    return [source for split, patterns in given.items() for source in _matching(patterns, split)]


def _matching(patterns: tuple[str, ...], split: str) -> list[Source]:
    found = {file.path: file for pattern in patterns for file in find(pattern)}  # a file named twice is read once
    return [Source(i, split, file.path, file.path, file.bytes, file.modified) for i, file in enumerate(found.values())]


def read(source: Source, config: TokensConfig, report: Callable[[int], None]) -> Records:
    """The documents of one source; `report` is told how many bytes of it were read."""
    return READERS[config.source](source, config, report)


def _jsonl(source: Source, config: TokensConfig, report: Callable[[int], None]) -> Records:
    stream = ByteStream(source.path)
    for document in read_jsonl(
        stream, source.origin, config.text_field, config.domain_field, config.max_document_bytes
    ):
        report(stream.position)
        yield document


READERS: dict[str, Callable[[Source, TokensConfig, Callable[[int], None]], Records]] = {
    "packaged": _jsonl,
    "jsonl": _jsonl,
}
