"""Simulations of excerpts by a simulator: each (explanation, excerpt) once, through the cache and within the budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pipeline.interpret import whole
from pipeline.interpret.backends import Simulation, SimulationRequest, Simulator, Usage, total
from pipeline.interpret.budget import Account
from pipeline.interpret.cache import JudgeCache, Row, WholeRow, hasher_of
from pipeline.interpret.excerpts import Block
from pipeline.interpret.prompts.prompt_set import CLOSING, PromptSet
from pipeline.interpret.refusals import Refusals
from pipeline.interpret.scoring import Status

UNPARSED, REFUSED = b"", b"refused"  # instead of predictions
MOST_MISSING = 0.1  # share of an excerpt's tokens that may lack a prediction before the reply counts as unparsed


@dataclass(frozen=True)
class _Asked:
    """A request that was sent."""

    keys: list[bytes]
    price: float  # reserved


class Simulations:
    """Asks `simulator` for predictions in the shape of a block."""

    def __init__(
        self,
        simulator: Simulator,
        prompts: PromptSet,
        cache: JudgeCache,
        account: Account,
        token_strings: list[str],
    ) -> None:
        self.simulator, self.prompts, self.cache, self.account = simulator, prompts, cache, account
        self.token_strings = token_strings
        self.refusals = Refusals()

    @cached_property
    def _begun(self) -> Any:
        return whole.begun("simulate", self.simulator.identity, self.prompts, self.token_strings)

    @cached_property
    def _lines(self) -> list[bytes]:
        return [self.prompts.line(token).encode("utf-8", "surrogatepass") for token in self.token_strings]

    @cached_property
    def _head(self) -> Any:
        return hasher_of("simulate", self.simulator.identity, self.prompts.simulation_head())

    @cached_property
    def _head_bytes(self) -> int:
        return len(self.prompts.simulation_head().encode())

    def of(self, block: Block, explanations: Mapping[int, str]) -> tuple[np.ndarray, dict[int, Status]]:
        """Predictions for the rows that have an explanation, NaN where the judge gave none, and why rows failed as a whole."""
        predicted = np.zeros(block.mask.shape, np.float32)
        keys = whole.keys(self._begun, list(explanations.values()), list(explanations), block.tokens, block.mask)
        known = self.cache.find_whole(keys)
        self.refusals.answered += len(known)
        new: dict[int, str] = {}
        for (row, text), key in zip(explanations.items(), keys, strict=True):
            if key in known:
                value, usage, calls = known[key]
                self.account.count(usage, calls)
                predicted[row] = np.frombuffer(value, np.float32).reshape(predicted[row].shape)
            else:
                new[row] = text
        if not new:
            return predicted, {}
        failed = self._by_call(block, new, predicted, dict(zip(explanations, keys, strict=True)))
        return predicted, failed

    def _by_call(
        self, block: Block, explanations: Mapping[int, str], predicted: np.ndarray, whole_keys: Mapping[int, bytes]
    ) -> dict[int, Status]:
        """Fills in `predicted` for rows that are not remembered as a whole, and remembers those it can."""
        tokens = _excerpts(block, explanations)
        wanted = {row: self._places(text, tokens[row]) for row, text in explanations.items()}
        calls = self._known(wanted)
        failed: dict[int, Status] = {}
        sent: list[_Asked] = []
        for number, reply in self.simulator.simulate(self._requests(wanted, explanations, tokens, calls, failed, sent)):
            asked = sent[number]
            self.account.settle(asked.price, reply.usage, len(asked.keys), used=reply.keep)
            calls |= self._take(reply, asked)
        _fill(predicted, block, wanted, {key: value for key, (value, _) in calls.items()}, failed)
        shared = Counter(key for places in wanted.values() for key in places)
        kept: dict[bytes, WholeRow] = {}
        for row, places in wanted.items():
            if row not in failed and all(shared[key] == 1 for key in places):  # else its calls would count twice
                costs = [calls[key][1] for key in places]
                kept[whole_keys[row]] = predicted[row].tobytes(), total(costs), len(costs)
        self.cache.keep_whole(kept)
        return failed

    def _places(self, explanation: str, excerpts: list[list[int]]) -> dict[bytes, list[int]]:
        """Key of each different excerpt of a neuron -> where it stands in the block."""
        begun = self._head.copy()
        begun.update(self.prompts.simulation_opening(explanation).encode("utf-8", "surrogatepass"))
        places: dict[bytes, list[int]] = {}
        for excerpt, tokens in enumerate(excerpts):
            if tokens:
                whole = begun.copy()
                whole.update(self._tail(tokens))
                places.setdefault(whole.digest(), []).append(excerpt)
        return places

    def _tail(self, tokens: list[int]) -> bytes:
        return b"".join([self._lines[token] for token in tokens]) + CLOSING.encode()

    def _known(self, wanted: Mapping[int, Mapping[bytes, list[int]]]) -> dict[bytes, tuple[bytes, Usage]]:
        found = self.cache.find(key for places in wanted.values() for key in places)
        known = {
            key: call for key, call in found.items() if call[0] != REFUSED
        }  # an earlier version remembered refusals
        self.refusals.answered += len(known)
        for _, usage in known.values():
            self.account.count(usage)
        return known

    def _requests(self, wanted, explanations, tokens, calls, failed, sent: list[_Asked]) -> Iterator[SimulationRequest]:
        """What is not known yet, as far as the budget goes."""
        together = self.simulator.excerpts_a_request
        for row, places in wanted.items():
            missing = [(key, excerpts[0]) for key, excerpts in places.items() if key not in calls]
            for first in range(0, len(missing), together):
                keys, excerpts = zip(*missing[first : first + together], strict=True)
                request = SimulationRequest(explanations[row], [np.array(tokens[row][e]) for e in excerpts])
                price = self.account.reserve(self._size(request), self.simulator.most_tokens_out(request))
                if price is None:
                    failed[row] = Status.OVER_BUDGET
                    break
                sent.append(_Asked(list(keys), price))
                yield request

    def _size(self, request: SimulationRequest) -> int:
        begun = self._head_bytes + len(self.prompts.simulation_opening(request.explanation).encode("utf-8", "replace"))
        return sum(begun + len(self._tail(tokens.tolist())) for tokens in request.excerpts)

    def _take(self, reply: Simulation, asked: _Asked) -> dict[bytes, Row]:
        """Remember a reply; its predictions and cost by key. In the ledger the first excerpt of a request bears its cost."""
        if reply.predictions is None:
            values = dict.fromkeys(asked.keys, UNPARSED if reply.unparsed else REFUSED)
        else:
            pairs = zip(asked.keys, reply.predictions, strict=True)
            values = {key: np.asarray(prediction, np.float32).tobytes() for key, prediction in pairs}
        costs = [reply.usage] + [Usage()] * (len(values) - 1)
        calls = {key: (value, cost) for (key, value), cost in zip(values.items(), costs, strict=True)}
        if reply.keep:
            self.refusals.answered += 1
            self.cache.keep(calls)
        else:
            self.refusals.add(reply.why)
        return calls


def _excerpts(block: Block, rows: Iterable[int]) -> dict[int, list[list[int]]]:
    """Token ids of neurons' excerpts; an excerpt's tokens lie together, so it is cut by its first and its number."""
    first, count = block.mask.argmax(2), block.mask.sum(2)
    return {
        row: [
            ids[f : f + n]
            for ids, f, n in zip(block.tokens[row].tolist(), first[row].tolist(), count[row].tolist(), strict=True)
        ]
        for row in rows
    }


def _fill(
    predicted: np.ndarray, block: Block, wanted, values: Mapping[bytes, bytes], failed: dict[int, Status]
) -> None:
    """Predictions in the shape of the block. An excerpt with too few of them makes its neuron unparsed."""
    first, count = block.mask.argmax(2), block.mask.sum(2)
    for row, places in wanted.items():
        for key, excerpts in places.items():
            if row in failed:
                break
            if values[key] == REFUSED:
                failed[row] = Status.REFUSED
                break
            prediction = np.frombuffer(values[key], np.float32)
            for excerpt in excerpts:
                n = int(count[row, excerpt])
                if len(prediction) != n or np.isnan(prediction).sum() > MOST_MISSING * n:
                    failed[row] = Status.UNPARSED
                    break
                begin = first[row, excerpt]
                predicted[row, excerpt, begin : begin + n] = prediction
