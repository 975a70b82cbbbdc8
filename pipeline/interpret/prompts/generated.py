"""The prompt for judges that can only write: repeat every token with a number. What comes of it is another metric."""

from __future__ import annotations

from pipeline.interpret.prompts.hostile import visible
from pipeline.interpret.prompts.own import EXAMPLES
from pipeline.interpret.prompts.prompt_set import Message

VERSION = "1"
INSTRUCTION = (
    "A neuron of a language model reacts to a pattern in text. You get a description of the pattern and a text, one token a "
    "line. Repeat every line exactly, and after it write a tab and how strongly the neuron reacts to that token: a whole "
    "number from 0 (not at all) to 10. Most are 0. Write nothing else."
)


def ask_for_numbers(explanation: str, tokens: list[str]) -> tuple[Message, ...]:
    """The conversation whose next turn is `<token>\\t<number>` lines."""
    example = EXAMPLES[0]
    answer = "".join(f"{t}\t{v}\n" for t, v in zip(example.tokens, example.values, strict=True))
    return (
        Message("user", f"{INSTRUCTION}\n\n{_asked(example.explanation, list(example.tokens))}"),
        Message("assistant", answer),
        Message("user", _asked(explanation, [visible(token) for token in tokens])),
    )


def _asked(explanation: str, tokens: list[str]) -> str:
    return f"The neuron reacts to: {visible(explanation)}\n\n" + "\n".join(tokens)
