"""Adam for a handful of named tensors, its state in plain dictionaries.

torch.optim's first step imports torch's compiler, which costs a worker two seconds that a small training does not have; and a
state of plain tensors by name is saved, restored and reset feature by feature without ceremony.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


class Adam:
    """Updates `parameters` in place. `exp_avg` and `exp_avg_sq` hold the moments by name, `n_steps` how many steps were made."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self.parameters = dict(parameters)
        self.exp_avg = {name: torch.zeros_like(tensor) for name, tensor in parameters.items()}
        self.exp_avg_sq = {name: torch.zeros_like(tensor) for name, tensor in parameters.items()}
        self.n_steps = 0

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor], learning_rate: float) -> None:
        self.n_steps += 1
        unbias1, unbias2 = 1 - BETA1**self.n_steps, 1 - BETA2**self.n_steps
        for name, parameter in self.parameters.items():
            mean = self.exp_avg[name].lerp_(gradients[name], 1 - BETA1)
            square = self.exp_avg_sq[name].mul_(BETA2).addcmul_(gradients[name], gradients[name], value=1 - BETA2)
            denominator = (square.sqrt() / unbias2**0.5).add_(EPSILON)
            parameter.addcdiv_(mean, denominator, value=-learning_rate / unbias1)

    @torch.no_grad()
    def forget(self, name: str, axis: int, indices: Tensor) -> None:
        """Zero the moments of some entries of a parameter along an axis."""
        for moments in (self.exp_avg, self.exp_avg_sq):
            moments[name].index_fill_(axis, indices, 0.0)
