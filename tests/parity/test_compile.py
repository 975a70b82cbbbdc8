"""torch.compile takes the whole model, loss and gradients included, as one graph, and gives the same numbers."""

import shutil
from collections.abc import Iterator

import jaxtyping
import pytest
import torch

from crate_model import taps
from crate_model.config import ModelConfig
from crate_model.model import LanguageModel

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None or " " in torch.__file__,
    reason="torch.compile on a CPU needs g++, and hands it paths with spaces unquoted",
)


@pytest.fixture(autouse=True)
def without_shape_checks() -> Iterator[None]:
    """The compiler cannot look into the checks that tests/shape_checks.py puts around every function."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize(
    ("architecture", "backend"),
    [("crate", "aot_eager"), ("gpt2", "aot_eager"), pytest.param("crate", "inductor", marks=needs_compiler)],
)
def test_loss_and_gradients_of_a_compiled_model(architecture: str, backend: str) -> None:
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(architecture, 1, 2, 16, 8, 33))
    ids = torch.randint(33, (2, 8))
    loss = model(ids, ids)
    loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    torch.compiler.reset()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    compiled_loss = compiled(ids, ids)
    compiled_loss.backward()
    torch.testing.assert_close(compiled_loss, loss)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-7)


def test_taps_work_on_a_compiled_model() -> None:
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig("crate", 1, 2, 16, 8, 33))
    ids = torch.randint(33, (2, 8))
    with taps.edit(model, {"blocks.0.code": lambda code: code.clamp_min(0.5)}):
        edited = model(ids)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager")
    torch.testing.assert_close(compiled(ids), model(ids))
    with taps.edit(model, {"blocks.0.code": lambda code: code.clamp_min(0.5)}):
        torch.testing.assert_close(compiled(ids), edited)
