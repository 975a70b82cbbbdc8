"""The benchmark's yardstick is the same function as ours: same loss, same gradients, to rounding. Its GPU part runs, in small."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch

from crate_model.config import ModelConfig
from crate_model.model import LanguageModel


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """They are programs, not a package: found by their folder."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return {name: importlib.import_module(name) for name in ("plain_model", "model_on_gpu")}


def test_plain_model_and_ours_agree(benchmarks: dict[str, ModuleType]) -> None:
    torch.manual_seed(0)
    ours = LanguageModel(ModelConfig("crate", 2, 2, 32, 16, 97)).double()
    plain = benchmarks["plain_model"].PlainCrate(2, 2, 32, 16, 97).double().take_weights(ours)
    ids, targets = torch.randint(97, (2, 2, 16)).unbind()
    targets[0, :3] = -1
    losses = [model(ids, targets) for model in (ours, plain)]
    # The yardstick's loss is float32, as full float32 logits are part of what it is.
    torch.testing.assert_close(losses[0].float(), losses[1].float())
    for loss in losses:
        loss.backward()
    by_value = {
        tuple(parameter.flatten()[:3].tolist()): parameter.grad for parameter in ours.parameters() if parameter.ndim > 1
    }
    for parameter in plain.parameters():
        if parameter.ndim > 1:
            gradient = by_value.pop(tuple(parameter.flatten()[:3].tolist()))
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-8)
    assert not by_value


def test_what_a_gpu_measures_runs(benchmarks: dict[str, ModuleType]) -> None:
    """On a CPU and uncompiled; only that it runs and counts, not how fast."""
    on_gpu = benchmarks["model_on_gpu"]
    speed = on_gpu.training(ModelConfig("gpt2", 1, 2, 16, 8, 33), "cpu", 2, n_steps=2, warm_up=1, compiled=False)
    assert speed["tokens_per_second"] > 0 and speed["flops_per_second"] > speed["tokens_per_second"]
    seconds = on_gpu.ista_block("cpu", 16, 8, rounds=2, compiled=False)
    assert {name: len(taken) for name, taken in seconds.items()} == {"plain_compiled": 2, "ours": 2}
