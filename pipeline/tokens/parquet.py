"""Parquet files, read a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import TokensConfig
from pipeline.tokens.documents import Bad, SourceDocument, from_record
from pipeline.tokens.files import CountedReader, Found

ROWS = 256  # decoded at a time


def read_parquet(file: Found, config: TokensConfig, report: Callable[[int], None]) -> Iterator[SourceDocument | Bad]:
    """The documents of one file, numbered by row from 1."""
    raw = CountedReader(file.path)
    row = 0
    try:
        table = pq.ParquetFile(pa.PythonFile(raw, mode="r"))
        for batch in table.iter_batches(batch_size=ROWS, columns=[config.text_field, config.domain_field]):
            for record in _records(batch):
                row += 1
                if isinstance(record, UnicodeDecodeError):
                    yield Bad("invalid_utf8", file.origin, row, f"byte {record.start}: {record.reason}", "")
                else:
                    yield from_record(record, config, file.origin, row)
            report(file.bytes * row // table.metadata.num_rows)
    except (OSError, pa.ArrowException) as error:
        raw.reraise()
        yield Bad("damaged_file", file.origin, row + 1, f"{error}: what follows could not be read", "")


def _records(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | UnicodeDecodeError]:
    """The rows as dictionaries; for a row that holds no UTF-8 where it says so, the error."""
    for row in range(batch.num_rows):
        try:
            yield batch.slice(row, 1).to_pylist()[0]
        except UnicodeDecodeError as error:
            yield error
