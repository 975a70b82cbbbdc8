"""Reading judges' replies strictly: a reply that is not what was asked for is `unparsed`, never guessed at, never scored."""

from __future__ import annotations

import re

from pipeline.interpret.prompts.hostile import one_line
from pipeline.interpret.scoring import Status

MARKERS = re.compile(r"<\|.*?\|>|</?s>|\[/?INST\]|<(?:start|end)>|<(?:start|end)_of_turn>|«|»")
LONGEST_EXPLANATION = 600  # characters


def answer(text: str) -> str:
    """What a reasoning model says when it has reasoned; empty where its tokens ended before that.

    Some servers leave out the opening mark; then only a closing one at the end of its line is taken for one.
    """
    opened = text.lstrip().startswith("<think>")
    _, end, rest = f"{text}\n".rpartition("</think>" if opened else "</think>\n")
    return rest if end else "" if opened else text


def explanation(reply: str, raw: bool = False) -> tuple[str | None, Status | None]:
    """The explanation in an explainer's reply: its first line that has words, as one clean line; all of it when `raw`.

    Reasoning before it is left out.
    """
    reply = answer(reply)
    if not reply.strip():
        return None, Status.UNPARSED
    if raw:
        return reply.strip(), None
    line = next((clean for raw in reply.splitlines() if has_words(clean := one_line(raw))), None)
    if line is None or MARKERS.search(line):
        return None, Status.UNPARSED
    return line[:LONGEST_EXPLANATION], None


def has_words(text: str) -> bool:
    return any(character.isalnum() for character in text)


def numbers(reply: str, tokens: list[str]) -> list[float] | None:
    """The numbers of a reply that repeats every token's line with a whole number 0..10 after the tab; None if it does not.

    Tokens are compared without the spaces around them, which chat models do not keep.
    """
    lines = [line for line in reply.strip("\n").split("\n") if line.strip() not in ("", "<start>", "<end>")]
    if len(lines) != len(tokens):
        return None
    found = []
    for line, token in zip(lines, tokens, strict=True):
        shown, tab, number = line.rpartition("\t")
        if not tab or shown.strip() != token.strip() or not re.fullmatch(r" ?(10|[0-9])\s*", number):
            return None
        found.append(float(number))
    return found
