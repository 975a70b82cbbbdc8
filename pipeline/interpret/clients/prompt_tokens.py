"""A simulator's prompts as its own token ids, with the places that are asked for known from how they were put together.

`corrected` tokenizes every excerpt token's line by itself (and once only): no text can merge with the next line or move an
"unknown". `paper` tokenizes the excerpt's lines together, as published, and leaves out of the asked places those "unknown" that
are not a tab's next token: there the published code predicts 0.
In neither can text become a special token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import ResourceError
from pipeline.interpret.prompts.prompt_set import CLOSING, UNKNOWN, PromptSet

# What a piece of text is tokenized behind, to be cut off again: some tokenizers treat the beginning of a text differently. A line
# break is what is really there; the others are for pieces that it would merge with.
ANCHORS = ("\n", "|", "a")


@dataclass(frozen=True)
class Tail:
    """An excerpt's lines. At `asked[i]` the model says what it expects in place of the "unknown" of token i; -1: it cannot."""

    ids: list[int]
    asked: np.ndarray  # (excerpt tokens,) index into ids of the token before "unknown"


@dataclass(frozen=True)
class Numbers:
    """How a tokenizer writes the numbers 0..10 after a tab. `ten` is None where "10" is the digits 1 and 0."""

    digits: list[int]
    ten: int | None
    line_end: int


class PromptTokens:
    """Tokenizes one prompt set for one tokenizer."""

    def __init__(self, tokenizer: Any, prompts: PromptSet, token_strings: list[str], whole_lines: bool) -> None:
        self.tokenizer, self.prompts, self.token_strings = tokenizer, prompts, token_strings
        self.whole_lines = whole_lines  # protocol `paper`
        self._line_of: dict[int, tuple[list[int], int]] = {}
        self.numbers = self._numbers()
        self._closing = self.encode(CLOSING)

    def encode(self, text: str) -> list[int]:
        """Ids of text in the middle of a prompt, none of them special."""
        return self._encoded(text)[0]

    def _encoded(self, text: str) -> tuple[list[int], list[int]]:
        """Ids, and where in `text` each begins (not told of white space around words)."""
        options = {"add_special_tokens": False, "return_offsets_mapping": True, "split_special_tokens": True}
        for anchor in ANCHORS:
            first = self.tokenizer(anchor, **options)["input_ids"]
            found = self.tokenizer(anchor + text, **options)
            if found["input_ids"][: len(first)] == first:
                begins = [begin - len(anchor) for begin, _ in found["offset_mapping"]]
                return found["input_ids"][len(first) :], begins[len(first) :]
        raise ResourceError(
            f"this simulator's tokenizer joins {text[:20]!r} with whatever comes before it",
            fix="Choose another interpret.simulator_model.",
        )

    def head(self) -> list[int]:
        begin = [self.tokenizer.bos_token_id] if _adds_bos(self.tokenizer) else []
        return begin + self.encode(self.prompts.simulation_head())

    def opening(self, explanation: str) -> list[int]:
        return self.encode(self.prompts.simulation_opening(explanation))

    def tail(self, tokens: np.ndarray) -> Tail:
        return self._tail_together(tokens) if self.whole_lines else self._tail_by_line(tokens)

    def _tail_by_line(self, tokens: np.ndarray) -> Tail:
        ids: list[int] = []
        asked = []
        for token in tokens.tolist():
            line, place = self._line(token)
            asked.append(len(ids) + place)
            ids += line
        return Tail(ids + self._closing, np.array(asked, np.int64))

    def _line(self, token: int) -> tuple[list[int], int]:
        """A line's ids and the place before its "unknown"."""
        if token not in self._line_of:
            line = self.prompts.line(self.token_strings[token])
            before = self.encode(line[: -len(UNKNOWN) - 1])
            self._line_of[token] = before + self.encode(UNKNOWN + "\n"), len(before) - 1
        return self._line_of[token]

    def _tail_together(self, tokens: np.ndarray) -> Tail:
        lines = [self.prompts.line(self.token_strings[token]) for token in tokens.tolist()]
        ends = np.cumsum([len(line) for line in lines])
        ids, begins = self._encoded("".join(lines) + CLOSING)
        index_at = {begin: index for index, begin in enumerate(begins)}
        (tab,), (unknown, *_) = self.encode("\t"), self.encode(UNKNOWN)
        asked = np.full(len(lines), -1, np.int64)
        for row, end in enumerate(ends.tolist()):
            index = index_at.get(end - 1 - len(UNKNOWN), 0)
            if index and ids[index] == unknown and ids[index - 1] == tab:
                asked[row] = index - 1
        return Tail(ids, asked)

    def _numbers(self) -> Numbers:
        tab = self.encode("\t")
        written = [self.encode(f"\t{value}\n") for value in range(11)]
        parts = [ids[len(tab) :] for ids in written]
        whole = all(ids[: len(tab)] == tab for ids in written) and all(len(p) == 2 for p in parts[:10])
        ends = {p[-1] for p in parts}
        digits = [p[0] for p in parts[:10]]
        split = parts[10][:-1] == [digits[1], digits[0]]
        if not whole or len(ends) != 1 or len(set(digits)) != 10 or not (split or len(parts[10]) == 2):
            raise ResourceError(
                "this simulator's tokenizer does not write the numbers 0 to 9 as one token each after a tab",
                fix="Choose another interpret.simulator_model.",
            )
        return Numbers(digits, None if split else parts[10][0], ends.pop())


def _adds_bos(tokenizer: Any) -> bool:
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
