"""Named points: all of them, edits that change nothing change no bit, and unknown names are helped."""

import pytest
import torch

from crate_model import taps
from crate_model.config import ModelConfig
from crate_model.model import LanguageModel

CONFIGS = [
    ModelConfig("crate", 2, 2, 32, 16, 97),
    ModelConfig("crate", 2, 2, 32, 16, 97, n_ista_steps=3, ista_residual=True),
    ModelConfig("gpt2", 2, 2, 32, 16, 97),
    ModelConfig("gpt2", 2, 2, 32, 16, 97, bias=True, activation="gelu"),
]


@pytest.fixture(params=CONFIGS, ids=str)
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return request.param


@pytest.fixture
def model(config: ModelConfig) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(config).eval()


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(97, (2, 16), generator=torch.Generator().manual_seed(0))


def test_names_follow_the_computation() -> None:
    crate = taps.names(LanguageModel(CONFIGS[0]))
    block = (
        "attention_norm attention_shared attention_mix attention_out residual_mid feedforward_norm code_step1 code out"
    )
    assert crate == ["embed", *(f"blocks.{layer}.{name}" for layer in (0, 1) for name in block.split()), "final_norm"]
    gpt2 = taps.names(LanguageModel(CONFIGS[2]))
    block = block.replace("attention_shared", "qkv").replace("code_step1 ", "")
    assert gpt2 == ["embed", *(f"blocks.{layer}.{name}" for layer in (0, 1) for name in block.split()), "final_norm"]
    three_steps = taps.names(LanguageModel(CONFIGS[1]))
    assert [name for name in three_steps if "code" in name][:3] == [
        "blocks.0.code_step1",
        "blocks.0.code_step2",
        "blocks.0.code",
    ]


def test_read_gives_every_value_and_its_width(model: LanguageModel, ids: torch.Tensor) -> None:
    with taps.read(model, taps.names(model)) as values:
        assert values == {}
        model(ids)
    assert list(values) == taps.names(model)
    for name, value in values.items():
        width = model.config.d_code if ".code" in name else 3 * 32 if name.endswith("qkv") else 32
        assert value.shape == (2, 16, width), name
    assert torch.equal(values["final_norm"], model.hidden(ids))
    codes = [value for name, value in values.items() if ".code" in name]
    assert model.config.activation == "gelu" or all((code >= 0).all() for code in codes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_an_edit_with_the_value_read_is_a_no_op_to_the_bit(
    model: LanguageModel, ids: torch.Tensor, dtype: torch.dtype
) -> None:
    model = model.to(dtype)
    untapped = model(ids)
    for name in taps.names(model):
        with taps.read(model, [name]) as values:
            assert torch.equal(model(ids), untapped), name
        with taps.edit(model, {name: lambda _value, kept=values[name]: kept.clone()}):
            assert torch.equal(model(ids), untapped), name
    with taps.edit(model, dict.fromkeys(taps.names(model), torch.clone)):
        assert torch.equal(model(ids), untapped)
    assert torch.equal(model(ids), untapped)


def test_gradients_through_taps_agree(model: LanguageModel, ids: torch.Tensor) -> None:
    model(ids, ids).backward()
    untapped = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    with taps.read(model, taps.names(model)):
        model(ids, ids).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, untapped[name], rtol=1e-4, atol=1e-7)


def test_an_edit_changes_what_follows_and_only_inside_the_block(model: LanguageModel, ids: torch.Tensor) -> None:
    def ramp(value: torch.Tensor) -> torch.Tensor:  # not a constant: a LayerNorm would take that out again
        return value + torch.linspace(0, 1, value.shape[-1])

    untapped = model(ids)
    for name in taps.names(model):
        with taps.edit(model, {name: ramp}), taps.read(model, [name]) as edited:
            changed = model(ids)
        assert (changed - untapped).abs().max() > 1e-6, name
        with taps.read(model, [name]) as values:
            model(ids)
        assert torch.equal(edited[name], ramp(values[name]))
    assert torch.equal(model(ids), untapped)


def test_hooks_go_even_when_the_forward_fails(model: LanguageModel, ids: torch.Tensor) -> None:
    untapped = model(ids)
    with pytest.raises(ZeroDivisionError):
        with taps.edit(model, {"blocks.1.code": lambda _value: 1 / 0}):
            model(ids)
    assert torch.equal(model(ids), untapped)


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("blocks.1.codes", "blocks.1.code"), ("blocks.7.out", "blocks.1.out"), ("final", "final_norm"), ("zzz", "embed")],
)
def test_an_unknown_name_lists_near_ones(model: LanguageModel, wrong: str, near: str) -> None:
    with pytest.raises(ValueError, match=near):
        with taps.read(model, [wrong]):
            pass
    with pytest.raises(ValueError, match=near):
        with taps.edit(model, {wrong: torch.clone}):
            pass
