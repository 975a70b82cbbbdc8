"""The benchmark's yardstick is the same function as ours: same loss, same gradients, to rounding."""

import importlib.util
from pathlib import Path

import torch

from crate_model.config import ModelConfig
from crate_model.model import LanguageModel

path = Path(__file__).parents[2] / "benchmarks" / "plain_model.py"
spec = importlib.util.spec_from_file_location("plain_model", path)
assert spec is not None and spec.loader is not None
plain_model = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plain_model)


def test_plain_model_and_ours_agree() -> None:
    torch.manual_seed(0)
    ours = LanguageModel(ModelConfig("crate", 2, 2, 32, 16, 97)).double()
    plain = plain_model.PlainCrate(2, 2, 32, 16, 97).double().take_weights(ours)
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
