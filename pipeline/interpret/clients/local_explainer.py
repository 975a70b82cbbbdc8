"""An explainer in this process: a chat model by transformers. For large runs a server or vLLM is faster."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipeline.errors import ResourceError
from pipeline.interpret.backends import Text, Usage
from pipeline.interpret.clients.local_model import LocalModel
from pipeline.interpret.prompts.hostile import neutral
from pipeline.interpret.prompts.prompt_set import Message


@dataclass(frozen=True)
class LocalExplainerSpec:
    """Plain data from which a worker makes its explainer."""

    model: LocalModel
    temperature: float
    most_tokens: int
    seed: int

    def make(self) -> LocalExplainer:
        return LocalExplainer(self)


class LocalExplainer:
    def __init__(self, spec: LocalExplainerSpec) -> None:
        self.spec = spec
        self.network, self.tokenizer = spec.model.load()
        self._known: tuple[list[int], Any] = ([], None)  # ids whose keys and values are kept: the examples

    @property
    def model(self) -> str:
        return self.spec.model.label

    @cached_property
    def identity(self) -> str:
        spec = self.spec
        return f"local/{spec.model.identity()}/{spec.temperature}/{spec.most_tokens}/{spec.seed if spec.temperature else ''}"

    def explain(self, prompts: Iterable[tuple[Message, ...]]) -> Iterator[tuple[int, Text]]:
        for index, prompt in enumerate(prompts):
            yield index, self.one(prompt)

    def one(self, prompt: tuple[Message, ...]) -> Text:
        """A reply. Sampling is seeded by the prompt, so that it does not depend on what was asked before."""
        import torch

        started = time.perf_counter()
        ids = chat_ids(self.tokenizer, prompt)
        digest = hashlib.sha256(f"{self.spec.seed}/{prompt}".encode("utf-8", "surrogatepass")).digest()
        sampling = {"do_sample": True, "temperature": self.spec.temperature, "top_p": 1.0, "top_k": 0}
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
            row = torch.as_tensor([ids], device=self.network.device)
            written = self.network.generate(
                row,
                attention_mask=torch.ones_like(row),
                past_key_values=self._examples(prompt, ids),
                max_new_tokens=self.spec.most_tokens,
                pad_token_id=self.tokenizer.eos_token_id,
                **(sampling if self.spec.temperature else {"do_sample": False, "temperature": None, "top_p": None}),
            )[0, len(ids) :]
        text = self.tokenizer.decode(written, skip_special_tokens=True)
        return Text(text, Usage(len(ids), len(written), time.perf_counter() - started))

    def _examples(self, prompt: tuple[Message, ...], ids: list[int]) -> Any:
        """Keys and values of what all prompts begin with: the turns before the last one. Computed once."""
        from transformers import DynamicCache

        if not self._known[0]:
            begin = _common(chat_ids(self.tokenizer, (*prompt[:-1], Message("user", "\x00"))), ids)
            cache: Any = DynamicCache()
            self.network.base_model(self._row(ids[:begin]), past_key_values=cache, use_cache=True)
            self._known = ids[:begin], [(layer.keys, layer.values) for layer in cache.layers]
        known, pairs = self._known
        return DynamicCache(pairs) if known == ids[: len(known)] else DynamicCache()

    def _row(self, ids: list[int]) -> Any:
        import torch

        return torch.as_tensor([ids], device=self.network.device)


def chat_ids(tokenizer: Any, prompt: Sequence[Message]) -> list[int]:
    """A conversation in the model's own format, up to where its reply begins. Contents cannot make special tokens."""
    if not tokenizer.chat_template:
        raise ResourceError(
            "the explainer's model has no chat format", fix="Choose an instruction-tuned interpret.explainer_model."
        )
    markers = tuple(tokenizer.all_special_tokens)
    turns = [{"role": m.role, "content": neutral(m.content, markers)} for m in prompt]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _common(first: list[int], second: list[int]) -> int:
    """Length of the common beginning."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(first), len(second)))
