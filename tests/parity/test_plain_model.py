"""The benchmarks' yardsticks are the same functions as ours: same loss, same gradients, to rounding."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from crate_model.config import ModelConfig
from crate_model.model import LanguageModel

SHAPE = (2, 2, 32, 16, 97)  # layers, heads, width, context, words


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """They are programs, not a package: found by their folder."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return {name: importlib.import_module(name) for name in ("plain_model", "plain_gpt2")}


def batch() -> tuple[Tensor, Tensor]:
    ids, targets = torch.randint(97, (2, 2, 16)).unbind()
    targets[0, :3] = -1
    return ids, targets


def test_plain_crate_and_ours_agree(benchmarks: dict[str, ModuleType]) -> None:
    torch.manual_seed(0)
    ours = LanguageModel(ModelConfig("crate", *SHAPE)).double()
    plain = benchmarks["plain_model"].PlainCrate(*SHAPE).double().take_weights(ours)
    same_losses(ours, plain)
    by_value = {
        tuple(parameter.flatten()[:3].tolist()): parameter.grad for parameter in ours.parameters() if parameter.ndim > 1
    }
    for parameter in plain.parameters():
        if parameter.ndim > 1:
            gradient = by_value.pop(tuple(parameter.flatten()[:3].tolist()))
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-8)
    assert not by_value


def test_plain_gpt2_and_ours_agree(benchmarks: dict[str, ModuleType]) -> None:
    torch.manual_seed(0)
    ours = LanguageModel(ModelConfig("gpt2", *SHAPE)).double()
    plain = benchmarks["plain_gpt2"].PlainGPT2(*SHAPE).double()
    plain.load_state_dict(ours.state_dict())
    same_losses(ours, plain)
    gradients = {name: parameter.grad for name, parameter in plain.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(gradients.pop(name), parameter.grad, rtol=1e-4, atol=1e-8)
    assert not gradients


def same_losses(ours: nn.Module, plain: nn.Module) -> None:
    """And the backward pass of both. A yardstick's loss is float32, as full float32 logits are part of what it is."""
    ids, targets = batch()
    losses = [model(ids, targets) for model in (ours, plain)]
    torch.testing.assert_close(losses[0].float(), losses[1].float())
    for loss in losses:
        loss.backward()
