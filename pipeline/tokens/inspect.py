"""What a training step saw: the windows of its batch, with the documents they come from."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.order import window_ids
from pipeline.artifacts.tokens import TokenSplit
from pipeline.artifacts.vocabulary import gpt2_encoding


def batch_rows(artifact: Artifact, seed: int, batch_windows: int, n_ctx: int, step: int) -> list[dict[str, Any]]:
    """The batch of training step `step` (from 0), a row a window in the batch's order, as plain JSON values.

    `text` is the window's n_ctx input tokens, decoded; `documents` are those it touches, with `tokens`: how many of its
    inputs each has. Raises ValueError when train has not one window of n_ctx tokens.
    """
    split = TokenSplit(artifact, "train")
    ids = window_ids(seed, step, batch_windows, split.n_windows(n_ctx))
    return [_row(split, int(window), n_ctx) for window in ids]


def _row(split: TokenSplit, window: int, n_ctx: int) -> dict[str, Any]:
    start, end = window * n_ctx, (window + 1) * n_ctx
    documents = []
    position = start
    while position < end:
        document = split.document_at(position)
        next_position = min(end, document.start + document.n_tokens)
        documents.append(asdict(document) | {"tokens": next_position - position})
        position = next_position
    text = gpt2_encoding().decode(split.read(start, n_ctx).tolist())
    return {"window": window, "start": start, "documents": documents, "text": text}
