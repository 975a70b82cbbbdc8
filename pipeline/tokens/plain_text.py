"""Plain text: every file is a document, and its folder's name is its domain."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath

from pipeline.config import TokensConfig
from pipeline.tokens.documents import Bad, SourceDocument, excerpt_of, from_text
from pipeline.tokens.files import ByteStream, Damaged, Found


def read_plain_text(
    files: Sequence[Found], config: TokensConfig, report: Callable[[int], None]
) -> Iterator[SourceDocument | Bad]:
    """One document a file, its characters as they are: no newline is translated."""
    done = 0
    for file in files:
        yield _document(file, config)
        done += file.bytes
        report(done)


def _document(file: Found, config: TokensConfig) -> SourceDocument | Bad:
    data = b""
    try:
        data = _whole(file, config.max_document_bytes)
        return from_text(data.decode("utf-8"), PurePosixPath(file.path).parent.name, config, file.origin, 1)
    except Damaged as damage:
        return Bad("damaged_file", file.origin, 1, str(damage), "")
    except UnicodeDecodeError as error:
        return Bad("invalid_utf8", file.origin, 1, f"byte {error.start}: {error.reason}", excerpt_of(data))


def _whole(file: Found, max_bytes: int) -> bytes:
    """The file's bytes, or as many as show that it is too large."""
    data = bytearray()
    for chunk in ByteStream(file.path).chunks():
        data += chunk
        if len(data) > max_bytes:
            break
    return bytes(data)
