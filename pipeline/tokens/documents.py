"""What every source yields: a document, or the account of one that could not be read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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


def checked(text: Any, domain: Any, file: str, line: int, max_bytes: int) -> SourceDocument | Bad:
    """The document, if its text is one. `domain` is made a string, NO_DOMAIN if there is none."""
    if text is None:
        return Bad("missing_text", file, line, "there is no text", "")
    if not isinstance(text, str):
        return Bad(
            "text_not_a_string", file, line, f"the text is of type {type(text).__name__}", excerpt_of(repr(text))
        )
    if not text:
        return Bad("empty_document", file, line, "the text is empty", "")
    try:
        utf8 = text.encode("utf-8")
    except UnicodeEncodeError as error:
        return Bad("lone_surrogate", file, line, str(error.reason), excerpt_of(text))
    if len(utf8) > max_bytes:
        return Bad("too_large", file, line, f"{len(utf8)} bytes of text, {max_bytes} are allowed", excerpt_of(text))
    return SourceDocument(text, utf8, str(domain) if domain else NO_DOMAIN, file, line)
