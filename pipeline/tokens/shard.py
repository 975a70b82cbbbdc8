"""One source file to one finished shard: the pure core of the tokens room.

A shard's folder holds, for each split it feeds, the token stream and its document table, the quarantine, the digests of
held-out documents and, written last, `facts.json`; it appears under its own name in one rename. Everything is streamed:
memory depends on the largest document, not on the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.artifacts.token_shards import ShardWriter
from pipeline.config import TokensConfig
from pipeline.tokens.documents import Bad, SourceDocument
from pipeline.tokens.encode import Mismatch, check, encode_exactly, encode_fast, fast_encoder
from pipeline.tokens.sources import HELD_OUT, Report, Source, read

GROUP_BYTES = 4 << 20  # text encoded at a time
SAMPLE_STRIDE = 7919  # a prime: which document of each group is encoded by both encoders
DIGEST = np.dtype("S16")  # the first 16 bytes of a text's sha256


@dataclass
class Facts:
    """What became of one source file. documents_in = written + quarantined + dropped duplicates."""

    documents_in: int = 0
    duplicates: int = 0  # train documents that are exact copies of held-out ones
    duplicates_dropped: int = 0
    bad: dict[str, int] = field(default_factory=dict)  # kind -> documents
    splits: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)  # split -> domain -> counts
    mismatched: bool = False  # fastokens differed from tiktoken: the shard was made by tiktoken alone

    @property
    def written(self) -> int:
        return sum(counts["n_documents"] for domains in self.splits.values() for counts in domains.values())

    @property
    def quarantined(self) -> int:
        return sum(self.bad.values())

    def count(self, split: str, domain: str, n_tokens: int, n_bytes: int) -> None:
        counts = self.splits.setdefault(split, {}).setdefault(domain, {"n_documents": 0, "n_tokens": 0, "n_bytes": 0})
        for name, number in (("n_documents", 1), ("n_tokens", n_tokens), ("n_bytes", n_bytes)):
            counts[name] += number


def make_shard(source: Source, config: TokensConfig, held_out: Path | None, shards: Path, report: Report) -> Facts:
    """Tokenize `source` into `shards/<source.name>`, or find it finished there. `held_out` is a sorted .npy of digests."""
    final = shards / source.name
    if not (final / "facts.json").is_file():
        digests = np.load(held_out) if held_out else np.empty(0, DIGEST)
        try:
            _attempt(source, config, digests, final, report, Facts(), fast=fast_encoder() is not None)
        except Mismatch:
            _attempt(source, config, digests, final, report, Facts(mismatched=True), fast=False)
    return read_facts(final)


def read_facts(shard: Path) -> Facts:
    """What became of the source of a finished shard."""
    return Facts(**json.loads((shard / "facts.json").read_text("utf-8")))


def _attempt(
    source: Source, config: TokensConfig, held_out: NDArray[Any], final: Path, report: Report, facts: Facts, fast: bool
) -> None:
    making = final.with_name(f".{final.name}-{uuid.uuid4().hex[:8]}")
    making.mkdir(parents=True)
    try:
        shard = _Shard(source, config, held_out, making, facts, fast)
        for group in _groups(read(source, config, report)):
            shard.take(group)
        shard.close()
        assert facts.documents_in == facts.written + facts.quarantined + facts.duplicates_dropped, facts
        (making / "facts.json").write_text(json.dumps(asdict(facts)), encoding="utf-8")
        for path in making.iterdir():
            _flush(path)
        _publish(making, final)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _publish(making: Path, final: Path) -> None:
    if final.is_dir() and not (final / "facts.json").is_file():
        shutil.rmtree(final)  # what a node had sent to the storage when it was lost
    try:
        making.rename(final)
    except OSError:
        if not (final / "facts.json").is_file():  # else a twin of this worker, believed lost, was first: same bytes
            raise


def _flush(path: Path) -> None:
    """Put a file on the disk for good, so that a name never outlives its bytes in a power cut."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _groups(documents: Iterator[SourceDocument | Bad]) -> Iterator[list[SourceDocument | Bad]]:
    group: list[SourceDocument | Bad] = []
    size = 0
    for document in documents:
        group.append(document)
        size += len(document.utf8) if isinstance(document, SourceDocument) else len(document.excerpt) + 200
        if size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


class _Shard:
    """The open files of the shard in the making."""

    def __init__(
        self, source: Source, config: TokensConfig, held_out: NDArray[Any], folder: Path, facts: Facts, fast: bool
    ) -> None:
        self.source, self.config, self.held_out, self.folder = source, config, held_out, folder
        self.facts, self.fast = facts, fast
        self._writers: dict[str, ShardWriter] = {}
        self._quarantine = (folder / "quarantine.jsonl").open("w", encoding="utf-8")
        self._digests: list[bytes] = []  # of the documents of a held-out split that is given by files
        self._groups_encoded = 0

    def take(self, group: list[SourceDocument | Bad]) -> None:
        """Write a group of documents, each to its split or to quarantine."""
        self.facts.documents_in += len(group)
        for bad in (document for document in group if isinstance(document, Bad)):
            self._quarantine.write(json.dumps(asdict(bad)) + "\n")
            self.facts.bad[bad.kind] = self.facts.bad.get(bad.kind, 0) + 1
        documents = [document for document in group if isinstance(document, SourceDocument)]
        if not documents:
            return
        digests = [hashlib.sha256(document.utf8).digest() for document in documents]
        splits = [self._split(digest) for digest in digests]
        kept = self._without_duplicates(digests, splits)
        self._write([documents[i] for i in kept], [splits[i] for i in kept])

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._quarantine.close()
        assert self.facts.written == sum(writer.n_documents for writer in self._writers.values())
        if self.source.split in HELD_OUT:
            np.save(self.folder / "digests.npy", np.frombuffer(b"".join(self._digests), DIGEST))
        self.facts.bad = dict(sorted(Counter(self.facts.bad).items()))

    def _without_duplicates(self, digests: list[bytes], splits: list[str]) -> list[int]:
        """The numbers of the documents to keep: not those of train that are held out too. What is given as held out is noted."""
        short = [digest[: DIGEST.itemsize] for digest in digests]
        if self.source.split in HELD_OUT:
            self._digests += short
        if not len(self.held_out):
            return list(range(len(digests)))
        wanted = np.frombuffer(b"".join(short), DIGEST)
        places = np.minimum(np.searchsorted(self.held_out, wanted), len(self.held_out) - 1)
        copies = (self.held_out[places] == wanted) & (np.array(splits) == "train")
        self.facts.duplicates += int(copies.sum())
        if not self.config.drop_duplicates:
            return list(range(len(digests)))
        self.facts.duplicates_dropped += int(copies.sum())
        return np.flatnonzero(~copies).tolist()

    def _split(self, digest: bytes) -> str:
        if self.source.split != "hashed":
            return self.source.split
        return "val" if int.from_bytes(digest[:8], "big") < self.config.val_fraction * 2**64 else "train"

    def _write(self, documents: list[SourceDocument], splits: list[str]) -> None:
        for document, split, ids in zip(documents, splits, self._encode(documents), strict=True):
            if split not in self._writers:
                self._writers[split] = ShardWriter(self.folder / split)
            n_bytes = len(document.utf8)
            self._writers[split].add(ids, n_bytes, document.domain, document.origin_file, document.origin_line)
            self.facts.count(split, document.domain, len(ids), n_bytes)

    def _encode(self, documents: list[SourceDocument]) -> list[NDArray[np.uint16]]:
        texts = [document.text for document in documents]
        if not self.fast or not texts:
            return encode_exactly(texts)
        encoded = encode_fast(texts)
        sample = self._groups_encoded * SAMPLE_STRIDE % len(texts)
        check(texts[sample], encoded[sample])
        self._groups_encoded += 1
        return encoded
