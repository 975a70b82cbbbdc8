"""Our own prompts: short, with examples of our own writing, safe against hostile text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from pipeline.interpret.prompts.hostile import SQUARE_MARKER, visible
from pipeline.interpret.prompts.prompt_set import CLOSING, UNKNOWN, Message, ShownExcerpt

EXPLAIN = (
    "A neuron of a language model reacts to some pattern in text. Below are excerpts in which it reacts. A token that it reacts "
    "to is written «token»(n), where n from 1 to 10 says how strongly. Say in a single short phrase what the neuron reacts to. "
    "Describe the pattern; do not list all its examples."
)
SIMULATE = (
    "Neurons of a language model react to patterns in text. For each neuron there is a description of what it reacts to, then a "
    "text with one token a line, followed by a tab and by how strongly the neuron reacts to that token: a whole number from 0 "
    f'(not at all) to 10. Most are 0. "{UNKNOWN}" stands for a number that is not known.\n'
)


@dataclass(frozen=True)
class Example:
    explanation: str
    tokens: tuple[str, ...]
    values: tuple[int, ...]
    first_known: int  # lines before it say "unknown"


def _example(explanation: str, text: str, first_known: int) -> Example:
    """From text in which `|` parts tokens and `=n` gives a token's value."""
    parts = [part.partition("=") for part in text.split("|")]
    return Example(explanation, tuple(p[0] for p in parts), tuple(int(p[2] or 0) for p in parts), first_known)


EXAMPLES = (
    _example(
        "words for bodies of water",
        "We| rowed| across| the| lake=10| and| down| a| narrow| river=9| to| the| sea=10| before| night|.",
        4,
    ),
    _example(
        "the second part of a date, after the month",
        "It| opened| on| May=1| 14=10|,| 1931=4|,| and| closed| in| March=1| 1960=5|.",
        2,
    ),
    _example(
        "verbs of speaking in the past tense",
        " she| said=10|,| then| he| whispered=9| that| nobody| had| told=8| them| anything| at| all",
        0,
    ),
)


@dataclass(frozen=True)
class OwnPrompts:
    name: str = "own"

    def explain(self, excerpts: Sequence[ShownExcerpt]) -> tuple[Message, ...]:
        turns: list[Message] = []
        for index, example in enumerate(EXAMPLES):
            shown = _marked(example.tokens, example.values)
            instruction = EXPLAIN + "\n\n" if index == 0 else ""
            turns.append(Message("user", f"{instruction}Excerpt 1: {shown}\n\nThe neuron reacts to:"))
            turns.append(Message("assistant", example.explanation))
        lines = [f"Excerpt {i}: {_marked(e.tokens, e.values)}" for i, e in enumerate(excerpts, 1)]
        return (*turns, Message("user", "\n".join(lines) + "\n\nThe neuron reacts to:"))

    @cache  # noqa: B019 - one instance, one text
    def simulation_head(self) -> str:
        text = SIMULATE
        for index, example in enumerate(EXAMPLES, 1):
            numbers = [UNKNOWN if i < example.first_known else str(v) for i, v in enumerate(example.values)]
            lines = [f"{visible(t)}\t{n}\n" for t, n in zip(example.tokens, numbers, strict=True)]
            text += f"\nNeuron {index} reacts to: {example.explanation}\n<start>\n{''.join(lines)}{CLOSING}"
        return text + f"\nNeuron {len(EXAMPLES) + 1} reacts to:"

    def simulation_opening(self, explanation: str) -> str:
        return f" {visible(explanation)}\n<start>\n"

    def line(self, token: str) -> str:
        return f"{visible(token)}\t{UNKNOWN}\n"


def _marked(tokens: Sequence[str], values: Iterable[int]) -> str:
    """Running text with the tokens that fired marked. Safe also where two tokens together would spell a marker."""
    shown = "".join(f"«{visible(t)}»({v})" if v else visible(t) for t, v in zip(tokens, values, strict=True))
    return SQUARE_MARKER.sub("⟦", shown)
