"""Calls to an OpenAI-compatible server: bounded, retried only where the status allows it, and without the key in any text."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx2

from pipeline.errors import ClientError, ConfigError

RETRIED = {408, 409, 425, 429, 500, 502, 503, 504}  # all others will not change by asking again
ABOUT_ONE_PROMPT = {400, 413, 422}  # too long, or filtered: this neuron's fault, not the server's
ATTEMPTS = 5
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
FAILURES_IN_A_ROW = (
    8  # prompts that failed for good with no reply between: then a short question tells whose fault it is
)
SHORT_QUESTION = "Say yes."
SHOWN_CHARACTERS = 200

Item = TypeVar("Item")
Reply = TypeVar("Reply")


@dataclass(frozen=True)
class ServerSpec:
    """Where a judge is. Plain data; the key is not in it."""

    url: str  # ends in /v1
    concurrency: int
    timeout_seconds: float


class PromptRefused(Exception):
    """The server answered that it will not do this one prompt, or failed at it again and again. It was not paid."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Server:
    """A client of one server. Safe to use from threads."""

    def __init__(self, spec: ServerSpec, key: str | None) -> None:
        self.spec, self._key = spec, key
        url = _checked_url(spec.url)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx2.Limits(max_connections=spec.concurrency)
        self._client = httpx2.Client(base_url=url, headers=headers, timeout=spec.timeout_seconds, limits=limits)
        self._failures = 0
        self._lock = threading.Lock()

    def model(self) -> str:
        """The name of the server's only (or first) model."""
        found = self.call("models", None)
        try:
            return found["data"][0]["id"]
        except (LookupError, TypeError) as error:
            what = f"{self.spec.url} lists no model"
            raise ClientError(what, fix="Set interpret.explainer_model or simulator_model.") from error

    def call(self, path: str, body: dict[str, Any] | None) -> Any:
        """The JSON answer. Raises PromptRefused for this prompt, ClientError when no call can succeed."""
        for attempt in range(ATTEMPTS):
            problem, after = self._attempt(path, body)
            if not isinstance(problem, str):
                with self._lock:
                    self._failures = 0
                return problem
            if attempt < ATTEMPTS - 1:
                time.sleep(max(after, pause_seconds(attempt)))
        if body is not None and not self._is_gone(path, body):
            raise PromptRefused(problem)
        raise ClientError(
            f"the judge at {self.spec.url} does not answer: {problem}",
            fix="Start it again, then run again: no call that was answered is repeated.",
            retryable=True,
        )

    def _is_gone(self, path: str, body: dict[str, Any]) -> bool:
        """Counts one more prompt that failed. Whether the server does: no reply came between so many, and none comes now."""
        with self._lock:
            self._failures += 1
            if self._failures < FAILURES_IN_A_ROW:
                return False
        asked = (
            {"messages": [{"role": "user", "content": SHORT_QUESTION}]}
            if "messages" in body
            else {"prompt": SHORT_QUESTION}
        )
        try:
            answers = self._client.post(path, json=body | asked | {"max_tokens": 1}).status_code == 200
        except (httpx2.TransportError, httpx2.DecodingError):
            answers = False
        if answers:
            with self._lock:
                self._failures = 0
        return not answers

    def _attempt(self, path: str, body: dict[str, Any] | None) -> tuple[Any, float]:
        """An answer; or, as text, what went wrong and may pass, with the seconds that the server asks to wait."""
        try:
            response = self._client.get(path) if body is None else self._client.post(path, json=body)
            if response.status_code == 200:
                answer = response.json()
                return (answer, 0.0) if _is_answer(answer, body) else ("its answer is not of the OpenAI form", 0.0)
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            return self._clean(f"{type(error).__name__} {error}"), 0.0
        except ValueError:
            return "its answer is not JSON", 0.0
        if response.status_code in RETRIED:
            return f"status {response.status_code}", _retry_after(response)
        what = f"status {response.status_code} {self._clean(response.text)}"
        if response.status_code in ABOUT_ONE_PROMPT and body is not None and not self._is_gone(path, body):
            raise PromptRefused(what)
        raise ClientError(
            f"the judge at {self.spec.url} refuses: {what}",
            fix="Check the address, the model's name and what it takes, and the key in CRATE_JUDGE_API_KEY, or in "
            "CRATE_SIMULATOR_API_KEY for a simulator at another address.",
            status=response.status_code,
        )

    def _clean(self, text: str) -> str:
        """One short line of a foreign text, the key taken out."""
        shown = text.replace(self._key, "***") if self._key else text
        return " ".join(shown.split())[:SHOWN_CHARACTERS]

    def each(self, call: Callable[[Item], Reply], items: Iterable[Item]) -> Iterator[tuple[int, Reply]]:
        """`call` of every item with its index, as they end; at most `concurrency` under way, drawn when there is room."""
        under_way: dict[Future[Reply], int] = {}
        failure: BaseException | None = None
        left = enumerate(items)
        with ThreadPoolExecutor(self.spec.concurrency, thread_name_prefix="judge") as pool:
            while True:
                while failure is None and len(under_way) < self.spec.concurrency and (drawn := next(left, None)):
                    under_way[pool.submit(call, drawn[1])] = drawn[0]
                if not under_way:
                    break
                for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                    index = under_way.pop(future)
                    if error := future.exception():
                        failure = failure or error  # first hand over what else was answered: it is paid
                    else:
                        yield index, future.result()
        if failure:
            raise failure


def _is_answer(answer: Any, body: dict[str, Any] | None) -> bool:
    if not isinstance(answer, dict):
        return False
    choices = answer.get("choices")
    return body is None or (isinstance(choices, list) and bool(choices) and isinstance(choices[0], dict))


def pause_seconds(attempt: int) -> float:
    """Before the next attempt: growing, with full jitter, so that many clients do not come back together."""
    return random.uniform(0, min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2**attempt))


def _retry_after(response: httpx2.Response) -> float:
    """What the server asks for; 0 where it says nothing or gives a date."""
    asked = response.headers.get("retry-after", "")
    return min(LONGEST_PAUSE_SECONDS, float(asked)) if asked.isascii() and asked.isdigit() else 0.0


def origin(url: str) -> tuple[str, str, int | None] | None:
    """What a key belongs to: scheme, host and port. None for what is no address."""
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, ValueError):
        return None
    port = parsed.port or {"http": 80, "https": 443}.get(parsed.scheme)
    return (parsed.scheme, parsed.host, port) if parsed.host else None


def _checked_url(url: str) -> str:
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, ValueError):
        parsed = httpx2.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError(
            "runtime.judge_url is no http(s) address", fix="Set it to the judge's address, ending in /v1."
        )
    if parsed.userinfo or parsed.query:
        raise ConfigError(
            "runtime.judge_url holds a name, a password or parameters",
            fix="Give the address alone, and the key in CRATE_JUDGE_API_KEY or a file that CRATE_JUDGE_API_KEY_FILE names.",
        )
    return str(parsed).rstrip("/") + "/"
