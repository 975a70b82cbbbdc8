"""What a set of prompts must give. Two exist: `own` and `openai` (read from a package at run time).

An explainer is a chat model: it gets messages and answers with one sentence. A simulator is asked for no text: it reads
`head + explanation + opening + one line a token`, each line ending in "unknown", and what it expected in place of each "unknown"
is its prediction. The head is the same for all neurons, head and explanation for all excerpts of a neuron.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

UNKNOWN = "unknown"
CLOSING = "<end>\n"


@dataclass(frozen=True)
class Message:
    role: str  # "user" or "assistant"
    content: str


@dataclass(frozen=True)
class ShownExcerpt:
    """An excerpt as the explainer sees it."""

    tokens: list[str]
    values: np.ndarray  # (tokens,) whole numbers 0..10


class PromptSet(Protocol):
    @property
    def name(self) -> str: ...

    def explain(self, excerpts: Sequence[ShownExcerpt]) -> tuple[Message, ...]:
        """The conversation whose next turn is the explanation. The first turns are the same for all neurons."""

    def simulation_head(self) -> str:
        """Instruction and examples: what all simulations begin with."""

    def simulation_opening(self, explanation: str) -> str:
        """What follows the head for one neuron, up to the excerpt's first line."""

    def line(self, token: str) -> str:
        """One token of an excerpt: `<token>\\tunknown\\n`."""


def simulation_tail(lines: Sequence[str]) -> str:
    return "".join(lines) + CLOSING
