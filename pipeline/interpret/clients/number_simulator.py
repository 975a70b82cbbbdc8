"""Number generation: a chat model writes every token's activation. For servers without log-probabilities of the prompt.

A written number is a choice, not an expectation, so the scores are those of another metric and are named so.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import numpy as np

from pipeline.interpret import replies
from pipeline.interpret.backends import Simulation, SimulationRequest
from pipeline.interpret.clients.http import PromptRefused, Server
from pipeline.interpret.clients.http_explainer import NO_TEXT, usage, written
from pipeline.interpret.prompts.generated import VERSION, ask_for_numbers
from pipeline.interpret.prompts.hostile import visible

TOKENS_A_LINE = 12  # that a model may write for one token, its tab and its number


class NumberSimulator:
    metric_suffix = "_generated"
    excerpts_a_request = 1

    def __init__(self, server: Server, model: str, revision: str, token_strings: list[str]) -> None:
        self.server, self.name, self.revision = server, model or server.model(), revision
        self.token_strings = token_strings

    @property
    def model(self) -> str:
        return f"{self.name} (generated numbers)"

    @property
    def identity(self) -> str:
        return f"http numbers/{self.name}@{self.revision}/{VERSION}"

    def most_tokens_out(self, request: SimulationRequest) -> int:
        return TOKENS_A_LINE * sum(len(tokens) for tokens in request.excerpts)

    def simulate(self, requests: Iterable[SimulationRequest]) -> Iterator[tuple[int, Simulation]]:
        return self.server.each(self.one, requests)

    def one(self, request: SimulationRequest) -> Simulation:
        (tokens,) = ([self.token_strings[token] for token in excerpt.tolist()] for excerpt in request.excerpts)
        turns = [{"role": m.role, "content": m.content} for m in ask_for_numbers(request.explanation, tokens)]
        most = self.most_tokens_out(request)
        body = {"model": self.name, "messages": turns, "temperature": 0, "max_tokens": most}
        started = time.perf_counter()
        try:
            answer = self.server.call("chat/completions", body)
        except PromptRefused as refusal:
            return Simulation(None, why=refusal.why, keep=False)
        asked = "".join(turn["content"] for turn in turns)
        cost = usage(answer, time.perf_counter() - started, asked, most)
        text = written(answer)
        if text is None:
            return Simulation(None, cost, why=NO_TEXT, keep=False)
        numbers = replies.numbers(text, [visible(token) for token in tokens])
        return Simulation(None, cost, unparsed=True) if numbers is None else Simulation([np.array(numbers)], cost)
