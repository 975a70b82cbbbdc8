"""The local simulator's oracle: for each excerpt the whole prompt, the whole vocabulary's logits at each position, no reuse."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.interpret import expected
from pipeline.interpret.backends import SimulationRequest

if TYPE_CHECKING:
    from pipeline.interpret.clients.local_simulator import LocalSimulator


def plain(simulator: LocalSimulator, request: SimulationRequest, tens: bool = True) -> list[np.ndarray]:
    """Expected activations of every excerpt. Without `tens`, a 10 in two tokens is read as 1, which saves a pass a token."""
    prefix = simulator.head + simulator.tokens.opening(request.explanation)
    return [_excerpt(simulator, prefix, tokens, tens) for tokens in request.excerpts]


def _excerpt(simulator: LocalSimulator, prefix: list[int], tokens: np.ndarray, tens: bool) -> np.ndarray:
    tail = simulator.tokens.tail(tokens)
    numbers = simulator.tokens.numbers
    logits = _logits(simulator, prefix + tail.ids)[len(prefix) + np.maximum(tail.asked, 0)]
    if simulator.spec.paper:
        top = np.argsort(-logits, axis=1)[:, : expected.PAPER_TOP]
        texts = [[simulator.tokenizer.decode([token]) for token in row] for row in top.tolist()]
        values = np.array([[expected.number_of(text) for text in row] for row in texts])
        return np.where(tail.asked < 0, 0.0, expected.from_top(values, np.take_along_axis(logits, top, 1)))
    if numbers.ten is not None:
        return expected.from_numbers(logits[:, [*numbers.digits, numbers.ten]])
    zero_after_one = np.zeros(len(tail.asked))
    for index, place in enumerate(tail.asked.tolist() if tens else []):
        after = _logits(simulator, [*prefix, *tail.ids[: place + 1], numbers.digits[1]], last_only=True)[0]
        zero, end = np.exp(after[[numbers.digits[0], numbers.line_end]] - after.max())
        zero_after_one[index] = zero / (zero + end)
    return expected.from_digits(logits[:, numbers.digits], zero_after_one)


def _logits(simulator: LocalSimulator, ids: list[int], last_only: bool = False) -> Any:
    """Logits (positions, vocabulary) of a whole prompt."""
    import torch

    with torch.inference_mode():
        row = torch.as_tensor([ids], device=simulator.network.device)
        return simulator.network(row, use_cache=False, logits_to_keep=int(last_only)).logits[0].float().cpu().numpy()
