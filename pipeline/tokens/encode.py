"""Text to GPT-2 ids: exactly tiktoken's, many times faster where `fastokens` is installed.

tiktoken is the oracle. fastokens is only believed shard by shard: a sample of every shard's documents is encoded by both,
and the first difference makes the caller do that shard again with tiktoken alone.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.artifacts.vocabulary import END_OF_TEXT, gpt2_encoding, tokenizer_json

SAMPLE_CHARACTERS = 16_384  # of one document in every group: both encoders are compared on its beginning
LONE_SPACE = re.compile(r"(?<=\S) (?=\S)")  # a token always ends before it, so ids can be compared up to it


class Mismatch(Exception):
    """fastokens and tiktoken disagree on a document."""


@functools.cache
def fast_encoder() -> Any | None:
    """A fastokens tokenizer of GPT-2's vocabulary, or None where fastokens is not installed."""
    try:
        import fastokens
    except ImportError:
        return None
    return fastokens.Tokenizer.from_json_str(tokenizer_json())


def encode_exactly(texts: Sequence[str]) -> list[NDArray[np.uint16]]:
    """Ids of each text by tiktoken, then END_OF_TEXT. `<|endoftext|>` inside a text is plain text."""
    encoding = gpt2_encoding()
    return [np.array([*encoding.encode_ordinary(text), END_OF_TEXT], np.uint16) for text in texts]


def encode_fast(texts: Sequence[str]) -> list[NDArray[np.uint16]]:
    """As `encode_exactly`, by fastokens."""
    encoder = fast_encoder()
    assert encoder is not None
    ids_bytes, offset_bytes = encoder.encode_batch_flat(list(texts), split_special_tokens=True)
    offsets = np.frombuffer(offset_bytes, np.uint64).astype(np.int64)
    ids = np.insert(np.frombuffer(ids_bytes, np.uint32).astype(np.uint16), offsets[1:], np.uint16(END_OF_TEXT))
    ends = offsets[1:] + np.arange(1, len(offsets))
    return np.split(ids, ends[:-1])


def check(text: str, ids: NDArray[np.uint16]) -> None:
    """Compare `encode_fast`'s ids of a text with tiktoken's; of a long one, those of its beginning. Raises Mismatch."""
    if len(text) <= SAMPLE_CHARACTERS:
        expected = encode_exactly([text])[0]
    elif spaces := [*LONE_SPACE.finditer(text, 0, SAMPLE_CHARACTERS)]:
        expected = encode_exactly([text[: spaces[-1].start()]])[0][:-1]
        ids = ids[: len(expected)]
    else:  # where its tokens end is not known: the beginning is encoded alone, by both
        expected, ids = encode_exactly([text[:SAMPLE_CHARACTERS]])[0], encode_fast([text[:SAMPLE_CHARACTERS]])[0]
    if not np.array_equal(ids, expected):
        raise Mismatch(text[:80])
