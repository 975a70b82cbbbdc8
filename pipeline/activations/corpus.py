"""Which tokens are read: rows of n_ctx tokens of val, in fixed batches, and where in a row an excerpt may lie.

Row i is tokens [i * n_ctx, (i + 1) * n_ctx), as the model saw text in training: documents follow each other in a row. A batch is
`batch_rows` neighbouring rows, always the same ones, because the shape of a forward pass decides its rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.activations.priority import name_hashes
from pipeline.artifacts.records import quantile_bins
from pipeline.artifacts.tokens import TokenSplit
from pipeline.config import ActivationsConfig
from pipeline.errors import ConfigError


@dataclass(frozen=True)
class Span:
    """Excerpts of one width: how wide, and over how many of the first rows."""

    width: int
    n_rows: int
    edges: tuple[float, ...]  # inner edges of the quantile bins, as shares of the tokens
    n_bins: int  # that are sampled, from the lowest


def spans(config: ActivationsConfig, n_rows: int, n_rows_short: int) -> tuple[Span, Span]:
    """The long excerpts (OpenAI metrics) and the short ones (Anthropic metric)."""
    twelfths = tuple(i / 12 for i in range(1, 12))
    return (
        Span(config.window, n_rows, (0.5, 0.9, 0.99, 0.999), quantile_bins(config.protocol, long=True)),
        Span(config.window_short, n_rows_short, twelfths, quantile_bins(config.protocol, long=False)),
    )


class Corpus:
    """The rows of a val split that the settings ask for."""

    def __init__(self, split: TokenSplit, config: ActivationsConfig, n_ctx: int) -> None:
        """Raises ConfigError where the text is too short for what is asked."""
        self.split, self.config, self.n_ctx = split, config, n_ctx
        available = split.n_tokens // n_ctx
        self.n_rows = min(available, max(1, config.tokens // n_ctx))
        self.n_rows_short = min(available, max(1, config.tokens_short // n_ctx))
        self._check(available)
        self._document_starts = split.document_starts()
        self._document_ends = np.append(self._document_starts[1:], split.n_tokens)

    def _check(self, available: int) -> None:
        config = self.config
        if not available:
            raise ConfigError(
                f"val has {self.split.n_tokens} tokens, less than one window of {self.n_ctx}",
                fix="Hold out more text (tokens.val_fraction), or use a smaller model.n_ctx.",
            )
        check_widths(config, self.n_ctx)
        rows = min(self.n_rows, self.n_rows_short)
        if config.protocol == "corrected" and config.top + config.random > rows:
            raise ConfigError(
                f"{config.top} top and {config.random} random excerpts a neuron cannot be had from {rows} rows of text: "
                "each gives one excerpt at most",
                fix="Lower activations.top and activations.random, or raise activations.tokens and tokens_short, "
                "or hold out more text.",
            )
        if config.top > rows * self.n_ctx:
            raise ConfigError(
                f"{config.top} top excerpts a neuron cannot be had from {rows * self.n_ctx} tokens",
                fix="Lower activations.top, or raise activations.tokens and tokens_short.",
            )

    @property
    def spans(self) -> tuple[Span, Span]:
        return spans(self.config, self.n_rows, self.n_rows_short)

    @property
    def margin(self) -> int:
        """Tokens of the neighbouring batches that excerpts may cross into, on either side."""
        return self.config.window // 2 if self.config.protocol == "paper" else 0

    @property
    def n_batches(self) -> int:
        return -(-max(self.n_rows, self.n_rows_short) // self.config.batch_rows)

    def rows(self, batch: int) -> range:
        first = batch * self.config.batch_rows
        return range(first, min(first + self.config.batch_rows, max(self.n_rows, self.n_rows_short)))

    def n_tokens(self, batches: range) -> int:
        return sum(len(self.rows(batch)) for batch in batches) * self.n_ctx

    def ids(self, batch: int) -> np.ndarray:
        """Token ids (rows, n_ctx) int64 of a batch."""
        return self.split.rows([row * self.n_ctx for row in self.rows(batch)], self.n_ctx)

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises ConfigError for a token that a model of `vocab_size` tokens cannot have seen."""
        for batch in range(self.n_batches):
            rows = self.rows(batch)
            largest = int(self.split.read(rows.start * self.n_ctx, len(rows) * self.n_ctx).max())
            if largest >= vocab_size:
                raise ConfigError(
                    f"val holds token {largest}, but the model's vocabulary has {vocab_size}: another tokenizer's text",
                    fix="Give the model the tokens it was trained on, or set model.vocab_size and train anew.",
                )

    def positions(self, batch: int) -> np.ndarray:
        """(tokens,) int64: where in val a batch's tokens are."""
        rows = self.rows(batch)
        return np.arange(rows.start * self.n_ctx, rows.stop * self.n_ctx)

    def excerpt_starts(self, positions: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        """First tokens (p,) of excerpts around `positions` (p,) of val, and whether they fit into document and row.

        An excerpt has its token in the middle, or as near to it as the edges of the document and the row allow.
        """
        if self.config.protocol == "paper":
            return np.maximum(positions - width // 2, 0), np.ones(len(positions), bool)
        document = np.searchsorted(self._document_starts, positions, side="right") - 1
        row_begins = positions // self.n_ctx * self.n_ctx
        begins = np.maximum(self._document_starts[document], row_begins)
        ends = np.minimum(self._document_ends[document], row_begins + self.n_ctx)
        return np.clip(positions - width // 2, begins, ends - width), ends - begins >= width


def check_widths(config: ActivationsConfig, n_ctx: int) -> None:
    """Raises ConfigError for excerpts that no row of `n_ctx` tokens can hold."""
    if config.window_short >= config.window:
        raise ConfigError(
            f"activations.window_short is {config.window_short}, not less than activations.window, {config.window}",
            fix="The paper has 8 and 64.",
        )
    if config.window > n_ctx:
        raise ConfigError(
            f"excerpts of {config.window} tokens do not fit into rows of {n_ctx}",
            fix="Lower activations.window, or raise model.n_ctx.",
        )


def pilot_batches(corpus: Corpus, n_rows: int, n_tokens: int, seed: int) -> list[int]:
    """Batches among the first `n_rows` rows on which quantiles are measured: chosen by hash, together `n_tokens` or all."""
    n_batches = -(-n_rows // corpus.config.batch_rows)
    wanted = -(-n_tokens // (corpus.config.batch_rows * corpus.n_ctx))
    order = np.argsort(name_hashes(seed, "pilot", n_batches), kind="stable")
    return sorted(order[:wanted].tolist())
