"""The main simulator: a causal language model in torch that reads each excerpt once and computes no more than is asked.

The plain way runs the whole prompt for each excerpt and takes the whole vocabulary's logits at each position. Here the examples'
keys and values are computed once for all neurons, an explanation's once for all of its excerpts; excerpts of like length run
together; and only hidden states at asked places meet only the numbers' rows of the head. Where "10" is written "1" "0", a branch
token "1" beside each asked place, seen by nothing else, says how likely a "0" follows.

`plain_simulator.py` is the oracle. A short excerpt is held against it when a model is loaded, so that one whose head or attention
is not what is assumed here is refused.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pipeline.artifacts.vocabulary import token_strings
from pipeline.errors import ResourceError
from pipeline.interpret import expected
from pipeline.interpret.backends import Simulation, SimulationRequest, Usage
from pipeline.interpret.clients.local_model import LocalModel
from pipeline.interpret.clients.prompt_tokens import PromptTokens, Tail
from pipeline.interpret.prompts.prompt_set import PromptSet

BATCH_TOKENS = 8192  # of tails, a forward pass
BUCKET = 16  # lengths are padded to a multiple of it
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
        tails = [self.tokens.tail(tokens) for tokens in request.excerpts]
        order = sorted(range(len(tails)), key=lambda index: len(tails[index].ids))
        predictions: list[np.ndarray] = [np.empty(0)] * len(tails)
        with torch.inference_mode():
            prefix = self._prefix(self.tokens.opening(request.explanation))
            for batch in _batches([len(tails[index].ids) for index in order]):
                rows = [order[place] for place in batch]
                for row, values in zip(rows, self._expected(prefix, [tails[row] for row in rows]), strict=True):
                    predictions[row] = values
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
        hidden, branches = self._hidden(prefix, tails)
        return [self._read(tail, hidden[row], branches and branches[row]) for row, tail in enumerate(tails)]

    def _hidden(self, prefix: list[tuple[Any, Any]], tails: list[Tail]) -> tuple[list[Any], list[Any] | None]:
        """Hidden states (asked places, width) of each tail, and those after a branch token "1" where one is needed."""
        import torch
        from transformers import DynamicCache

        numbers = self.tokens.numbers
        branched = numbers.ten is None and not self.spec.paper
        past = prefix[0][0].shape[2]
        width = -(-max(len(tail.ids) for tail in tails) // BUCKET) * BUCKET
        asked = max(len(tail.asked) for tail in tails) if branched else 0
        ids = torch.zeros((len(tails), width + asked), dtype=torch.int64)
        positions = torch.arange(width + asked).repeat(len(tails), 1)
        seen = torch.zeros((len(tails), 1, width + asked, width + asked), dtype=torch.bool)
        seen[:, :, :width, :width] = torch.ones((width, width), dtype=torch.bool).tril()
        for row, tail in enumerate(tails):
            ids[row, : len(tail.ids)] = torch.as_tensor(tail.ids)
            if branched:
                places = torch.as_tensor(tail.asked)
                own = width + torch.arange(len(places))
                ids[row, own] = numbers.digits[1]
                positions[row, own] = places + 1
                seen[row, 0, own, :width] = torch.arange(width) <= places[:, None]
                seen[row, 0, own, own] = True
        mask = torch.nn.functional.pad(seen, (past, 0), value=True).to(self.network.device)
        additive = torch.zeros(mask.shape, dtype=self.network.dtype, device=mask.device)
        additive.masked_fill_(~mask, torch.finfo(self.network.dtype).min)
        cache = DynamicCache([(k.expand(len(tails), -1, -1, -1), v.expand(len(tails), -1, -1, -1)) for k, v in prefix])
        states = self.network.base_model(
            self._tensor(ids),
            attention_mask=additive,
            position_ids=self._tensor(positions + past),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        at = [states[row, self._tensor(np.maximum(tail.asked, 0))] for row, tail in enumerate(tails)]
        after = [states[row, width : width + len(tail.asked)] for row, tail in enumerate(tails)]
        return at, after if branched else None

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


def _batches(lengths: list[int]) -> Iterator[range]:
    """Ranges over ascending lengths whose padded tokens stay within BATCH_TOKENS."""
    first = 0
    for last in range(1, len(lengths) + 1):
        if last == len(lengths) or (last + 1 - first) * (lengths[last] + BUCKET) * 5 // 4 > BATCH_TOKENS:
            yield range(first, last)
            first = last
