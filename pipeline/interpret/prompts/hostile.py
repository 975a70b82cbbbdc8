"""Text from corpora and models is data. Here it is made unable to act: on a prompt's lines, its delimiters, its chat roles.

A corpus holds tabs and newlines, chat markers of every model family, our own delimiters, control characters that turn text
around, and pieces of characters. Nothing is dropped: each is shown as a visible stand-in.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

# Markers of chat formats are written in <...> or [INST]; our own notation uses <start>, <end>, and double angle brackets.
STAND_INS = str.maketrans({"<": "\u2039", ">": "\u203a", "«": "“", "»": "”", "\n": "⏎", "\r": "␍", "\t": "⇥"})
SQUARE_MARKER = re.compile(r"\[(?=/?[A-Z_]{2,})")
INVISIBLE = {
    "Cc",
    "Cf",
    "Cs",
    "Co",
    "Cn",
    "Zl",
    "Zp",
}  # controls, direction marks, surrogates, unassigned, line separators


@lru_cache(1 << 17)  # more than a vocabulary has tokens
def visible(text: str) -> str:
    """`text` on one line, harmless and readable; idempotent."""
    shown = SQUARE_MARKER.sub("⟦", text.translate(STAND_INS))
    return "".join(f"\\u{ord(c):04x}" if unicodedata.category(c) in INVISIBLE else c for c in shown)


def neutral(text: str, markers: tuple[str, ...]) -> str:
    """`text` without a model's own special tokens: a zero-width space after each one's first character parts it."""
    for marker in markers:
        text = text.replace(marker, marker[0] + "\u200b" + marker[1:])
    return text


def one_line(text: str) -> str:
    """Runs of white space as single spaces, invisible characters gone."""
    kept = "".join(c if unicodedata.category(c) not in INVISIBLE else " " for c in text)
    return " ".join(kept.split())
