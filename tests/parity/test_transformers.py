"""Hugging Face: our folders in transformers, and GPT-2 weights both ways."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import crate_model.hf as hf
from crate_model.checkpoint import load_checkpoint, load_config, save_checkpoint
from crate_model.config import ModelConfig
from crate_model.model import LanguageModel

CONFIGS = [
    ModelConfig("crate", 2, 2, 32, 48, 97),
    ModelConfig("crate", 1, 2, 32, 48, 97, expansion=2, n_ista_steps=3, step_size=0.05, ista_residual=True),
    ModelConfig("gpt2", 2, 2, 32, 48, 97, bias=True, activation="gelu"),
]


@pytest.fixture(params=CONFIGS, ids=lambda config: f"{config.architecture}-{config.n_layer}l")
def model(request: pytest.FixtureRequest) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(request.param).eval()


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(97, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def theirs(model: LanguageModel, tmp_path: Path) -> hf.CrateForCausalLM:
    save_checkpoint(model, tmp_path)
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    return loaded


def test_auto_model_has_the_same_bits(model: LanguageModel, theirs: hf.CrateForCausalLM, ids: torch.Tensor) -> None:
    assert isinstance(theirs, hf.CrateForCausalLM)
    assert theirs.config.to_model_config() == model.config
    assert theirs.config.num_hidden_layers == model.config.n_layer
    assert torch.equal(theirs(ids).logits, model(ids))
    assert torch.equal(theirs(ids, logits_to_keep=1).logits, model.head(model.hidden(ids)[:, -1:]))


def test_labels_are_shifted_inside_and_minus_100_ignored(
    model: LanguageModel, theirs: hf.CrateForCausalLM, ids: torch.Tensor
) -> None:
    labels = ids.clone()
    labels[:, :4] = -100
    targets = torch.where(labels == -100, -1, labels).roll(-1, dims=1)
    targets[:, -1] = -1
    torch.testing.assert_close(theirs(ids, labels=labels).loss, model(ids, targets))


def test_generate_with_a_cache_equals_without(
    model: LanguageModel, theirs: hf.CrateForCausalLM, ids: torch.Tensor
) -> None:
    options = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
    cached = theirs.generate(ids, **options)
    assert torch.equal(cached, theirs.generate(ids, use_cache=False, **options))
    assert torch.equal(cached, model.generate(ids, 20, temperature=0))
    padded = torch.cat((torch.zeros(2, 3, dtype=torch.long), ids), dim=1)
    mask = (torch.arange(15) >= 3).long().expand(2, 15)
    assert torch.equal(theirs.generate(padded, attention_mask=mask, **options)[:, 3:], cached)


def test_beam_search_reorders_the_cache(theirs: hf.CrateForCausalLM, ids: torch.Tensor) -> None:
    options = {"max_new_tokens": 10, "do_sample": False, "num_beams": 3, "pad_token_id": 0}
    assert torch.equal(theirs.generate(ids, **options), theirs.generate(ids, use_cache=False, **options))


def test_save_pretrained_reads_back_here_and_there(
    model: LanguageModel, theirs: hf.CrateForCausalLM, ids: torch.Tensor, tmp_path: Path
) -> None:
    theirs.save_pretrained(tmp_path / "again")
    assert load_config(tmp_path / "again") == model.config
    assert torch.equal(load_checkpoint(tmp_path / "again")(ids), model(ids))
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "again")(ids).logits, model(ids))
    assert AutoConfig.from_pretrained(tmp_path / "again").to_model_config() == model.config


def test_dtypes(model: LanguageModel, tmp_path: Path) -> None:
    save_checkpoint(model.to(torch.bfloat16), tmp_path)
    assert load_checkpoint(tmp_path).embed.tokens.weight.dtype == torch.bfloat16
    assert load_checkpoint(tmp_path, dtype=torch.float32).embed.tokens.weight.dtype == torch.float32
    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16


def test_a_fresh_transformers_model_is_initialised_as_ours() -> None:
    torch.manual_seed(0)
    fresh = AutoModelForCausalLM.from_config(hf.CrateConfig(n_layer=1, n_head=2, d_model=32, n_ctx=8, vocab_size=97))
    dictionary = fresh.model.blocks[0].feedforward.dictionary
    assert dictionary.abs().max() <= (6 / 32) ** 0.5
    assert dictionary.std().item() == pytest.approx((2 / 32) ** 0.5, rel=0.05)
    assert fresh.model.embed.tokens.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_gpt2s_end_of_text_is_the_default_where_the_vocabulary_has_it() -> None:
    assert hf.CrateConfig().eos_token_id == 50256
    assert hf.CrateConfig(vocab_size=97).eos_token_id is None


@pytest.mark.parametrize("activation", ["gelu_new", "relu", "gelu"])
def test_gpt2_weights_both_ways(activation: str, ids: torch.Tensor) -> None:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=97, n_positions=48, n_embd=32, n_layer=2, n_head=2, activation_function=activation,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    theirs = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    ours = hf.from_gpt2(theirs)
    assert ours.config.bias
    torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=1e-5, atol=2e-6)
    again = hf.to_gpt2(ours)
    torch.testing.assert_close(again(ids).logits, theirs(ids).logits, rtol=0, atol=0)


def test_our_gpt2_without_biases_becomes_transformers(ids: torch.Tensor) -> None:
    torch.manual_seed(0)
    ours = LanguageModel(ModelConfig("gpt2", 2, 2, 32, 48, 97)).eval()
    torch.testing.assert_close(hf.to_gpt2(ours)(ids).logits, ours(ids), rtol=1e-5, atol=2e-6)


def test_what_cannot_be_converted_is_refused() -> None:
    with pytest.raises(ValueError, match="CrateForCausalLM"):
        hf.to_gpt2(LanguageModel(CONFIGS[0]))
    odd = GPT2Config(
        vocab_size=9,
        n_positions=4,
        n_embd=8,
        n_layer=1,
        n_head=1,
        layer_norm_epsilon=1e-6,
        bos_token_id=1,
        eos_token_id=1,
    )
    with pytest.raises(ValueError, match="epsilon"):
        hf.from_gpt2(GPT2LMHeadModel(odd))
