"""The linear layer and the embedding both architectures share."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from crate_model.config import ModelConfig
from crate_model.ops import precision


class Linear(nn.Linear):
    """nn.Linear whose products are widened to float32 on a CPU without native bfloat16 products."""

    def forward(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        if torch.is_autocast_enabled(x.device.type):
            return super().forward(x)
        return precision.linear(x, self.weight, self.bias)


class Embedding(nn.Module):
    """Token embedding plus a learned absolute position embedding; the token table is also the tied head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.positions = nn.Embedding(config.n_ctx, config.d_model)

    def forward(
        self, ids: Int[Tensor, "batch t"], positions: Int[Tensor, "#batch t"]
    ) -> Float[Tensor, "batch t d_model"]:
        return self.tokens(ids) + self.positions(positions)
