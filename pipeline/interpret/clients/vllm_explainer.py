"""An explainer by vLLM in process: many prompts at once, their common beginning computed once. vLLM is not a dependency."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipeline.errors import ResourceError
from pipeline.interpret.backends import Text, Usage
from pipeline.interpret.clients.local_explainer import chat_ids
from pipeline.interpret.clients.local_model import LocalModel
from pipeline.interpret.prompts.prompt_set import Message


@dataclass(frozen=True)
class VllmExplainerSpec:
    """Plain data from which a worker makes its explainer."""

    model: LocalModel
    temperature: float
    most_tokens: int
    seed: int
    gpus: int  # that one copy of the model is spread over

    def make(self) -> VllmExplainer:
        return VllmExplainer(self)


class VllmExplainer:
    def __init__(self, spec: VllmExplainerSpec) -> None:
        try:
            from vllm import LLM, SamplingParams
        except ImportError as error:
            raise ResourceError(
                f"explainer vllm needs the package vllm ({error})",
                fix="pip install vllm on the GPU machines, or serve the model and set interpret.explainer to http.",
            ) from error
        self.spec = spec
        self.engine: Any = LLM(
            model=spec.model.path,
            revision=spec.model.revision or None,
            dtype=spec.model.dtype,
            seed=spec.seed,
            tensor_parallel_size=max(1, spec.gpus),
            enable_prefix_caching=True,
        )
        self.tokenizer = spec.model.tokenizer()
        self.sampling = SamplingParams(temperature=spec.temperature, max_tokens=spec.most_tokens, seed=spec.seed)

    @property
    def model(self) -> str:
        return self.spec.model.label

    @cached_property
    def identity(self) -> str:
        spec = self.spec
        return f"vllm/{spec.model.identity()}/{spec.temperature}/{spec.most_tokens}/{spec.seed if spec.temperature else ''}"

    def explain(self, prompts: Iterable[tuple[Message, ...]]) -> Iterator[tuple[int, Text]]:
        yield from enumerate(self.many(list(prompts)))

    def many(self, prompts: list[tuple[Message, ...]]) -> list[Text]:
        started = time.perf_counter()
        ids = [{"prompt_token_ids": chat_ids(self.tokenizer, prompt)} for prompt in prompts]
        outputs = self.engine.generate(ids, self.sampling, use_tqdm=False)
        seconds = (time.perf_counter() - started) / max(1, len(prompts))
        return [
            Text(o.outputs[0].text, Usage(len(o.prompt_token_ids), len(o.outputs[0].token_ids), seconds))
            for o in outputs
        ]
