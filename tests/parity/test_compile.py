"""torch.compile takes the whole model, loss and gradients included, as one graph, and gives the same numbers."""

import shutil
import sys
from collections.abc import Iterator

import jaxtyping
import pytest
import torch

from crate_model import taps
from crate_model.config import ModelConfig
from crate_model.model import LanguageModel
from crate_model.ops import precision

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


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is published for Linux alone")
@pytest.mark.parametrize(("architecture", "n_kernels"), [("crate", 5), ("gpt2", 1)])
def test_a_gpus_graph_holds_the_triton_kernels(
    architecture: str, n_kernels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of a GPU in bfloat16, captured without one: loss and gradients are one graph with every kernel in it.

    CRATE has two shrunk products forward, two masked ones backward and the cross entropy, GPT-2 the cross entropy alone.
    """
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: True)
    monkeypatch.setattr(precision, "runs_triton", lambda _tensor: True)
    monkeypatch.setattr(precision, "widens", lambda _tensor: False)
    captured: list[torch.fx.GraphModule] = []

    def capture(graph: torch.fx.GraphModule, _inputs: object) -> object:
        captured.append(graph)
        return lambda *_inputs: (torch.zeros(()),)

    model = LanguageModel(ModelConfig(architecture, 1, 2, 16, 8, 64)).to(torch.bfloat16)
    ids = torch.randint(64, (2, 8))
    torch.compiler.reset()
    torch.compile(model, backend=capture, fullgraph=True)(ids, ids)
    (graph,) = captured
    nodes = [node for part in graph.modules() if isinstance(part, torch.fx.GraphModule) for node in part.graph.nodes]
    assert sum("triton_kernel_wrapper" in str(node.target) for node in nodes) == n_kernels
