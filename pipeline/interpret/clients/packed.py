"""Several pieces of text in one row of a forward pass: each token sees the shared prefix and its own piece, by the piece's mask.

No padding, and the prefix's keys and values are there once. All of a network but attention treats tokens one by one, so only
attention is told of the pieces: transformers lets it be replaced by name.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

NAME = "crate_packed"
TOGETHER_TOKENS = (
    256  # short pieces are attended to together: the prefix's keys are laid beside their own for each such group
)
_now = threading.local()


@dataclass(frozen=True)
class Piece:
    first: int  # its place in the row
    seen: Any  # (tokens, tokens) bool tensor: which of the piece's tokens each of them sees


@contextmanager
def packed(network: Any, past: int, pieces: Sequence[Piece]) -> Iterator[None]:
    """Within, `network` reads a row of these pieces behind `past` tokens of cached prefix."""
    from torch.nn.functional import pad
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attention)
    usual = network.config._attn_implementation
    groups = [
        (piece.first, _additive(pad(piece.seen, (past, 0), value=True), network.dtype)) for piece in _grouped(pieces)
    ]
    _now.packing = usual, past, groups
    network.config._attn_implementation = NAME
    try:
        yield
    finally:
        network.config._attn_implementation = usual
        del _now.packing


def _grouped(pieces: Sequence[Piece]) -> Iterator[Piece]:
    """Neighbours that are short together, as one piece that keeps them apart by its mask."""
    import torch

    first, group = 0, list[Any]()
    for piece in pieces:
        if group and sum(map(len, [*group, piece.seen])) > TOGETHER_TOKENS:
            yield Piece(first, torch.block_diag(*group).bool())
            group = []
        first = first if group else piece.first
        group.append(piece.seen)
    if group:
        yield Piece(first, torch.block_diag(*group).bool())


def _additive(seen: Any, dtype: Any) -> Any:
    """A mask as numbers that are added, which all kinds of attention take."""
    import torch

    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)[
        None, None
    ]


def _attention(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any) -> tuple[Any, None]:
    import torch
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    usual, past, pieces = _now.packing
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    attention = ALL_ATTENTION_FUNCTIONS.get(usual, eager)
    found = []
    for first, mask in pieces:
        own = slice(first, first + mask.shape[2]), slice(past + first, past + first + mask.shape[2])
        keys, values = (torch.cat([all_[:, :, :past], all_[:, :, own[1]]], dim=2) for all_ in (key, value))
        found.append(attention(module, query[:, :, own[0]], keys, values, mask, **options)[0])
    return torch.cat(found, dim=1), None
