"""Writing one shard of a split: the token stream, and beside it the table that says which document is where.

The stream is an uncompressed Arrow IPC *stream* of one flat uint16 column, so that readers map it into memory without a
copy and `datasets.Dataset.from_file` opens the very same file. Record batches hold a fixed number of tokens, whatever the
documents are: the bytes of a shard depend on nothing but its documents.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

BATCH_TOKENS = 1 << 22  # 8 MiB a record batch: what a writer holds in memory
GROUP_DOCUMENTS = 1 << 13  # documents a Parquet row group: what is read to find one document
SCHEMA = pa.schema([pa.field("ids", pa.uint16(), nullable=False)])


@dataclass(frozen=True)
class Document:
    """Where a document lies and where it came from. `start` counts tokens from the beginning of the shard (in a shard's
    table) or of the split (from `TokenSplit.document_at`); `n_tokens` includes the end-of-text token."""

    start: int
    n_tokens: int
    n_bytes: int  # of its UTF-8
    domain: str
    origin_file: str
    origin_line: int  # from 1; in a file that is no sequence of lines, the document's number


DOCUMENT_SCHEMA = pa.schema(
    [
        ("start", pa.int64()),
        ("n_tokens", pa.int64()),
        ("n_bytes", pa.int64()),
        ("domain", pa.string()),
        ("origin_file", pa.string()),
        ("origin_line", pa.int64()),
    ]
)
assert DOCUMENT_SCHEMA.names == [field.name for field in fields(Document)]


class ShardWriter:
    """Writes `<stem>.arrow` and `<stem>.documents.parquet`. Memory: one record batch and one row group."""

    def __init__(self, stem: Path) -> None:
        stem.parent.mkdir(parents=True, exist_ok=True)
        self._stream = pa.ipc.new_stream(stem.with_suffix(".arrow"), SCHEMA)
        self._table = pq.ParquetWriter(stem.with_suffix(".documents.parquet"), DOCUMENT_SCHEMA, compression="zstd")
        self._buffer = np.empty(BATCH_TOKENS, np.uint16)
        self._filled = 0
        self._rows: list[Document] = []
        self.n_tokens = self.n_documents = 0

    def add(self, ids: NDArray[np.uint16], n_bytes: int, domain: str, origin_file: str, origin_line: int) -> None:
        """Append one document; `ids` (n_tokens,) ends with the end-of-text token."""
        self._rows.append(Document(self.n_tokens, len(ids), n_bytes, domain, origin_file, origin_line))
        self.n_tokens += len(ids)
        self.n_documents += 1
        if len(self._rows) == GROUP_DOCUMENTS:
            self._write_rows()
        while len(ids):
            taken = ids[: BATCH_TOKENS - self._filled]
            self._buffer[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            ids = ids[len(taken) :]
            if self._filled == BATCH_TOKENS:
                self._write_ids()

    def close(self) -> None:
        if self._filled:
            self._write_ids()
        if self._rows:
            self._write_rows()
        self._stream.close()
        self._table.close()

    def _write_ids(self) -> None:
        column = pa.array(
            self._buffer[: self._filled]
        )  # the filled part exactly: Arrow would pad from what lies behind it
        self._stream.write_batch(pa.record_batch([column], schema=SCHEMA))
        self._filled = 0

    def _write_rows(self) -> None:
        columns = [[getattr(row, name) for row in self._rows] for name in DOCUMENT_SCHEMA.names]
        self._table.write_table(pa.table(columns, schema=DOCUMENT_SCHEMA), row_group_size=GROUP_DOCUMENTS)
        self._rows = []
