"""JSON lines, plain or compressed, as the Pile is published: `{"text": ..., "meta": {"pile_set_name": ...}}` a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pipeline.tokens.documents import Bad, SourceDocument, checked, excerpt_of
from pipeline.tokens.files import ByteStream, Damaged


def read_jsonl(
    stream: ByteStream, origin: str, text_field: str, domain_field: str, max_bytes: int
) -> Iterator[SourceDocument | Bad]:
    """The documents of one file. Blank lines are none; a line longer than `max_bytes` is never held in memory."""
    text_path, domain_path = text_field.split("."), domain_field.split(".")
    number = 0
    try:
        for number, line in _lines(stream.chunks(), max_bytes):
            if line is None:
                yield Bad("too_large", origin, number, f"the line is longer than {max_bytes} bytes", "")
            elif not line.isspace() and line:
                yield _parse(line, text_path, domain_path, origin, number, max_bytes)
    except Damaged as damage:
        yield Bad("damaged_file", origin, number + 1, f"{damage}: what follows could not be read", "")


def _lines(chunks: Iterator[bytes], max_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """(number from 1, line) of each line; None for one that is too long. A line cut off by damage is not yielded."""
    number, size = 1, 0
    pieces: list[bytes] = []
    for chunk in chunks:
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            size += len(end)
            yield number, b"".join([*pieces, end]) if size <= max_bytes else None
            number, pieces, size = number + 1, [], 0
        size += len(rest)
        pieces = [*pieces, rest] if size <= max_bytes else []
    if size:
        yield number, b"".join(pieces) if size <= max_bytes else None


def _parse(
    line: bytes, text_path: list[str], domain_path: list[str], origin: str, number: int, max_bytes: int
) -> SourceDocument | Bad:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Bad("invalid_utf8", origin, number, f"byte {error.start} of the line: {error.reason}", excerpt_of(line))
    except (ValueError, RecursionError) as error:
        return Bad("malformed_json", origin, number, str(error), excerpt_of(line))
    if not isinstance(record, dict):
        return Bad("malformed_json", origin, number, f"not an object but {type(record).__name__}", excerpt_of(line))
    return checked(_field(record, text_path), _field(record, domain_path), origin, number, max_bytes)


def _field(record: Any, path: list[str]) -> Any:
    """The value at a dotted path, None where there is none."""
    for key in path:
        record = record.get(key) if isinstance(record, dict) else None
    return record
