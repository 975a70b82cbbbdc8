"""Adam for a handful of named tensors: torch's fused update, its state in plain dictionaries.

The update is one launch for all tensors together. torch.optim.Adam would call the same function, but making one imports
torch's compiler, which costs a worker some two seconds that a small training does not have; and a state of plain tensors by
name is saved, restored and reset feature by feature without ceremony.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim.adam import adam

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


class Adam:
    """Updates `parameters` in place. `exp_avg` and `exp_avg_sq` hold the moments by name."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self.parameters = dict(parameters)
        self.exp_avg = {name: torch.zeros_like(tensor) for name, tensor in parameters.items()}
        self.exp_avg_sq = {name: torch.zeros_like(tensor) for name, tensor in parameters.items()}
        # A count for each tensor, beside it on its device: torch counts all of them, so they must be tensors of their own.
        self.n_steps = {name: tensor.new_zeros(()) for name, tensor in parameters.items()}

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor], learning_rate: float) -> None:
        by_name = (self.parameters, gradients, self.exp_avg, self.exp_avg_sq, self.n_steps)
        parameters, found, exp_avg, exp_avg_sq, n_steps = ([each[name] for name in self.parameters] for each in by_name)
        adam(
            parameters,
            found,
            exp_avg,
            exp_avg_sq,
            [],
            n_steps,
            fused=True,
            amsgrad=False,
            beta1=BETA1,
            beta2=BETA2,
            lr=learning_rate,
            weight_decay=0.0,
            eps=EPSILON,
            maximize=False,
        )

    @torch.no_grad()
    def forget(self, name: str, axis: int, indices: Tensor) -> None:
        """Zero the moments of some entries of a parameter along an axis."""
        for moments in (self.exp_avg, self.exp_avg_sq):
            moments[name].index_fill_(axis, indices, 0.0)
