"""Our models against numbers made by running the published modules."""

import pytest
import torch
from golden_model import CASES, Golden, our_name

from crate_model import flops, taps
from crate_model.config import ModelConfig
from crate_model.model import LanguageModel

LOGITS_TOLERANCE = 2e-6  # absolute; the float32 reference itself moves this much between builds
FLOAT64_TOLERANCE = 1e-12
DTYPES = [torch.float32, torch.float64]  # the golden numbers are float32's where `f64` does not stand in their names
TAPS = {
    "ln1_out": "attention_norm",
    "shared_qkv": "attention_shared",
    "qkv": "qkv",
    "attn_mix": "attention_mix",
    "attn_out": "attention_out",
    "resid_mid": "residual_mid",
    "ln2_out": "feedforward_norm",
    "code_step1": "code_step1",
    "code_final": "code",
    "mlp_hidden": "code",
    "block_out": "out",
}


@pytest.fixture(params=CASES, ids=lambda case: "-".join(case))
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(*request.param)


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = LOGITS_TOLERANCE) -> None:
    torch.testing.assert_close(ours.detach(), theirs.to(ours.dtype), atol=tolerance, rtol=0)


def test_logits_and_losses(golden: Golden, dtype: torch.dtype) -> None:
    model = golden.model(dtype)
    close(model(golden["ids"]), golden["logits"])
    close(model(golden["ids"], golden["targets"]), golden["loss"])
    close(model(golden["ids"], golden["targets_masked"]), golden["loss_masked"])
    close(model(golden["short_ids"]), golden["short_logits"])
    close(model.head(model.hidden(golden["ids"])[:, -1:]), golden["last_position_logits"])


def test_token_losses_average_to_the_loss(golden: Golden) -> None:
    losses = golden.model().token_losses(golden["ids"], golden["targets_masked"])
    counted = golden["targets_masked"] != -1
    assert torch.all(losses[~counted] == 0)
    close(losses[counted].mean(), golden["loss_masked"])


def test_gradients(golden: Golden, dtype: torch.dtype) -> None:
    model = golden.model(dtype)
    model(golden["ids"], golden["targets"]).backward()
    assert set(golden.names("grad")) == set(golden.names("gradnorm")) == set(golden.names("param"))
    for name in golden.names("grad"):
        gradient, theirs = model.get_parameter(our_name(name)).grad, golden[f"grad/{name}"].to(dtype)
        torch.testing.assert_close(gradient, theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item())
        assert gradient.norm().item() == pytest.approx(golden[f"gradnorm/{name}"].item(), rel=1e-5)
    assert total_norm(model) == pytest.approx(golden["gradnorm_total"].item(), rel=1e-5)


def total_norm(model: LanguageModel) -> float:
    return sum(parameter.grad.double().square().sum().item() for parameter in model.parameters()) ** 0.5


def test_float64(golden: Golden) -> None:
    model = golden.model(torch.float64)
    close(model(golden["ids"]), golden["f64/logits"], FLOAT64_TOLERANCE)
    loss = model(golden["ids"], golden["targets"])
    close(loss, golden["f64/loss"], FLOAT64_TOLERANCE)
    loss.backward()
    for name in golden.names("f64/gradnorm"):
        norm = model.get_parameter(our_name(name)).grad.norm()
        close(norm, golden[f"f64/gradnorm/{name}"], FLOAT64_TOLERANCE)
    assert total_norm(model) == pytest.approx(golden["f64/gradnorm_total"].item(), abs=FLOAT64_TOLERANCE)


def test_every_intermediate_activation(golden: Golden, dtype: torch.dtype) -> None:
    model = golden.model(dtype)
    seen = set()
    with taps.read(model, taps.names(model)) as values:
        model(golden["ids"])
    for name in golden.names("act"):
        if name.endswith("mlp_out"):  # not a tap: it is block_out - resid_mid
            block = name.split("/")[0].removeprefix("block")
            ours = values[f"blocks.{block}.out"] - values[f"blocks.{block}.residual_mid"]
        else:
            ours = values[tap := tap_name(name)]
            seen.add(tap)
        close(ours, golden[f"act/{name}"])
    assert seen == set(taps.names(model))


def tap_name(published: str) -> str:
    if published in ("embed_sum", "lnf_out"):
        return {"embed_sum": "embed", "lnf_out": "final_norm"}[published]
    block, name = published.split("/")
    return f"blocks.{block.removeprefix('block')}.{TAPS[name]}"


def clamped_logits(
    model: LanguageModel, ids: torch.Tensor, tap_names: list[str], unit: int, value: float
) -> torch.Tensor:
    def clamp(activations: torch.Tensor) -> torch.Tensor:
        return activations.index_fill(-1, torch.tensor([unit]), value)

    with taps.edit(model, dict.fromkeys(tap_names, clamp)):
        return model(ids)


@pytest.mark.parametrize("tag", ["A", "B"])
@pytest.mark.parametrize(
    ("case", "tap"),
    [
        ("steer_code/neuron_value_layer", "code"),
        ("steer_code_layer0/neuron_value_layer", "code"),
        ("steer_attn/dim_value_layer", "attention_shared"),
    ],
)
def test_steering_crate(tag: str, case: str, tap: str, dtype: torch.dtype) -> None:
    golden = Golden("crate", tag)
    unit, value, layer = golden.numbers(case)
    ours = clamped_logits(golden.model(dtype), golden["ids"], [f"blocks.{int(layer)}.{tap}"], int(unit), value)
    close(ours, golden[case.split("/")[0] + "/logits"])


@pytest.mark.parametrize("tag", ["A", "B", "C"])
def test_steering_gpt2_clamps_the_layer_it_is_told(tag: str, dtype: torch.dtype) -> None:
    """The published GPT-2 ignores the layer and clamps the unit in every one. We clamp the layer that is named.

    Naming every layer reproduces the published numbers; naming one gives others.
    """
    golden = Golden("gpt2", tag)
    unit, value = golden.numbers("steer_all_layers/neuron_value")
    every = [f"blocks.{layer}.code" for layer in range(golden.config.n_layer)]
    model, ids, published = golden.model(dtype), golden["ids"], golden["steer_all_layers/logits"]
    close(clamped_logits(model, ids, every, int(unit), value), published)
    for tap in every:
        assert (clamped_logits(model, ids, [tap], int(unit), value) - published).abs().max() > 1e-3


def test_greedy_decoding_crops_to_the_context(golden: Golden, dtype: torch.dtype) -> None:
    prompt, expected = golden["greedy_prompt"], golden["greedy_output"]
    ours = golden.model(dtype).generate(prompt, expected.shape[1] - prompt.shape[1], temperature=0)
    assert torch.equal(ours, expected)


def test_six_adamw_updates(golden: Golden, dtype: torch.dtype) -> None:
    model = golden.model(dtype).train()
    parameters = {name: model.get_parameter(our_name(name)) for name in golden.names("param")}
    decayed = [parameter for name, parameter in parameters.items() if parameter.ndim >= 2]
    assert {name for name, parameter in parameters.items() if parameter.ndim >= 2} == golden.strings("train/decayed")
    others = [parameter for parameter in parameters.values() if parameter.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    rates, losses, norms = (golden.numbers(f"train/{name}") for name in ("lr", "loss", "gradnorm_before_clip"))
    for rate, expected_loss, expected_norm in zip(rates, losses, norms, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = model(golden["ids"], golden["targets"])
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        assert loss.item() == pytest.approx(expected_loss, abs=5e-6)
        assert norm.item() == pytest.approx(expected_norm, rel=1e-5)
    close(model(golden["ids"], golden["targets"]), golden["train/final_loss"], 5e-6)
    for name, parameter in parameters.items():
        ours, theirs = parameter.detach(), golden[f"train/final_param/{name}"]
        if name.endswith("b_qkv"):  # softmax ignores a key bias: its gradient is rounding noise, which Adam blows up
            query_and_value = torch.tensor([1, 0, 1]).repeat_interleave(golden.config.d_model).bool()
            ours, theirs = ours[query_and_value], theirs[query_and_value]
        close(ours, theirs, 5e-6)


def test_size_and_constants_are_the_published_ones(golden: Golden) -> None:
    """Parameters with and without the position table; the step size and lambda that the released code has as constants."""
    counted, config = flops.count_parameters(golden.config), ModelConfig()
    if golden.tag != "C":  # its biases are not in the file's count
        assert [counted.total, counted.total_without_positions] == golden.shared("nparams").tolist()
    if golden.architecture == "crate":
        assert [config.step_size, config.lambda_sparsity] == golden.shared("config/eta_lambda").tolist()


def test_initialisation_is_the_published_distribution() -> None:
    """Tag A is the published model as initialised: ours has the same standard deviations, parameter by parameter."""
    torch.manual_seed(0)
    for architecture in ("crate", "gpt2"):
        golden = Golden(architecture, "A")
        ours = LanguageModel(golden.config)
        for name in golden.names("param"):
            parameter, theirs = ours.get_parameter(our_name(name)).detach(), golden[f"param/{name}"]
            if parameter.ndim == 1 or name in ("ln1_gain", "ln1_bias"):
                assert torch.equal(parameter, theirs)
            else:
                assert parameter.std().item() == pytest.approx(theirs.std().item(), rel=0.12), name
