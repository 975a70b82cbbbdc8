"""JSON lines, plain or compressed, as the Pile is published: `{"text": ..., "meta": {"pile_set_name": ...}}` a line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

from pipeline.config import TokensConfig
from pipeline.tokens.documents import Bad, SourceDocument, excerpt_of, from_record
from pipeline.tokens.files import ByteStream, Damaged, Found


def read_jsonl(file: Found, config: TokensConfig, report: Callable[[int], None]) -> Iterator[SourceDocument | Bad]:
    """The documents of one file. Blank lines are none; a line that is too long is never held in memory."""
    stream, max_bytes = ByteStream(file.path), config.max_document_bytes
    number = 0
    try:
        for number, line in _lines(stream.chunks(), max_bytes):
            if line is None:
                yield Bad("too_large", file.origin, number, f"the line is longer than {max_bytes} bytes", "")
            elif line and not line.isspace():
                yield _parse(line, config, file.origin, number)
            report(stream.position)
    except Damaged as damage:
        yield Bad("damaged_file", file.origin, number + 1, f"{damage}: what follows could not be read", "")


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


def _parse(line: bytes, config: TokensConfig, origin: str, number: int) -> SourceDocument | Bad:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Bad("invalid_utf8", origin, number, f"byte {error.start} of the line: {error.reason}", excerpt_of(line))
    except (ValueError, RecursionError) as error:
        return Bad("malformed_json", origin, number, str(error), excerpt_of(line))
    if not isinstance(record, dict):
        return Bad("malformed_json", origin, number, f"not an object but {type(record).__name__}", excerpt_of(line))
    return from_record(record, config, origin, number)
