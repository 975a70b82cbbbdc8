"""A simulator behind a server that tells log-probabilities of its prompt (vLLM: `echo` with `logprobs`).

Servers differ, and some are wrong without a word: llama.cpp ignores `echo`; another gives each token's entry to the token before.
So the server is tried on a known text first, and refused with the reason if it cannot do this.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from pipeline.errors import ClientError
from pipeline.interpret import expected
from pipeline.interpret.backends import Simulation, SimulationRequest, Usage
from pipeline.interpret.clients.http import PromptRefused, Server
from pipeline.interpret.clients.http_explainer import usage
from pipeline.interpret.prompts.prompt_set import CLOSING, UNKNOWN, PromptSet

TOP = 20  # log-probabilities asked for; vLLM's default limit
NO_LOGPROBS = "a reply without log-probabilities of the prompt"
COUNTING = "one two three four five six seven eight nine ten " * 5
TEN = "\n a\t10\n"


class HttpSimulator:
    metric_suffix = ""
    excerpts_a_request = 1

    def __init__(
        self, server: Server, model: str, revision: str, prompts: PromptSet, paper: bool, token_strings: list[str]
    ) -> None:
        self.server, self.name, self.revision = server, model or server.model(), revision
        self.prompts, self.paper, self.token_strings = prompts, paper, token_strings
        self.whole_tens = self._probe()

    @property
    def model(self) -> str:
        return self.name if self.whole_tens or self.paper else f"{self.name} (reads 10 as 1)"

    @property
    def identity(self) -> str:
        return f"http/{self.name}@{self.revision}/{'paper' if self.paper else 'corrected'}/top{TOP}"

    def most_tokens_out(self, request: SimulationRequest) -> int:
        return len(request.excerpts)

    def simulate(self, requests: Iterable[SimulationRequest]) -> Iterator[tuple[int, Simulation]]:
        return self.server.each(self.one, requests)

    def one(self, request: SimulationRequest) -> Simulation:
        """All excerpts of a request, one after the other."""
        begin = self.prompts.simulation_head() + self.prompts.simulation_opening(request.explanation)
        predictions, cost = [], Usage()
        for tokens in request.excerpts:
            lines = "".join(self.prompts.line(self.token_strings[token]) for token in tokens.tolist())
            started = time.perf_counter()
            try:
                answer = self._ask(begin + lines + CLOSING)
            except PromptRefused as refusal:
                return Simulation(None, cost, why=refusal.why, keep=False)
            added = usage(answer, time.perf_counter() - started, begin + lines + CLOSING, most_tokens_out=1)
            cost = Usage(
                cost.tokens_in + added.tokens_in, cost.tokens_out + added.tokens_out, cost.seconds + added.seconds
            )
            echo = echoed(answer)
            if echo is None:  # it gave them when it was tried
                return Simulation(None, cost, why=NO_LOGPROBS, keep=False)
            values = read_echo(echo, len(tokens), (begin + lines).count(f"\t{UNKNOWN}"), self.paper)
            if values is None:
                return Simulation(None, cost, unparsed=True)
            predictions.append(values)
        return Simulation(predictions, cost)

    def _ask(self, prompt: str) -> dict[str, Any]:
        text = prompt.encode("utf-8", "replace").decode()
        body = {"model": self.name, "prompt": text, "max_tokens": 1, "temperature": 0, "logprobs": TOP, "echo": True}
        return self.server.call("completions", body)

    def _probe(self) -> bool:
        """Whether the server's tokenizer writes "10" as one token. Raises ClientError when it cannot be used at all."""
        try:
            echo = echoed(self._ask(COUNTING + TEN))
        except PromptRefused as refusal:
            raise self._unfit(refusal.why) from refusal
        if echo is None or not "".join(token for token, _ in echo).startswith(COUNTING[:40]):
            raise self._unfit("it ignores echo")
        least = expected.PAPER_TOP if self.paper else TOP
        most = max((len(entry) for _, entry in echo), default=0)  # of some tokens, two may be written alike
        if most < least:
            raise self._unfit(f"it gives {most} log-probabilities a token, and {least} are read")
        at = sum(_likeliest(entry) == token for token, entry in echo[10:50])
        one_off = sum(_likeliest(entry) == echo[10 + i + 1][0] for i, (_, entry) in enumerate(echo[10:50]))
        if one_off > at:
            raise self._unfit("it gives each token's log-probabilities to the token before it")
        return any(token == "10" for token, _ in echo)

    def _unfit(self, why: str) -> ClientError:
        return ClientError(
            f"the server at {self.server.spec.url} cannot simulate: {why}",
            fix="Serve the model with vLLM, or set interpret.simulator to transformers (a local model), or to http_numbers "
            "(generated numbers: another metric, and labelled so).",
        )


Echo = list[tuple[str, dict[str, float]]]  # each prompt token's text and what the model expected in its place


def echoed(answer: dict[str, Any]) -> Echo | None:
    """The prompt's tokens out of a completion; None where the server does not give them."""
    found = answer["choices"][0].get("logprobs")
    if not isinstance(found, dict):
        return None
    tokens, tops = found.get("tokens"), found.get("top_logprobs")
    if not isinstance(tokens, list) or not isinstance(tops, list) or len(tokens) != len(tops):
        return None
    if not all(isinstance(token, str) for token in tokens) or not all(t is None or isinstance(t, dict) for t in tops):
        return None
    return [(token, top or {}) for token, top in zip(tokens, tops, strict=True)]


def read_echo(echo: Echo, n_tokens: int, n_unknown: int, paper: bool) -> np.ndarray | None:
    """Expected activations at the last `n_tokens` of the `n_unknown` places where "unknown" follows a tab.

    None where there are more or fewer of them: another text was read there, and numbers would go to the wrong tokens.
    NaN where no number is among the likeliest tokens (`paper`: 0).
    """
    places = [
        index
        for index in range(1, len(echo))
        if echo[index][0] and UNKNOWN.startswith(echo[index][0]) and echo[index - 1][0].endswith("\t")
    ]
    if len(places) != n_unknown:
        return None
    return np.array([_expected(echo[place][1], paper) for place in places[len(places) - n_tokens :]], np.float32)


def _expected(top: dict[str, float], paper: bool) -> float:
    likeliest = sorted(top.items(), key=lambda item: -item[1])[: expected.PAPER_TOP if paper else None]
    values = np.array([[expected.number_of(token) for token, _ in likeliest]])
    if not (values >= 0).any():
        return 0.0 if paper else np.nan
    return float(expected.from_top(values, np.array([[logprob for _, logprob in likeliest]]))[0])


def _likeliest(top: dict[str, float]) -> str:
    return max(top, key=top.__getitem__, default="")
