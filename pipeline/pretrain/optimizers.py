"""One factory for AdamW in all its builds. The choice is runtime: every build computes the same update."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.config import PretrainConfig

if TYPE_CHECKING:
    import torch
    from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Tensors of two or more dimensions decay, vectors (norms, biases) do not. *Source:* crate-lm, nanoGPT."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = (
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    )
    return [group for group in groups if group["params"]]


def build(name: str, groups: list[dict[str, Any]], config: PretrainConfig) -> torch.optim.Optimizer:
    """AdamW of the recipe over `groups`; the learning rate is set before every step."""
    import torch

    settings: dict[str, Any] = {"lr": 0.0, "betas": (config.beta1, config.beta2), "eps": config.epsilon}
    return torch.optim.AdamW(groups, **settings, fused=name == "torch_fused")


def fresh_state(optimizer: torch.optim.Optimizer, parameter: torch.Tensor) -> dict[str, Any]:
    """The state that this optimizer would give `parameter` in its first step: both moments zero, no steps done."""
    import torch

    moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
    if not isinstance(optimizer, torch.optim.AdamW):
        return {"step": 0, **moments}
    on_device = optimizer.defaults.get("fused")
    return {"step": torch.zeros((), device=parameter.device if on_device else None), **moments}
