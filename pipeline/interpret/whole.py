"""What was judged of a whole neuron: a layer that is judged again builds no prompt and looks up two rows a neuron, not sixty.

A shortcut to the calls in `cache.py`, never another answer: a row here repeats what those calls gave and cost. Its key is made of
all that prompts are made of: the judge's identity, the prompt set's texts, the vocabulary, the sources of this package, and the
neuron's excerpts. Where any of it differs, or a call failed, the neuron is looked up call by call.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.interpret.cache import hasher_of
from pipeline.interpret.prompts.prompt_set import PromptSet, ShownExcerpt


def begun(kind: str, identity: str, prompts: PromptSet, token_strings: list[str]) -> Any:
    """The hash that keys of all neurons begin with."""
    vocabulary = hasher_of("\0".join(token_strings)).digest()
    return hasher_of(kind, identity, repr(prompts), _sources(), vocabulary, *_texts(prompts))


def keys(begin: Any, texts: Sequence[str], rows: Sequence[int], *arrays: np.ndarray) -> list[bytes]:
    """A key for each of `rows` of arrays (neurons, excerpts, width), beside its text."""
    shape = repr(tuple((array.shape[1:], array.dtype.str) for array in arrays))
    found = []
    for text, row in zip(texts, rows, strict=True):
        whole = begin.copy()
        whole.update(hasher_of(shape, text, *(array[row].tobytes() for array in arrays)).digest())
        found.append(whole.digest())
    return found


def _texts(prompts: PromptSet) -> list[str]:
    """What a prompt set says of its own, some of which comes from a package: shown on a made-up neuron."""
    shown = [ShownExcerpt(["a", "b"], np.array(values)) for values in ([10, 3], [0, 0], [0, 0], [0, 0], [0, 0], [0, 0])]
    explain = [part for count in (1, 6) for m in prompts.explain(shown[:count]) for part in (m.role, m.content)]
    return [prompts.simulation_head(), prompts.simulation_opening("a"), prompts.line("a"), *explain]


@cache
def _sources() -> bytes:
    """Whatever is changed in this package, nothing that was made before is found here again."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.digest()
