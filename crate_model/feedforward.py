"""Two feed-forward parts of one signature: CRATE's ISTA sparse coding and GPT-2's MLP. In both, `code` is the neurons."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from crate_model.config import ModelConfig
from crate_model.layers import Linear
from crate_model.ops import precision
from crate_model.ops.ista import ista_codes

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": partial(F.gelu, approximate="tanh"),
    "gelu_erf": F.gelu,
}
Stream = Float[Tensor, "batch t d_model"]


class SparseCoding(nn.Module):
    """A non-negative sparse code of the stream under a learned dictionary, by unrolled ISTA, then its synthesis.

    One parameter serves for analysis, Gram step and synthesis: `dictionary` (d_code, d_model), whose rows are the atoms.
    *Source:* Bai & Ma 2025, section 2; the output replaces the stream unless `ista_residual` is set.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.dictionary = nn.Parameter(torch.empty(config.d_code, config.d_model))
        self.steps = nn.ModuleList(
            nn.Identity() for _ in range(config.n_ista_steps - 1)
        )  # places for taps: code_step1, ...
        self.code = nn.Identity()

    def forward(self, z: Stream, stream: Stream) -> Stream:
        """z: the normalised stream; stream: what the residual option adds to."""
        code = self.code(self._codes(z))
        out = precision.linear(*precision.autocast(code, self.dictionary.T))
        return stream + out if self.config.ista_residual else out

    def taps(self) -> dict[str, nn.Module]:
        return {f"code_step{step + 1}": tap for step, tap in enumerate(self.steps)} | {"code": self.code}

    def _codes(self, z: Stream) -> Float[Tensor, "batch t d_code"]:
        config = self.config
        step_size, lambda_sparsity = config.step_size, config.lambda_sparsity
        if not any(step._forward_hooks for step in self.steps):
            return ista_codes(z, self.dictionary, step_size, lambda_sparsity, config.n_ista_steps)
        code = ista_codes(z, self.dictionary, step_size, lambda_sparsity, 1)
        for tap in self.steps:  # someone looks between the steps: take them one by one, to the same bits
            code = ista_codes(z, self.dictionary, step_size, lambda_sparsity, 1, start=tap(code))
        return code


class Perceptron(nn.Module):
    """GPT-2's MLP; its neurons are the hidden units after the activation."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.up = Linear(config.d_model, config.d_code, bias=config.bias)
        self.code = nn.Identity()
        self.down = Linear(config.d_code, config.d_model, bias=config.bias)

    def forward(self, z: Stream, stream: Stream) -> Stream:
        return stream + self.down(self.code(self.activation(self.up(z))))

    def taps(self) -> dict[str, nn.Module]:
        return {"code": self.code}
