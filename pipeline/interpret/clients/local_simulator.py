"""The main simulator: a causal language model in torch that reads each excerpt once and computes no more than is asked.

The plain way runs the whole prompt for each excerpt and takes the whole vocabulary's logits at each position. Here the examples'
keys and values are computed once for all neurons, an explanation's once for all of its excerpts; excerpts run together, none
padded, and not beyond the last asked place; and only hidden states at asked places meet only the numbers' rows of the head. Where
"10" is written "1" "0", a branch token "1" beside each asked place, seen by nothing else, says how likely a "0" follows.

`plain_simulator.py` is the oracle. A short excerpt is held against it when a model is loaded, so that one whose head or attention
is not what is assumed here is refused.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pipeline.artifacts.vocabulary import token_strings
from pipeline.errors import ResourceError
from pipeline.interpret import expected
from pipeline.interpret.backends import Simulation, SimulationRequest, Usage
from pipeline.interpret.clients.local_model import LocalModel
from pipeline.interpret.clients.packed import Piece, packed
from pipeline.interpret.clients.prompt_tokens import PromptTokens, Tail
from pipeline.interpret.prompts.prompt_set import PromptSet

ROW_TOKENS = 2048  # of tails, a forward pass
CHECK_HEAD_TOKENS = 32
CHECK_TOLERANCE = 0.2  # in 0..10, wide enough for 16-bit rounding


@dataclass(frozen=True)
class LocalSimulatorSpec:
    """Plain data from which a worker makes its simulator."""

    model: LocalModel
    prompts: PromptSet
    paper: bool

    def make(self) -> LocalSimulator:
        return LocalSimulator(self)


class LocalSimulator:
    metric_suffix = ""
    excerpts_a_request = 1 << 20

    def __init__(self, spec: LocalSimulatorSpec) -> None:
        self.spec = spec
        self.network, tokenizer = spec.model.load()
        self.tokenizer = tokenizer
        self.tokens = PromptTokens(tokenizer, spec.prompts, token_strings(), whole_lines=spec.paper)
        head = self.tokens.head()
        self.head = head[-CHECK_HEAD_TOKENS:]
        self._check()
        self.head = head
        del self._head_cache

    def _check(self) -> None:
        from pipeline.interpret.clients.plain_simulator import plain

        request = SimulationRequest("the word one", [np.array([530, 290, 734])])  # GPT-2's " one", " and", " two"
        ours, oracle = (self.one(request).predictions or [])[0], plain(self, request)[0]
        if np.abs(ours - oracle).max() > CHECK_TOLERANCE:
            raise ResourceError(
                f"{self.model} cannot be read by the local simulator: {ours.round(3)} instead of {oracle.round(3)}",
                fix="Choose another interpret.simulator_model, or serve it with vLLM and set interpret.simulator to http.",
            )

    @property
    def model(self) -> str:
        return self.spec.model.label

    @cached_property
    def identity(self) -> str:
        digits = "paper" if self.spec.paper else "corrected"
        return f"local/{self.spec.model.identity()}/{digits}"

    def most_tokens_out(self, request: SimulationRequest) -> int:
        return 0

    def simulate(self, requests: Iterable[SimulationRequest]) -> Iterator[tuple[int, Simulation]]:
        for index, request in enumerate(requests):
            yield index, self.one(request)

    def one(self, request: SimulationRequest) -> Simulation:
        """All excerpts of one explanation."""
        import torch

        started = time.perf_counter()
        tails = [_asked_of(self.tokens.tail(tokens)) for tokens in request.excerpts]
        predictions: list[np.ndarray] = []
        with torch.inference_mode():
            prefix = self._prefix(self.tokens.opening(request.explanation))
            for row in _rows(tails):
                predictions += self._expected(prefix, row)
        tokens_in = sum(len(tail.ids) for tail in tails)
        return Simulation(predictions, Usage(tokens_in, 0, time.perf_counter() - started))

    @cached_property
    def _head_cache(self) -> list[tuple[Any, Any]]:
        """Keys and values (1, heads, tokens, width) of the examples, a pair a layer."""
        return self._keys_and_values(self.head, [])

    def _prefix(self, opening: list[int]) -> list[tuple[Any, Any]]:
        return self._keys_and_values(opening, self._head_cache)

    def _keys_and_values(self, ids: list[int], past: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
        from transformers import DynamicCache

        cache: Any = DynamicCache(past or None)
        self.network.base_model(self._tensor([ids]), past_key_values=cache, use_cache=True)
        return [(layer.keys, layer.values) for layer in cache.layers]

    def _tensor(self, rows: Any) -> Any:
        import torch

        return torch.as_tensor(rows, device=self.network.device)

    def _expected(self, prefix: list[tuple[Any, Any]], tails: list[Tail]) -> list[np.ndarray]:
        """Expected activations of each tail's excerpt tokens."""
        from transformers import DynamicCache

        ids, positions, pieces = self._row(tails)
        past = prefix[0][0].shape[2]
        with packed(self.network, past, pieces):
            states = self.network.base_model(
                self._tensor(ids[None]),
                position_ids=self._tensor(positions[None] + past),
                past_key_values=DynamicCache(prefix),
                use_cache=True,
            ).last_hidden_state[0]
        found = []
        for piece, tail in zip(pieces, tails, strict=True):
            states_of_piece = states[piece.first : piece.first + len(piece.seen)]
            at = states_of_piece[self._tensor(np.maximum(tail.asked, 0))]
            found.append(self._read(tail, at, states_of_piece[len(tail.ids) :]))
        return found

    def _row(self, tails: list[Tail]) -> tuple[np.ndarray, np.ndarray, list[Piece]]:
        """Token ids and positions of all tails one after the other, each with its branch tokens behind it."""
        import torch

        ids: list[Sequence[int] | np.ndarray] = []
        positions: list[np.ndarray] = []
        pieces: list[Piece] = []
        first = 0
        for tail in tails:
            length = len(tail.ids)
            branches = tail.asked if self._branched else tail.asked[:0]
            ids += [tail.ids, np.full(len(branches), self.tokens.numbers.digits[1])]
            positions += [np.arange(length), branches + 1]
            seen = torch.eye(length + len(branches), dtype=torch.bool)
            seen[:length] = seen[:length].fill_(True).tril()
            seen[length:, :length] = torch.arange(length) <= torch.as_tensor(branches)[:, None]
            pieces.append(Piece(first, seen.to(self.network.device)))
            first += len(seen)
        return np.concatenate(ids).astype(np.int64), np.concatenate(positions), pieces

    @property
    def _branched(self) -> bool:
        return self.tokens.numbers.ten is None and not self.spec.paper

    def _read(self, tail: Tail, hidden: Any, branch: Any) -> np.ndarray:
        numbers = self.tokens.numbers
        if self.spec.paper:
            top = self._logits(hidden).topk(expected.PAPER_TOP)
            values = self._number_of_token[top.indices.cpu().numpy()]
            predicted = expected.from_top(values, top.values.float().cpu().numpy())
            return np.where(tail.asked < 0, 0.0, predicted)
        if numbers.ten is not None:
            return expected.from_numbers(self._at(hidden, [*numbers.digits, numbers.ten]))
        zero, end = self._at(branch, [numbers.digits[0], numbers.line_end]).T
        return expected.from_digits(self._at(hidden, numbers.digits), 1 / (1 + np.exp(end - zero)))

    def _at(self, hidden: Any, ids: list[int]) -> np.ndarray:
        return self._logits(hidden, ids).double().cpu().numpy()

    def _logits(self, hidden: Any, ids: list[int] | None = None) -> Any:
        """Logits (places, ids) of some tokens, or of all."""
        head = self.network.get_output_embeddings()
        weight = head.weight if ids is None else head.weight[self._tensor(ids)]
        bias = getattr(head, "bias", None)
        logits = hidden @ weight.T
        return logits if bias is None else logits + (bias if ids is None else bias[self._tensor(ids)])

    @cached_property
    def _number_of_token(self) -> np.ndarray:
        """(vocabulary,) the number 0..10 that a token's text is, or -1."""
        size = self.network.get_output_embeddings().weight.shape[0]
        texts = self.tokenizer.batch_decode([[i] for i in range(size)])
        return np.array([expected.number_of(text) for text in texts])


def _asked_of(tail: Tail) -> Tail:
    """Without what follows the last asked place: no prediction depends on it."""
    return Tail(tail.ids[: max(1, int(tail.asked.max(initial=0)) + 1)], tail.asked)


def _rows(tails: list[Tail]) -> Iterator[list[Tail]]:
    """Tails in their order, as many as fit into a row."""
    row: list[Tail] = []
    room = ROW_TOKENS
    for tail in tails:
        needed = len(tail.ids) + len(tail.asked)
        if row and needed > room:
            yield row
            row, room = [], ROW_TOKENS
        row.append(tail)
        room -= needed
    if row:
        yield row
