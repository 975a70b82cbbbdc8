"""What a model's judging may cost, and what it has cost: a hard limit, kept before each call by its highest possible price.

Judges behind HTTP have a price, those on machines of one's own have none. Calls remembered from earlier runs count as well, so
that a step that is killed and run again ends as if it had not been.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config import InterpretConfig
from pipeline.interpret.backends import Usage

MILLION = 1e6


class Budget:
    """The limit, and the sums over all judges of a step."""

    def __init__(self, config: InterpretConfig) -> None:
        self.limit, self._prices = config.budget, (config.price_in, config.price_out)
        self.calls = self.calls_made = self.tokens_in = self.tokens_out = 0
        self.seconds = self.spent = self.reserved = 0.0
        self.in_vain = 0.0  # spent on replies that cannot be used and are not remembered
        self.before = 0.0  # spent, whatever for, by the end of the last round

    def begin_again(self) -> None:
        """Another round over the same neurons: replies that are remembered will be counted once more, and are not paid again."""
        self.before = self.most_spent
        self.calls = self.tokens_in = self.tokens_out = 0
        self.seconds, self.spent = 0.0, self.in_vain

    @property
    def most_spent(self) -> float:
        """What may have been paid by now: of the round before, some may not have been counted again yet."""
        return max(self.spent, self.before)

    def account(self, paid: bool) -> Account:
        """For one judge."""
        return Account(self, *self._prices) if paid else Account(self, 0.0, 0.0)

    def summary(self) -> dict[str, float]:
        """What the replies that were used cost, whoever paid, and whenever."""
        tokens = {"tokens_in": self.tokens_in, "tokens_out": self.tokens_out}
        return {"calls": self.calls, **tokens, "price": round(self.spent, 6)}


@dataclass(frozen=True)
class Account:
    """One judge's use of the budget: `reserve` before a call, `settle` after it."""

    budget: Budget
    price_in: float  # of a million tokens
    price_out: float

    def price(self, tokens_in: int, tokens_out: int) -> float:
        return (tokens_in * self.price_in + tokens_out * self.price_out) / MILLION

    def reserve(self, prompt_bytes: int, most_tokens_out: int) -> float | None:
        """The price put aside for a call, or None where it might exceed the limit.

        No tokenizer makes more tokens of a text than it has bytes.
        """
        price, budget = self.price(prompt_bytes, most_tokens_out), self.budget
        if budget.limit and price and budget.most_spent + budget.reserved + price > budget.limit:
            return None
        budget.reserved += price
        return price

    def settle(self, reserved: float, usage: Usage, calls: int = 1, used: bool = True) -> None:
        """A request of so many calls has been answered; its reply may be of no use."""
        self.budget.reserved -= reserved
        self.budget.calls_made += calls
        self.count(usage, calls)
        price = self.price(usage.tokens_in, usage.tokens_out)
        self.budget.before += price if self.budget.before else 0.0
        self.budget.in_vain += 0.0 if used else price

    def count(self, usage: Usage, calls: int = 1) -> None:
        """Replies are used: new, or remembered."""
        budget = self.budget
        budget.calls += calls
        budget.tokens_in += usage.tokens_in
        budget.tokens_out += usage.tokens_out
        budget.seconds += usage.seconds
        budget.spent += self.price(usage.tokens_in, usage.tokens_out)
