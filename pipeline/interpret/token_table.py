"""The built-in judge: offline, no language model. It remembers, of each token, how strongly it fired where it was explained.

It predicts a token's activation as its mean over the explain excerpts, and 0 for a token it has not seen. So it measures how much
of a neuron is a matter of single tokens; context it cannot see. Its scores are not comparable with those of an LLM.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from pipeline.interpret.excerpts import Block, Chosen
from pipeline.interpret.layer import Judged, other_neurons
from pipeline.interpret.scoring import Status

LABEL = "token table (offline, no LLM)"
SHOWN_TOKENS = 8


@dataclass(frozen=True)
class TokenTables:
    """A table for each of `n_neurons` neurons, in one sorted array. Values are in 0..10 of the neuron's own maximum."""

    n_neurons: int
    keys: np.ndarray  # (entries,) int64: neuron row x vocabulary + token id, ascending
    values: np.ndarray  # (entries,) float32
    vocabulary: int

    def simulate(self, tokens: np.ndarray, tables: np.ndarray | None = None) -> np.ndarray:
        """Predicted activations of tokens (neurons, ...); row i is predicted by table `tables[i]` (its own by default)."""
        rows = np.arange(self.n_neurons) if tables is None else tables
        if not len(self.keys):
            return np.zeros(tokens.shape, np.float32)
        asked = rows.reshape(-1, *[1] * (tokens.ndim - 1)) * self.vocabulary + tokens
        place = np.minimum(np.searchsorted(self.keys, asked), len(self.keys) - 1)
        return np.where(self.keys[place] == asked, self.values[place], 0).astype(np.float32)

    def texts(self, token_strings: list[str]) -> list[str | None]:
        """For people: the strongest tokens of each neuron, quoted as JSON strings, with their mean; None where none fired."""
        rows = self.keys // self.vocabulary
        order = np.lexsort((self.keys, -self.values, rows))
        ends = np.searchsorted(rows[order], np.arange(self.n_neurons + 1))
        shown = []
        for first, last in pairwise(ends):
            best = [entry for entry in order[first : min(last, first + SHOWN_TOKENS)] if self.values[entry] > 0]
            words = [f"{_quoted(token_strings, self.keys[e] % self.vocabulary)} {self.values[e]:.1f}" for e in best]
            shown.append("fires on " + ", ".join(words) if words else None)
        return shown


@dataclass(frozen=True)
class TokenTableJudge:
    """The judge of the quickstart; see the module's text."""

    token_strings: list[str]
    label: str = LABEL
    chunk: int | None = None
    metric_suffix: str = ""

    def judge(self, chosen: Chosen, rng: np.random.Generator, controls: int) -> Judged:
        vocabulary = max(len(self.token_strings), int(chosen.explain.tokens.max(initial=0)) + 1)
        tables = explain(chosen.explain, max(vocabulary, int(chosen.score.tokens.max(initial=0)) + 1))
        texts = tables.texts(self.token_strings)
        partner = other_neurons(np.array([text is not None for text in texts], bool), rng)
        return Judged(
            texts=texts,
            failures=[Status.SILENT if text is None else None for text in texts],
            predicted=tables.simulate(chosen.score.tokens),
            other=tables.simulate(chosen.score.tokens, np.maximum(partner, 0)),
            empty=np.zeros(chosen.score.tokens.shape, np.float32),  # an empty table has seen no token
            controlled=partner >= 0,
            controls_refused=np.zeros(len(texts), bool),
        )


def explain(block: Block, vocabulary: int) -> TokenTables:
    """Tables of all neurons of a block of explain excerpts."""
    n_neurons = len(block.tokens)
    fired = np.maximum(block.activations, 0)
    maximum = fired.max(axis=(1, 2), initial=0)
    scaled = 10 * fired / np.where(maximum > 0, maximum, 1)[:, None, None]
    keys = (np.arange(n_neurons)[:, None, None] * vocabulary + block.tokens)[block.mask]
    unique, place = np.unique(keys, return_inverse=True)
    values = np.bincount(place, weights=scaled[block.mask]) / np.maximum(np.bincount(place), 1)
    return TokenTables(n_neurons, unique, values.astype(np.float32), vocabulary)


def _quoted(token_strings: list[str], token: int) -> str:
    return json.dumps(token_strings[token], ensure_ascii=False) if token < len(token_strings) else f"<{token}>"
