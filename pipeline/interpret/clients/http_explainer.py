"""An explainer behind any OpenAI-compatible chat endpoint."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

from pipeline.interpret import replies
from pipeline.interpret.backends import Text, Usage
from pipeline.interpret.clients.http import PromptRefused, Server
from pipeline.interpret.prompts.prompt_set import Message

NO_TEXT = "a reply without text"


class HttpExplainer:
    def __init__(
        self, server: Server, model: str, revision: str, temperature: float, most_tokens: int, seed: int
    ) -> None:
        self.server, self.model, self.revision = server, model or server.model(), revision
        self.temperature, self.most_tokens, self.seed = temperature, most_tokens, seed

    @property
    def identity(self) -> str:
        return f"http/{self.model}@{self.revision}/{self.temperature}/{self.most_tokens}/{self.seed if self.temperature else ''}"

    def explain(self, prompts: Iterable[tuple[Message, ...]]) -> Iterator[tuple[int, Text]]:
        return self.server.each(self.one, prompts)

    def one(self, prompt: tuple[Message, ...]) -> Text:
        turns = [{"role": m.role, "content": m.content.encode("utf-8", "replace").decode()} for m in prompt]
        body = {
            "model": self.model,
            "messages": turns,
            "temperature": self.temperature,
            "max_tokens": self.most_tokens,
            "seed": self.seed,
        }
        started = time.perf_counter()
        try:
            answer = self.server.call("chat/completions", body)
        except PromptRefused as refusal:
            return Text(None, why=refusal.why, keep=False)
        seconds, text = time.perf_counter() - started, "".join(turn["content"] for turn in turns)
        reply, cost = written(answer), usage(answer, seconds, text, self.most_tokens)
        return Text(reply, cost) if reply else Text(None, cost, why=NO_TEXT, keep=False)


def written(answer: dict[str, Any]) -> str | None:
    """The text of a chat answer, without its reasoning; None when the model declined, or there is no text or only blanks."""
    choice = answer["choices"][0]
    message = choice.get("message")
    if not isinstance(message, dict) or message.get("refusal") or choice.get("finish_reason") == "content_filter":
        return None
    content = message.get("content")
    text = replies.answer(content) if isinstance(content, str) else ""
    return text if text.strip() else None


def usage(answer: dict[str, Any], seconds: float, prompt: str, most_tokens_out: int) -> Usage:
    """What the server says it counted; where it says nothing, the most it can have been, so that a budget holds all the same."""
    counted = answer.get("usage")
    counts = counted if isinstance(counted, dict) else {}
    most = {"prompt_tokens": len(prompt.encode("utf-8", "replace")), "completion_tokens": most_tokens_out}
    told = {name: counts.get(name) for name in most}
    tokens_in, tokens_out = (n if isinstance(n, int) and n >= 0 else most[name] for name, n in told.items())
    return Usage(tokens_in, tokens_out, seconds)
