"""What every source yields: a document, or the account of one that could not be read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.config import TokensConfig

NO_DOMAIN = "unknown"  # of a document whose source names none
EXCERPT_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class SourceDocument:
    text: str
    utf8: bytes  # the same text
    domain: str
    origin_file: str
    origin_line: int


@dataclass(frozen=True, slots=True)
class Bad:
    """A document left out, for quarantine. `excerpt` is how its raw form begins."""

    kind: str
    origin_file: str
    origin_line: int
    detail: str
    excerpt: str


def excerpt_of(raw: bytes | str) -> str:
    """The beginning of something unreadable, as text that can be written anywhere."""
    raw = raw[: 4 * EXCERPT_CHARACTERS]
    text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else raw.encode("utf-8", "replace").decode("utf-8")
    return text[:EXCERPT_CHARACTERS]


def from_record(record: dict[str, Any], config: TokensConfig, file: str, line: int) -> SourceDocument | Bad:
    """The document of a source's record, if its text is one."""
    return from_text(_field(record, config.text_field), _field(record, config.domain_field), config, file, line)


def from_text(text: Any, domain: Any, config: TokensConfig, file: str, line: int) -> SourceDocument | Bad:
    """The document with this text, unless it is none; `domain` becomes a string, NO_DOMAIN if there is none."""
    if text is None:
        return Bad("missing_text", file, line, f"there is no {config.text_field!r}", "")
    if not isinstance(text, str):
        return Bad(
            "text_not_a_string", file, line, f"the text is of type {type(text).__name__}", excerpt_of(repr(text))
        )
    if not text:
        return Bad("empty_document", file, line, "the text is empty", "")
    domain = str(domain) if domain else NO_DOMAIN
    try:
        utf8 = text.encode("utf-8")
        domain.encode("utf-8")
    except UnicodeEncodeError as error:
        return Bad("lone_surrogate", file, line, f"character {error.start}: {error.reason}", excerpt_of(error.object))
    if len(utf8) > config.max_document_bytes:
        detail = f"{len(utf8)} bytes of text; {config.max_document_bytes} are allowed"
        return Bad("too_large", file, line, detail, excerpt_of(text))
    return SourceDocument(text, utf8, domain, file, line)


def _field(record: Any, path: str) -> Any:
    """The value at a dotted path, None where there is none."""
    for key in path.split("."):
        record = record.get(key) if isinstance(record, dict) else None
    return record
