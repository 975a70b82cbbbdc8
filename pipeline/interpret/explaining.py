"""Explanations of neurons by an explainer: each prompt through the cache and within the budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from pipeline.interpret import replies, whole
from pipeline.interpret.backends import Explainer, Text
from pipeline.interpret.budget import Account
from pipeline.interpret.cache import JudgeCache, Row, WholeRow, key_of
from pipeline.interpret.excerpts import Block
from pipeline.interpret.prompts.prompt_set import Message, PromptSet, ShownExcerpt
from pipeline.interpret.refusals import Refusals
from pipeline.interpret.scoring import Status, quantise

Answer = tuple[str | None, Status | None]  # an explanation, or why there is none
Prompt = tuple[Message, ...]


class Explanations:
    """Asks `explainer` about the neurons of a block, each once."""

    def __init__(
        self,
        explainer: Explainer,
        prompts: PromptSet,
        cache: JudgeCache,
        account: Account,
        token_strings: list[str],
        most_tokens: int,
        raw: bool,
    ) -> None:
        self.explainer, self.prompts, self.cache, self.account = explainer, prompts, cache, account
        self.token_strings, self.most_tokens = token_strings, most_tokens
        self.raw = raw  # protocol `paper`: replies as they are
        self.refusals = Refusals()

    @cached_property
    def _begun(self) -> Any:
        return whole.begun("explain", self.explainer.identity, self.prompts, self.token_strings)

    def of(self, block: Block) -> list[Answer]:
        """One answer a neuron. A neuron that never fires is not asked about."""
        fires = (block.activations * block.mask).max((1, 2), initial=0) > 0
        rows = np.flatnonzero(fires).tolist()
        answers: list[Answer] = [(None, Status.SILENT)] * len(fires)
        keys = whole.keys(self._begun, [""] * len(rows), rows, block.tokens, block.activations, block.mask)
        known = self.cache.find_whole(keys)
        self.refusals.answered += len(known)
        for row, key in zip(rows, keys, strict=True):
            if key in known:
                reply, usage, calls = known[key]
                self.account.count(usage, calls)
                answers[row] = replies.explanation(reply.decode(), self.raw)
        asked = [(row, key) for row, key in zip(rows, keys, strict=True) if key not in known]
        kept: dict[bytes, WholeRow] = {}
        for (row, key), (answer, call) in zip(
            asked, self._ask([self._prompt(block, row) for row, _ in asked]), strict=True
        ):
            answers[row] = answer
            if call:
                kept[key] = (*call, 1)
        self.cache.keep_whole(kept)
        return answers

    def _prompt(self, block: Block, row: int) -> Prompt:
        fired = np.where(block.mask[row], block.activations[row], 0)
        values = quantise(fired, fired.max())
        return self.prompts.explain(
            [
                ShownExcerpt([self.token_strings[token] for token in tokens[mask].tolist()], numbers[mask])
                for tokens, numbers, mask in zip(block.tokens[row], values, block.mask[row], strict=True)
                if mask.any()
            ]
        )

    def _ask(self, prompts: Sequence[Prompt]) -> list[tuple[Answer, Row | None]]:
        """Answers, each with the call that is remembered of it."""
        keys = [key_of("explain", self.explainer.identity, *_flat(prompt)) for prompt in prompts]
        known = self.cache.find(keys)
        self.refusals.answered += len(known)
        answers: list[tuple[Answer, Row | None]] = [((None, Status.OVER_BUDGET), None)] * len(prompts)
        for index, key in enumerate(keys):
            if key in known:
                value, usage = known[key]
                self.account.count(usage)
                answers[index] = replies.explanation(value.decode(), self.raw), known[key]
        sent: list[tuple[int, float]] = []  # prompt, reserved price

        def to_send() -> Iterator[Prompt]:
            for index, prompt in enumerate(prompts):
                if keys[index] in known:
                    continue
                price = self.account.reserve(_size(prompt), self.most_tokens)
                if price is not None:
                    sent.append((index, price))
                    yield prompt

        for number, reply in self.explainer.explain(to_send()):
            index, price = sent[number]
            self.account.settle(price, reply.usage, used=reply.keep)
            answers[index] = self._answer(keys[index], reply)
        return answers

    def _answer(self, key: bytes, reply: Text) -> tuple[Answer, Row | None]:
        if not reply.keep:
            self.refusals.add(reply.why)
            return (None, Status.REFUSED), None
        self.refusals.answered += 1
        call = (reply.text or "").encode("utf-8", "replace"), reply.usage
        self.cache.keep({key: call})
        return replies.explanation(reply.text or "", self.raw), call


def _flat(prompt: Prompt) -> list[str]:
    return [part for message in prompt for part in (message.role, message.content)]


def _size(prompt: Prompt) -> int:
    return sum(len(part.encode("utf-8", "replace")) for part in _flat(prompt))
