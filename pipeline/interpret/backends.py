"""What an explainer and a simulator are, whoever they run on: in this process, behind HTTP, or as Ray actors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pipeline.interpret.prompts.prompt_set import Message


@dataclass(frozen=True)
class Usage:
    """What a call cost."""

    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = 0.0


def total(usages: Sequence[Usage]) -> Usage:
    return Usage(sum(u.tokens_in for u in usages), sum(u.tokens_out for u in usages), sum(u.seconds for u in usages))


@dataclass(frozen=True)
class Text:
    """An explainer's reply; None: it gave none (refused, filtered, empty, or failed again and again: `why`)."""

    text: str | None
    usage: Usage = Usage()
    why: str = ""
    keep: bool = True  # False: it was refused; not to be remembered, but asked again


@dataclass(frozen=True)
class Simulation:
    """Predictions of one request, an array (tokens,) an excerpt: expected activations 0..10, NaN where the judge gave none.

    None: the reply could not be read (`unparsed`), or it was refused (not to be kept): `why`.
    """

    predictions: list[np.ndarray] | None
    usage: Usage = Usage()
    why: str = ""
    unparsed: bool = False
    keep: bool = True


@dataclass(frozen=True)
class SimulationRequest:
    """Excerpts (token ids of the explained model) to be simulated with one explanation."""

    explanation: str
    excerpts: list[np.ndarray]


class Explainer(Protocol):
    @property
    def model(self) -> str:
        """For labels."""

    @property
    def identity(self) -> str:
        """Everything but the prompt that decides a reply: model, revision, dtype, parameters."""

    def explain(self, prompts: Iterable[tuple[Message, ...]]) -> Iterator[tuple[int, Text]]:
        """Replies with the index of their prompt, in any order; `prompts` is drawn from as there is room."""


class Simulator(Protocol):
    @property
    def model(self) -> str: ...

    @property
    def identity(self) -> str: ...

    @property
    def metric_suffix(self) -> str:
        """Appended to the metrics' names where the way of simulating makes another metric of them."""

    @property
    def excerpts_a_request(self) -> int:
        """How many excerpts of a neuron are best asked for together."""

    def most_tokens_out(self, request: SimulationRequest) -> int:
        """How many tokens the judge may write at most, for the budget."""

    def simulate(self, requests: Iterable[SimulationRequest]) -> Iterator[tuple[int, Simulation]]: ...
