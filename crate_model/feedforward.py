"""Two feed-forward parts of one signature: CRATE's ISTA sparse coding and GPT-2's MLP. In both, `code` is the neurons."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from crate_model.config import ModelConfig
from crate_model.layers import Linear
from crate_model.ops.ista import ista, ista_codes, synthesis

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
        out = self._encode_and_decode(z)
        return stream + out if self.config.ista_residual else out

    def taps(self) -> dict[str, nn.Module]:
        return {f"code_step{step + 1}": tap for step, tap in enumerate(self.steps)} | {"code": self.code}

    def _encode_and_decode(self, z: Stream) -> Stream:
        """One fused operation, which steps aside where someone looks at the code or between the steps: same bits."""
        config = self.config
        settings = self.dictionary, config.step_size, config.lambda_sparsity
        if any(step._forward_hooks for step in self.steps):
            code = ista_codes(z, *settings, n_steps=1)
            for tap in self.steps:
                code = ista_codes(z, *settings, n_steps=1, start=tap(code))
        elif self.code._forward_hooks:
            code = ista_codes(z, *settings, n_steps=config.n_ista_steps)
        else:
            return ista(z, *settings, n_steps=config.n_ista_steps)
        return synthesis(self.code(code), self.dictionary)


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
