"""What a model's judging may cost, and what it has cost: a hard limit, kept before each call by its highest possible price.

Calls remembered from earlier runs count as well, so that a step that is killed and run again ends as if it had not been.
"""

from __future__ import annotations

from pipeline.config import InterpretConfig
from pipeline.interpret.backends import Usage

MILLION = 1e6
SAFETY = 1.25  # over the most tokens a byte seen so far


class Budget:
    """Prices and their sums. `reserve` before a call, `settle` after it."""

    def __init__(self, config: InterpretConfig) -> None:
        self.limit, self.price_in, self.price_out = config.budget, config.price_in, config.price_out
        self.calls = self.calls_made = self.tokens_in = self.tokens_out = 0
        self.reserved = 0.0
        self.tokens_a_byte = 1.0  # no tokenizer makes more tokens of a text than it has bytes
        self._seen_most = 0.0

    @property
    def spent(self) -> float:
        return self.price(self.tokens_in, self.tokens_out)

    def summary(self) -> dict[str, float]:
        """What the replies that were used cost, whoever paid, and whenever."""
        tokens = {"tokens_in": self.tokens_in, "tokens_out": self.tokens_out}
        return {"calls": self.calls, **tokens, "price": round(self.spent, 6)}

    def price(self, tokens_in: float, tokens_out: float) -> float:
        return (tokens_in * self.price_in + tokens_out * self.price_out) / MILLION

    def reserve(self, prompt_bytes: int, most_tokens_out: int) -> float | None:
        """The price put aside for a call, or None where it might exceed the limit."""
        price = self.price(prompt_bytes * self.tokens_a_byte, most_tokens_out)
        if self.limit and self.spent + self.reserved + price > self.limit:
            return None
        self.reserved += price
        return price

    def settle(self, reserved: float, usage: Usage, prompt_bytes: int, calls: int = 1) -> None:
        """A request of so many calls has been answered."""
        self.reserved -= reserved
        self.calls_made += calls
        if prompt_bytes and usage.tokens_in:
            self._seen_most = max(self._seen_most, usage.tokens_in / prompt_bytes)
            self.tokens_a_byte = min(1.0, self._seen_most * SAFETY)
        self.count(usage, calls)

    def count(self, usage: Usage, calls: int = 1) -> None:
        """Replies are used: new, or remembered."""
        self.calls += calls
        self.tokens_in += usage.tokens_in
        self.tokens_out += usage.tokens_out
