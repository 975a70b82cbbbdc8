"""Reading the tokens artifact: one long stream of token ids a split, mapped from disk, never copied into memory whole.

A position is a token's offset in its split, over all shards in order. A *window* is n_ctx tokens: window i is the tokens
[i * n_ctx, i * n_ctx + n_ctx + 1), whose last one is only ever a target.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.order import count_windows
from pipeline.artifacts.token_shards import SCHEMA, Document
from pipeline.errors import ArtifactError


class TokenSplit:
    """A split ("train", "val", "test") of a tokens artifact. Cheap to open and to send to another process.

    Raises ArtifactError when the split is not there or one of its files is torn.
    """

    def __init__(self, artifact: Artifact, split: str) -> None:
        self.artifact, self.split = artifact, split
        self._shards = artifact.names(f"{split}/", ".arrow")
        if not self._shards:
            raise ArtifactError(f"{artifact.folder} has no {split!r} tokens", fix="Look at the splits in its manifest.")
        # One entry a record batch: where it begins in the split, and its ids as a view of the mapped file.
        self._chunks: list[NDArray[np.uint16]] = []
        self._shard_starts: list[int] = []
        starts = [0]
        for name in self._shards:
            self._shard_starts.append(starts[-1])
            for chunk in _mapped_batches(artifact, name):
                self._chunks.append(chunk)
                starts.append(starts[-1] + len(chunk))
        self.n_tokens = starts.pop()
        self._starts = starts

    def __reduce__(self):
        return TokenSplit, (self.artifact, self.split)

    @property
    def _facts(self) -> dict[str, Any]:
        return self.artifact.summary[self.split]

    @property
    def n_documents(self) -> int:
        return self._facts["n_documents"]

    @property
    def n_bytes(self) -> int:
        """UTF-8 bytes of all documents."""
        return self._facts["n_bytes"]

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains, sorted; their counts are in the artifact's summary."""
        return tuple(sorted(self._facts["domains"]))

    def n_windows(self, n_ctx: int) -> int:
        return count_windows(self.n_tokens, n_ctx)

    def read(self, start: int, length: int) -> NDArray[np.uint16]:
        """Ids (length,) from position `start`: a read-only view where they lie together. Raises ValueError outside."""
        index = bisect_right(self._starts, start) - 1
        if index >= 0:
            offset = start - self._starts[index]
            ids = self._chunks[index][offset : offset + length]
            if len(ids) == length:
                return ids
        return self._read_across(start, length)

    def rows(self, starts: Any, length: int) -> NDArray[np.int64]:
        """Ids (B, length) from the positions `starts` (B,), as a new int64 array. Raises ValueError outside."""
        positions = np.asarray(starts, np.int64)
        lowest, highest = (int(positions.min()), int(positions.max())) if len(positions) else (0, 0)
        index = bisect_right(self._starts, lowest) - 1
        if index >= 0 and highest + length <= self._starts[index] + len(self._chunks[index]):  # all in one chunk
            return sliding_window_view(self._chunks[index], length)[positions - self._starts[index]].astype(np.int64)
        out = np.empty((len(positions), length), np.uint16)
        for row, start in enumerate(positions.tolist()):
            out[row] = self.read(start, length)
        return out.astype(np.int64)  # one conversion of all rows is faster than one a row

    def windows(self, ids: Any, n_ctx: int) -> NDArray[np.int64]:
        """The windows `ids` (B,) as an int64 array (B, n_ctx + 1): inputs are [:, :-1], targets [:, 1:]."""
        return self.rows(np.asarray(ids, np.int64) * n_ctx, n_ctx + 1)

    def _read_across(self, start: int, length: int) -> NDArray[np.uint16]:
        if start < 0 or length < 0 or start + length > self.n_tokens:
            raise ValueError(f"tokens [{start}, {start + length}) are not within the {self.n_tokens} of {self.split}")
        pieces = []
        index = bisect_right(self._starts, start) - 1
        offset = start - self._starts[index] if length else 0
        while length:
            pieces.append(self._chunks[index][offset : offset + length])
            length -= len(pieces[-1])
            index, offset = index + 1, 0
        return np.concatenate(pieces) if pieces else np.empty(0, np.uint16)

    def document_at(self, position: int) -> Document:
        """The document that holds the token at `position`; its `start` is a position too. Raises ValueError outside."""
        if not 0 <= position < self.n_tokens:
            raise ValueError(f"token {position} is not within the {self.n_tokens} of {self.split}")
        shard = bisect_right(self._shard_starts, position) - 1
        shard_start = self._shard_starts[shard]
        table = self._documents_around(shard, position - shard_start)
        row = bisect_right(table["start"].to_pylist(), position - shard_start) - 1
        fields = {name: table[name][row].as_py() for name in table.column_names}
        return Document(**fields | {"start": fields["start"] + shard_start})

    def document_starts(self) -> NDArray[np.int64]:
        """The positions at which the documents begin, ascending (n_documents,)."""
        parts = [
            table["start"].to_numpy() + shard_start
            for table, shard_start in zip(self._tables(["start"]), self._shard_starts, strict=True)
        ]
        return np.concatenate(parts)

    def domain_of_documents(self) -> NDArray[np.int64]:
        """For each document, in the order of `document_starts`, the index of its domain in `domains` (n_documents,)."""
        names = pa.array(self.domains)
        parts = [pa.compute.index_in(table["domain"], names).to_numpy() for table in self._tables(["domain"])]
        return np.concatenate(parts).astype(np.int64)

    def _tables(self, columns: list[str]) -> list[pa.Table]:
        return [file.read(columns) for file in self._document_files]

    @cached_property
    def _document_files(self) -> list[pq.ParquetFile]:
        names = [name.removesuffix(".arrow") + ".documents.parquet" for name in self._shards]
        return [pq.ParquetFile(self.artifact.file(name)) for name in names]

    @cached_property
    def _group_starts(self) -> list[list[int]]:
        """For each shard's table, the offset at which each row group's first document begins."""
        tables = [file.metadata for file in self._document_files]
        return [
            [table.row_group(group).column(0).statistics.min for group in range(table.num_row_groups)]
            for table in tables
        ]

    def _documents_around(self, shard: int, offset: int) -> pa.Table:
        """The row group of a shard's table whose documents hold the token at `offset` of the shard."""
        group = bisect_right(self._group_starts[shard], offset) - 1
        return self._document_files[shard].read_row_group(group)


def _mapped_batches(artifact: Artifact, name: str) -> list[NDArray[np.uint16]]:
    path = artifact.file(name)
    try:
        batches = list(pa.ipc.open_stream(pa.memory_map(str(path))))
    except pa.ArrowInvalid as error:
        raise ArtifactError(
            f"{path} is no Arrow stream: {error}", fix=f"Delete {artifact.folder}; run again."
        ) from error
    if any(batch.schema != SCHEMA for batch in batches):
        raise ArtifactError(
            f"{path} holds {batches[0].schema}, not {SCHEMA}", fix=f"Delete {artifact.folder}; run again."
        )
    return [batch.column(0).to_numpy(zero_copy_only=True) for batch in batches]
