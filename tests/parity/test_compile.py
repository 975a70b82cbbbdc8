"""torch.compile takes the whole model, loss and gradients included, as one graph, and gives the same numbers."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from compiled import needs_compiler, without_shape_checks  # noqa: F401  a fixture
from torch.overrides import TorchFunctionMode

from crate_model import taps
from crate_model.config import ModelConfig
from crate_model.model import LanguageModel
from crate_model.ops import cross_entropy, ista, precision


@pytest.mark.parametrize(
    ("architecture", "backend"),
    [("crate", "aot_eager"), ("gpt2", "aot_eager"), pytest.param("crate", "inductor", marks=needs_compiler)],
)
def test_loss_and_gradients_of_a_compiled_model(architecture: str, backend: str) -> None:
    compiled, eager = losses_and_gradients(architecture, torch.float32, backend)
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("native", [True, False], ids=["native", "widened"])
@pytest.mark.parametrize("architecture", ["crate", "gpt2"])
def test_a_bfloat16_model_is_one_graph_on_a_cpu(
    architecture: str, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the processor is asked for must not split the graph, whatever it answers."""
    monkeypatch.setattr(precision, "_ask_for_bf16", lambda: native)
    compiled, eager = losses_and_gradients(architecture, torch.bfloat16, "aot_eager")
    torch.testing.assert_close(compiled, eager)


def losses_and_gradients(architecture: str, dtype: torch.dtype, backend: str) -> list[dict[str, torch.Tensor]]:
    """Of the compiled model, as one graph, and of the same model as it is."""
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(architecture, 1, 2, 16, 8, 33)).to(dtype)
    ids = torch.randint(33, (2, 8))
    torch.compiler.reset()
    found = []
    for run in (torch.compile(model, backend=backend, fullgraph=True), model):
        model.zero_grad(set_to_none=True)
        loss = run(ids, ids)
        loss.backward()
        found.append({"loss": loss.detach()} | {name: p.grad for name, p in model.named_parameters()})
    return found


class Returned(TorchFunctionMode):
    """Every tensor that an operation got and gave back: written in place, or converted into what it was."""

    def __init__(self) -> None:
        super().__init__()
        self.same: list[torch.Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(result is given for given in (*args, *(kwargs or {}).values()) if isinstance(given, torch.Tensor)):
            self.same.append(result)
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("operation", ["synthesis", "code", "code from a start", "loss", "linear"])
def test_no_operation_returns_a_tensor_that_was_written_in_place(operation: str, dtype: torch.dtype) -> None:
    """torch.compile of torch 2.11 gives a Function that does so gradients of zero, and says nothing."""
    z, w, start = (torch.randn(size).to(dtype) for size in ((6, 16), (64, 16), (6, 64)))
    targets = torch.randint(64, (6,))
    functions: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "synthesis": (ista._Ista, (None, z, w, 0.1, 0.1, 2, True)),
        "code": (ista._Ista, (None, z, w, 0.1, 0.1, 2, False)),
        "code from a start": (ista._Ista, (start, z, w, 0.1, 0.1, 1, False)),
        "loss": (cross_entropy._LinearCrossEntropy, (z, w, targets)),
        "linear": (precision._WideLinear, (z.bfloat16(), w.bfloat16())),
    }
    function, arguments = functions[operation]
    context = SimpleNamespace(needs_input_grad=(True, True, False), save_for_backward=lambda *_: None)
    with torch.no_grad(), Returned() as seen:
        out = function.forward(context, *arguments)
    assert not any(out is tensor for tensor in seen.same)


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
@pytest.mark.parametrize("persistent", [False, True], ids=["a tile a program", "persistent"])
@pytest.mark.parametrize(("architecture", "n_kernels"), [("crate", 5), ("gpt2", 1)])
def test_a_gpus_graph_holds_the_triton_kernels(
    architecture: str, n_kernels: int, persistent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of a GPU in bfloat16, captured without one: loss and gradients are one graph with every kernel in it.

    CRATE has two shrunk products forward, two masked ones backward and the cross entropy, GPT-2 the cross entropy alone.
    """
    from crate_model.ops import ista_triton

    monkeypatch.setattr(ista_triton, "PERSISTENT", persistent)
    monkeypatch.setattr(ista_triton, "_multiprocessors", lambda: 132)
    for asked in ("has_triton", "has_triton_tensor_descriptor_host_tma"):
        monkeypatch.setattr(f"torch.utils._triton.{asked}", lambda: True)
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
