"""The models that are timed, ours and the plain ones, at the paper's sizes, and a step of theirs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from plain_gpt2 import PlainGPT2
from plain_model import PlainCrate
from torch import Tensor, nn

from crate_model.config import ModelConfig
from crate_model.flops import train_flops_per_token
from crate_model.model import LanguageModel
from gpu.session import Evidence
from pipeline.pretrain.meter import peak_flops

SIZES = {"1L": (1, 4, 128), "2L": (2, 4, 128), "3L": (3, 4, 128), "S": (6, 12, 768), "B": (12, 12, 768)}
ARCHITECTURES = ("gpt2", "crate")
ROWS = 32  # sequences a step of the large models: every step that is compared has as many
Batch = tuple[Tensor, Tensor]


def model_config(evidence: Evidence, architecture: Any, size: str) -> ModelConfig:
    n_layer, n_head, d_model = SIZES[size]
    if evidence.tiny:
        return ModelConfig(architecture, min(n_layer, 2), 2, 32, 64, 512)
    return ModelConfig(architecture, n_layer, n_head, d_model)


def ours(config: ModelConfig, device: str) -> LanguageModel:
    torch.manual_seed(0)
    with torch.device(device):
        return LanguageModel(config)


def plain(config: ModelConfig, device: str) -> nn.Module:
    """The yardstick, float32, with the weights that `ours` begins with."""
    shape = config.n_layer, config.n_head, config.d_model, config.n_ctx, config.vocab_size
    model = ours(config, device)
    with torch.device(device):
        yardstick = PlainCrate(*shape) if config.architecture == "crate" else PlainGPT2(*shape)
    if isinstance(yardstick, PlainCrate):
        return yardstick.take_weights(model)
    yardstick.load_state_dict(model.state_dict())
    return yardstick


def random_batch(config: ModelConfig, n_rows: int, device: str) -> Batch:
    """Ids (rows, n_ctx) of real tokens, and their targets."""
    words = min(50257, config.vocab_size)
    ids = torch.randint(words, (n_rows, config.n_ctx + 1), device=device)
    return ids[:, :-1], ids[:, 1:]


def compiled(evidence: Evidence, model: nn.Module, mode: str = "default") -> Any:
    """`model` under torch.compile, as the product compiles it: one graph, for this shape.

    In tiny sizes the graph is captured and differentiated, but no code is generated.
    """
    torch.compiler.reset()  # or a graph for another shape would count as a second try
    how = {"backend": "aot_eager"} if evidence.tiny else {"mode": mode}
    return torch.compile(model, fullgraph=True, dynamic=False, **how)


def step_of(model: nn.Module, run: Any, batch: Batch, autocast: bool = False) -> Callable[[], None]:
    """Forward and backward, as a function of nothing: what is repeated for every micro-batch. `run` is the model, or compiled."""
    device = batch[0].device.type

    def step() -> None:
        torch.compiler.cudagraph_mark_step_begin()  # the last step's gradients are gone: a CUDA graph may overwrite them
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            loss = run(*batch)
        loss.backward()
        model.zero_grad(set_to_none=True)

    return step


def speed(evidence: Evidence, config: ModelConfig, n_rows: int, milliseconds: float) -> dict[str, Any]:
    """What a step of `n_rows` sequences comes to; `mfu` counts true FLOPs and is said where the card's peak is known."""
    tokens_per_second = n_rows * config.n_ctx / milliseconds * 1000
    flops = tokens_per_second * train_flops_per_token(config)
    peak = peak_flops(evidence.session.card) if evidence.session.card else None
    told = {"rows": n_rows, "ms": milliseconds, "tokens_per_second": tokens_per_second, "tflops": flops / 1e12}
    return told | ({"mfu": flops / peak} if peak else {})
