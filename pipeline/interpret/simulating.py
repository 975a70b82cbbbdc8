"""Simulations of excerpts by a simulator: each (explanation, excerpt) once, through the cache and within the budget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.interpret.backends import Simulation, SimulationRequest, Simulator, Usage
from pipeline.interpret.budget import Account
from pipeline.interpret.cache import JudgeCache, hasher_of
from pipeline.interpret.excerpts import Block
from pipeline.interpret.prompts.prompt_set import CLOSING, PromptSet
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
        self._lines = [prompts.line(token).encode("utf-8", "surrogatepass") for token in token_strings]
        self._head = hasher_of("simulate", simulator.identity, prompts.simulation_head())
        self._head_bytes = len(prompts.simulation_head().encode())

    def of(self, block: Block, explanations: Mapping[int, str]) -> tuple[np.ndarray, dict[int, Status]]:
        """Predictions for the rows that have an explanation, NaN where the judge gave none, and why rows failed as a whole."""
        tokens = _excerpts(block)
        wanted = {row: self._places(text, tokens[row]) for row, text in explanations.items()}
        values = {key: value for key, (value, _) in self._known(wanted).items()}
        failed: dict[int, Status] = {}
        sent: list[_Asked] = []
        for number, reply in self.simulator.simulate(
            self._requests(wanted, explanations, tokens, values, failed, sent)
        ):
            asked = sent[number]
            self.account.settle(asked.price, reply.usage, len(asked.keys))
            values |= self._take(reply, asked)
        return _filled(block, wanted, values, failed), failed

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
        known = self.cache.find(key for places in wanted.values() for key in places)
        for _, usage in known.values():
            self.account.count(usage)
        return known

    def _requests(
        self, wanted, explanations, tokens, values, failed, sent: list[_Asked]
    ) -> Iterator[SimulationRequest]:
        """What is not known yet, as far as the budget goes."""
        together = self.simulator.excerpts_a_request
        for row, places in wanted.items():
            missing = [(key, excerpts[0]) for key, excerpts in places.items() if key not in values]
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

    def _take(self, reply: Simulation, asked: _Asked) -> dict[bytes, bytes]:
        """Remember a reply; its predictions by key. The first excerpt of a request bears its cost in the ledger."""
        if reply.predictions is None:
            values = dict.fromkeys(asked.keys, UNPARSED if reply.unparsed else REFUSED)
        else:
            pairs = zip(asked.keys, reply.predictions, strict=True)
            values = {key: np.asarray(prediction, np.float32).tobytes() for key, prediction in pairs}
        costs = [reply.usage] + [Usage()] * (len(values) - 1)
        if reply.keep:
            self.cache.keep({key: (value, cost) for (key, value), cost in zip(values.items(), costs, strict=True)})
        return values


def _excerpts(block: Block) -> list[list[list[int]]]:
    """Token ids of every neuron's excerpts; an excerpt's tokens lie together, so it is cut by its first and its number."""
    first, count = block.mask.argmax(2).tolist(), block.mask.sum(2).tolist()
    return [
        [ids[f : f + n] for ids, f, n in zip(of_row, first[row], count[row], strict=True)]
        for row, of_row in enumerate(block.tokens.tolist())
    ]


def _filled(block: Block, wanted, values: Mapping[bytes, bytes], failed: dict[int, Status]) -> np.ndarray:
    """Predictions in the shape of the block. An excerpt with too few of them makes its neuron unparsed."""
    predicted = np.zeros(block.mask.shape, np.float32)
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
    return predicted
