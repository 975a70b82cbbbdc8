"""Where documents come from: one function a kind of source, all yielding the same record with its origin."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.config import TokensConfig
from pipeline.tokens.documents import Bad, SourceDocument
from pipeline.tokens.files import Found, find
from pipeline.tokens.hugging_face import list_hugging_face, read_hugging_face
from pipeline.tokens.jsonl import read_jsonl
from pipeline.tokens.packaged import write_corpus
from pipeline.tokens.parquet import read_parquet
from pipeline.tokens.plain_text import read_plain_text

HELD_OUT = ("val", "test")
TEXT_SHARD_BYTES = 256 << 20  # plain text files are gathered into shards of about this size
Records = Iterator[SourceDocument | Bad]
Report = Callable[[int], None]  # told how many bytes of a source were read so far


@dataclass(frozen=True)
class Source:
    """What becomes one shard: a file, some small text files, or a part of a Hugging Face dataset."""

    number: int  # within its split, which is the shard's number in the artifact
    split: str  # "train", "val", "test", or "hashed": each document goes to train or val by the hash of its text
    files: tuple[Found, ...]
    part: int = 0  # of a Hugging Face dataset
    held_out: str = ""  # which files copies are looked for in: other ones make another shard

    @property
    def bytes(self) -> int:
        """On disk, possibly compressed; 0 where it is not known."""
        return sum(file.bytes for file in self.files)

    @property
    def origin(self) -> str:
        return self.files[0].origin

    @property
    def name(self) -> str:
        """A finished shard is found again under this name as long as its files are the same."""
        identity = "|".join(f"{file.path}|{file.bytes}|{file.modified}" for file in self.files) + f"|{self.part}"
        identity += f"|{self.held_out}" if self.held_out else ""
        return f"{self.split}-{self.number:05d}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"


def list_sources(config: TokensConfig, scratch: Path) -> list[Source]:
    """All sources, held-out ones first. `scratch` is where the packaged corpus is written. Raises ResourceError."""
    if config.source == "packaged":
        corpus = write_corpus(scratch / "corpus")
        files = [Found(str(path), f"corpus/{path.name}", path.stat().st_size, "") for path in corpus]
        return [Source(number, "hashed", (file,)) for number, file in enumerate(files)]
    given = {"val": config.val, "test": config.test, "train" if config.val else "hashed": config.train}
    sources = [source for split, patterns in given.items() for source in _listed(config.source, patterns, split)]
    names = "|".join(source.name for source in sources if source.split in HELD_OUT)
    held_out = hashlib.sha256(names.encode()).hexdigest()[:12] if names else ""
    return [source if source.split in HELD_OUT else replace(source, held_out=held_out) for source in sources]


def _listed(kind: str, patterns: tuple[str, ...], split: str) -> list[Source]:
    if kind == "huggingface":
        parts = [part for name in patterns for part in list_hugging_face(name, split)]
        return [Source(number, split, (file,), part) for number, (file, part) in enumerate(parts)]
    found = {file.path: file for pattern in patterns for file in find(pattern)}  # a file named twice is read once
    shards = _gathered(list(found.values())) if kind == "text" else [(file,) for file in found.values()]
    return [Source(number, split, files) for number, files in enumerate(shards)]


def _gathered(files: list[Found]) -> list[tuple[Found, ...]]:
    shards: list[list[Found]] = []
    size = TEXT_SHARD_BYTES
    for file in files:
        if size >= TEXT_SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(file)
        size += file.bytes
    return [tuple(shard) for shard in shards]


def read(source: Source, config: TokensConfig, report: Report) -> Records:
    """The documents of one source; `report` is told how far it is read. Raises ResourceError when it cannot be."""
    match config.source:
        case "packaged" | "jsonl":
            return read_jsonl(source.files[0], config, report)
        case "parquet":
            return read_parquet(source.files[0], config, report)
        case "text":
            return read_plain_text(source.files, config, report)
        case "huggingface":
            return read_hugging_face(source.files[0], source.part, config, report)
