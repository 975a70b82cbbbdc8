"""Named points of a model to read or edit: `blocks.3.code` is the neurons of layer 3 in either architecture.

A tap is a module's output, so reading and editing are torch's own forward hooks and nothing is threaded through `forward`.
"""

import difflib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from crate_model.model import LanguageModel


def names(model: LanguageModel) -> list[str]:
    """Every tap, in the order of the computation."""
    return list(_points(model))


@contextmanager
def read(model: LanguageModel, wanted: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Inside the block, each forward fills the yielded dict with the values at the named taps, (batch, t, width), not detached.

    Raises ValueError for an unknown name.
    """
    values: dict[str, Tensor] = {}
    points = _select(model, wanted)
    with ExitStack() as hooks:
        hooks.enter_context(_not_compiled())
        for name, module in points.items():
            handle = module.register_forward_hook(
                lambda _module, _inputs, value, name=name: values.__setitem__(name, value)
            )
            hooks.callback(handle.remove)
        yield values


@contextmanager
def edit(model: LanguageModel, edits: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Inside the block, the value at each named tap is replaced by `function(value)`, of the same shape.

    The function gets the value the forward computed and must return a new tensor rather than write into it. A read opened
    inside an edit sees the edited value. Raises ValueError for an unknown name.
    """
    points = _select(model, edits)
    with ExitStack() as hooks:
        hooks.enter_context(_not_compiled())
        for name, module in points.items():
            handle = module.register_forward_hook(lambda _module, _inputs, value, change=edits[name]: change(value))
            hooks.callback(handle.remove)
        yield


def _not_compiled() -> AbstractContextManager[object]:
    """A compiled model would not notice hooks that came after its compilation: inside a tap it runs uncompiled."""
    if "torch._dynamo" not in sys.modules:  # nothing was compiled, and importing it takes a second
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def _points(model: LanguageModel) -> dict[str, nn.Module]:
    points: dict[str, nn.Module] = {"embed": model.embed}
    blocks: Iterable[Any] = model.blocks
    for layer, block in enumerate(blocks):
        points |= {f"blocks.{layer}.{name}": module for name, module in block.taps().items()}
    return points | {"final_norm": model.final_norm}


def _select(model: LanguageModel, wanted: Iterable[str]) -> dict[str, nn.Module]:
    points = _points(model)
    selected = {}
    for name in wanted:
        if name not in points:
            near = difflib.get_close_matches(name, points, n=3, cutoff=0.5) or ["embed", "final_norm"]
            raise ValueError(
                f"no tap {name!r} in this model; near names: {', '.join(near)}. crate_model.taps.names(model) lists all"
            )
        selected[name] = points[name]
    return selected
