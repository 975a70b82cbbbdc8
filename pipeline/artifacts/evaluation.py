"""The evaluate artifact, and the one way in which a loss on held-out text is taken, in training and after it.

Windows are spread evenly over the val split and never drawn, so a loss is a number, not a sample. Every target counts once,
under the domain of the document it lies in and with the bytes that it stands for.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.tokens import TokenSplit
from pipeline.artifacts.vocabulary import END_OF_TEXT, token_bytes

DOMAINS, LAYERS, NEXT_WORDS = "domains.parquet", "layers.parquet", "next_words.json"
DOMAIN_SCHEMA = pa.schema(
    [
        ("domain", pa.string()),
        ("n_tokens", pa.int64()),
        ("n_bytes", pa.int64()),
        ("loss", pa.float64()),
        ("bits_per_byte", pa.float64()),
    ]
)
LAYER_SCHEMA = pa.schema(
    [
        ("layer", pa.int32()),
        ("coding_rate_before", pa.float64()),  # R^c in nats a token, before the layer's attention; null for GPT-2
        ("coding_rate", pa.float64()),  # and after it
        ("fraction_nonzero", pa.float64()),  # of the layer's neurons
    ]
)


@dataclass(frozen=True)
class ValBatch:
    """Windows of val. `targets` is -1 where there is none; `domains` indexes `TokenSplit.domains`. All (batch, n_ctx).

    The last window of a split may be short: `real` says which of `ids` are text, the others are 0 and come after it.
    """

    ids: NDArray[np.int64]
    real: NDArray[np.bool_]
    targets: NDArray[np.int64]
    domains: NDArray[np.int64]


class ValWindows:
    """The windows of a split on which a loss is taken: all of it, or about `n_tokens` spread evenly over it."""

    def __init__(self, split: TokenSplit, n_ctx: int, n_tokens: int = 0) -> None:
        self.split, self.n_ctx = split, n_ctx
        n_windows = max(1, math.ceil((split.n_tokens - 1) / n_ctx))  # the last one may be short
        wanted = min(n_windows, max(1, n_tokens // n_ctx)) if n_tokens else n_windows
        self.starts = (np.arange(wanted) * n_windows // wanted) * n_ctx
        self._document_starts = split.document_starts()
        self._document_domains = split.domain_of_documents()

    def batches(self, batch: int, rank: int = 0, world_size: int = 1) -> Iterator[ValBatch]:
        """This worker's windows, `batch` at a time."""
        own = self.starts[rank::world_size]
        for first in range(0, len(own), batch):
            yield self._batch(own[first : first + batch])

    def _batch(self, starts: NDArray[np.int64]) -> ValBatch:
        tokens = np.full((len(starts), self.n_ctx + 1), -1, np.int64)
        for row, start in zip(tokens, starts, strict=True):
            read = self.split.read(int(start), min(self.n_ctx + 1, self.split.n_tokens - int(start)))
            row[: len(read)] = read
        positions = starts[:, None] + 1 + np.arange(self.n_ctx)
        documents = np.searchsorted(self._document_starts, positions, side="right") - 1
        ids, targets = tokens[:, :-1], tokens[:, 1:]
        return ValBatch(np.maximum(ids, 0), ids >= 0, targets, self._document_domains[documents])


class DomainTotals:
    """Sums over targets by domain: losses in nats, tokens, bytes. Adding up totals of workers gives the whole."""

    def __init__(self, domains: tuple[str, ...]) -> None:
        self.domains = domains
        self.sums = np.zeros((3, len(domains)))  # nats, tokens, bytes
        self.counts = np.zeros(0, np.int64)  # how often each token is a target

    def add(self, batch: ValBatch, losses: NDArray[np.float32]) -> None:
        """Count the losses (batch, n_ctx) of a batch's targets."""
        counted = batch.targets >= 0
        domains, targets = batch.domains[counted], batch.targets[counted]
        seen = np.bincount(targets, minlength=len(self.counts))
        seen[: len(self.counts)] += self.counts
        self.counts = seen
        for total, weights in zip(self.sums, (losses[counted], np.ones(len(targets)), _bytes_of(targets)), strict=True):
            total += np.bincount(domains, np.asarray(weights, np.float64), minlength=len(self.domains))

    @property
    def loss(self) -> float:
        """Mean over all targets, nats a token."""
        return float(self.sums[0].sum() / self.sums[1].sum())

    @property
    def unigram_entropy(self) -> float:
        """Nats a token of the targets under their own frequencies: no model without context has a lower loss on them."""
        shares = self.counts[self.counts > 0] / self.counts.sum()
        return float(-(shares * np.log(shares)).sum())

    @property
    def n_tokens(self) -> int:
        return int(self.sums[1].sum())

    @property
    def bits_per_byte(self) -> float:
        return float(self.sums[0].sum() / math.log(2) / self.sums[2].sum())

    def by_domain(self) -> dict[str, float]:
        """Nats a token of each domain that has tokens."""
        return {
            name: float(nats / tokens)
            for name, nats, tokens in zip(self.domains, self.sums[0], self.sums[1], strict=True)
            if tokens
        }

    def table(self) -> pa.Table:
        """One row a domain with tokens, as DOMAIN_SCHEMA."""
        rows = [
            {
                "domain": name,
                "n_tokens": int(tokens),
                "n_bytes": int(n_bytes),
                "loss": nats / tokens,
                "bits_per_byte": nats / math.log(2) / n_bytes if n_bytes else None,
            }
            for name, nats, tokens, n_bytes in zip(self.domains, *self.sums, strict=True)
            if tokens
        ]
        return pa.Table.from_pylist(rows, schema=DOMAIN_SCHEMA)


@functools.cache
def _byte_lengths() -> NDArray[np.int64]:
    """UTF-8 bytes of each token; the end-of-text token stands for none, and ids beyond the vocabulary for none either."""
    lengths = np.zeros(1 << 16, np.int64)
    lengths[:END_OF_TEXT] = [len(token) for token in token_bytes()[:END_OF_TEXT]]
    return lengths


def _bytes_of(targets: NDArray[np.int64]) -> NDArray[np.int64]:
    return _byte_lengths()[targets]


def write_evaluation(
    folder: Path, totals: DomainTotals, next_words: list[dict[str, Any]], layers: list[dict[str, Any]]
) -> None:
    """`next_words`: [{"prompt", "words": [{"token", "probability"}]}]; `layers`: rows as LAYER_SCHEMA."""
    pq.write_table(totals.table(), folder / DOMAINS)
    pq.write_table(pa.Table.from_pylist(layers, schema=LAYER_SCHEMA), folder / LAYERS)
    (folder / NEXT_WORDS).write_text(json.dumps(next_words, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_domains(artifact: Artifact) -> pa.Table:
    return pq.read_table(artifact.file(DOMAINS))


def read_layers(artifact: Artifact) -> pa.Table:
    """One row a layer, as LAYER_SCHEMA."""
    return pq.read_table(artifact.file(LAYERS))


def read_next_words(artifact: Artifact) -> list[dict[str, Any]]:
    return json.loads(artifact.file(NEXT_WORDS).read_text("utf-8"))
