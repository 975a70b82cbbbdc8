"""torch.compile, trusted only as far as its gradients are those of the model that is not compiled.

Wrong gradients train, to something else, and nobody notices: torch 2.11 compiled an earlier form of our operations to gradients
of zero without a word. So every compiled run begins by comparing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from crate_model.model import LanguageModel
from crate_model.ops.precision import why_no_triton

# How far a compiled gradient may lie from the uncompiled one, over its norm: roundings, and codes that these move over ReLU's
# kink. Lost or doubled terms lie about 1 apart.
ALIKE = {"fp32": 0.02, "bf16": 0.3, "fp16": 0.3}
SMALL = 1e-3  # of all gradients' norm: a parameter's own below it may be rounding alone
# CUDA graphs replay a whole pass at once, where a narrow model's launches take longer than its work: off until a GPU has shown
# that they are right and faster under DeepSpeed.
CUDA_GRAPHS, NARROW = False, 256  # widths up to this
GRAPH_PASSES = 3  # before a graph is replayed: one warms up, one records
LOSS_SCALE = 1024.0  # a power of two: exact, and float16's gradients do not vanish


def why_not(stage: int, device: torch.device) -> str:
    """What keeps torch.compile from a model at this ZeRO stage; empty when nothing does."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    if stage == 3:
        return "ZeRO 3 gathers weights inside the forward pass"
    if device.type == "cuda":
        return why_no_triton()
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "there is no C++ compiler; install g++"
    return ""


def compiled_like_eager(
    model: LanguageModel, inputs: Tensor, targets: Tensor, precision: str
) -> tuple[Callable[..., Any], str]:
    """The model's forward method, compiled as one graph; and why it must not be used: empty when its gradients on this batch
    are the uncompiled ones. Raises OutOfMemoryError."""
    eager = _gradients(model.forward, model, inputs, targets)
    graphs = CUDA_GRAPHS and model.config.d_model <= NARROW
    mode = "reduce-overhead" if graphs else None
    forward = torch.compile(model.forward, fullgraph=True, dynamic=False, mode=mode)
    try:
        for _ in range(GRAPH_PASSES if graphs else 1):
            found = _gradients(forward, model, inputs, targets)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, OSError) as error:  # whatever the compiler consists of, its errors are these
        return forward, f"it failed to compile: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return forward, next(_differences(model, eager, found, ALIKE[precision]), "")


def _gradients(run: Callable[..., Any], model: nn.Module, inputs: Tensor, targets: Tensor) -> list[Tensor]:
    """Of every parameter. Not by `backward`, since DeepSpeed's hooks wait there for gradients that it adds up."""
    return list(torch.autograd.grad(run(inputs, targets) * LOSS_SCALE, list(model.parameters())))


def _differences(model: nn.Module, eager: list[Tensor], compiled: list[Tensor], alike: float) -> Iterator[str]:
    small = SMALL * float(torch.stack([gradient.float().norm() for gradient in eager]).norm())
    for (name, _), theirs, ours in zip(model.named_parameters(), eager, compiled, strict=True):
        norm, apart = float(theirs.float().norm()), float((ours.float() - theirs.float()).norm())
        if not apart <= alike * (norm + small):
            yield f"the compiled gradient of {name} is another one: {apart / (norm + small):.2g} of its norm away"
