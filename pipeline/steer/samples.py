"""Continuations of a prompt, and its likeliest next words."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from crate_model.model import LanguageModel
from pipeline.artifacts.vocabulary import N_TOKENS, gpt2_encoding, token_strings
from pipeline.errors import ConfigError
from pipeline.steer.edits import Edit, editing
from pipeline.steer.effects import logits_of

# On these it is decided which tokens a unit promotes, so that what it does to them can be measured on another. Everyday
# beginnings of different kinds, of at least OTHER_TOKENS tokens each.
OTHER_PROMPTS = (
    "The weather in the north was so cold and",
    "She opened the door of the old house and",
    "In the year after the war, the people",
    "The function returns a list of all the names",
    "He said that the government would not have",
    "The price of bread and of milk rose in",
    "The results of this study show that the",
    "On the other side of the river there",
    "import os, sys and json; then call main",
    "My brother and I went to the station by",
    "Water is made of hydrogen and oxygen, and",
    "Mr. President, I thank you for the honor of",
)
OTHER_TOKENS = 8


def other_prompts(prompt: str, model: LanguageModel) -> Tensor:
    """Ids (n, t) of OTHER_PROMPTS, cut to one length, without any that `prompt` begins with."""
    t = min(OTHER_TOKENS, model.config.n_ctx)
    own = gpt2_encoding().encode_ordinary(prompt)[:t]
    cut = [gpt2_encoding().encode_ordinary(other)[:t] for other in OTHER_PROMPTS]
    return torch.tensor([ids for ids in cut if ids[: len(own)] != own])


def prompt_ids(prompt: str, model: LanguageModel) -> Tensor:
    """Ids (1, t) of a prompt. Raises ConfigError when it is empty, longer than the context, or not of the model's vocabulary."""
    ids = gpt2_encoding().encode_ordinary(prompt)
    if not ids:
        raise ConfigError("the prompt is empty", fix="Give at least one word.")
    if len(ids) > model.config.n_ctx:
        told = f"the prompt has {len(ids)} tokens, but the model's context is {model.config.n_ctx}"
        raise ConfigError(told, fix="Shorten it.")
    if max(ids) >= model.config.vocab_size:
        told = f"the prompt has token {max(ids)}, but the model knows only {model.config.vocab_size}"
        raise ConfigError(told, fix="Use a model with GPT-2's vocabulary (vocab_size at least 50257).")
    return torch.tensor([ids])


def sample_text(
    model: LanguageModel, ids: Tensor, n_tokens: int, temperature: float, top_k: int, edit: Edit | None = None
) -> str:
    """What the model writes after ids (1, t), at most to the end of its context. The same ids give the same random numbers."""
    generator = torch.Generator().manual_seed(_seed(ids))
    n_tokens = min(n_tokens, model.config.n_ctx - ids.shape[1])
    if edit is None:
        written = model.generate(ids, n_tokens, temperature, top_k, generator)
    else:
        with editing(model, edit):
            written = model.generate(ids, n_tokens, temperature, top_k, generator)
    new = [token for token in written[0, ids.shape[1] :].tolist() if token < N_TOKENS]
    return gpt2_encoding().decode(new)


def _seed(ids: Tensor) -> int:
    return int.from_bytes(hashlib.sha256(str(ids.tolist()).encode()).digest()[:7], "big")


@dataclass(frozen=True)
class Word:
    """A next token and how likely it is."""

    text: str
    probability: float


def next_words(model: LanguageModel, prompt: str, top: int) -> list[Word]:
    """The `top` likeliest next tokens after a prompt."""
    probabilities = logits_of(model, prompt_ids(prompt, model))[0, -1].softmax(-1)
    best = probabilities.topk(min(top, len(probabilities)))
    strings = token_strings()
    return [Word(strings[token], p) for p, token in zip(best.values.tolist(), best.indices.tolist(), strict=True)]
