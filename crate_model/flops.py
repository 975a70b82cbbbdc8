"""Parameters, FLOPs and activation bytes of our implementation, in closed form. A multiply-add is two FLOPs; products only.

Attention is counted dense, over the whole context, as is the custom (a kernel that uses causality does half of that part).
The tests hold every formula to torch's traced count.
"""

from dataclasses import dataclass

from crate_model.config import ModelConfig


@dataclass(frozen=True)
class ParameterCount:
    """total: every weight, the tied head once; total_without_positions: the convention of the paper's table;
    non_embedding: the blocks and norms alone, without token and position tables."""

    total: int
    total_without_positions: int
    non_embedding: int

    @property
    def as_told(self) -> dict[str, int]:
        """The names under which plans, tables, manifests and trackers say these: `n_params` is without positions everywhere."""
        return {
            "n_params": self.total_without_positions,
            "n_params_with_positions": self.total,
            "n_params_non_embedding": self.non_embedding,
        }


def count_parameters(config: ModelConfig) -> ParameterCount:
    """CRATE: L((2 + n)d^2 + 5d) + 2d + Vd without positions; GPT-2: L((4 + 2n)d^2 + 2d) + d + Vd, plus its biases if any."""
    d, h = config.d_model, config.d_code
    if config.architecture == "crate":
        block, final_norm = 2 * d * d + h * d + 5 * d, 2 * d
    else:
        biases = 2 * d + 3 * d + d + h + d if config.bias else 0
        block, final_norm = 4 * d * d + 2 * h * d + 2 * d + biases, 2 * d if config.bias else d
    body = config.n_layer * block + final_norm
    tokens, positions = config.vocab_size * d, config.n_ctx * d
    return ParameterCount(body + tokens + positions, body + tokens, body)


def forward_flops_per_token(config: ModelConfig, n_ctx: int | None = None) -> int:
    """FLOPs of one token's forward pass in a sequence of `n_ctx` tokens, the head included.

    CRATE: L(4d^2 + 2t * 2dh + 4Td) + 2dV: every ISTA step and the synthesis use the dictionary, 2t products in all.
    GPT-2: L(8d^2 + 4dh + 4Td) + 2dV.
    """
    d, h, context = config.d_model, config.d_code, n_ctx or config.n_ctx
    crate = 4 * d * d + 2 * config.n_ista_steps * 2 * d * h
    block = crate if config.architecture == "crate" else 8 * d * d + 4 * d * h
    return config.n_layer * (block + 4 * context * d) + 2 * d * config.vocab_size


def train_flops_per_token(config: ModelConfig, n_ctx: int | None = None) -> int:
    """Forward and backward: three times the forward, since every product has two gradient products and none is repeated."""
    return 3 * forward_flops_per_token(config, n_ctx)


def six_n_flops_per_token(config: ModelConfig) -> int:
    """The usual estimate 6N + 12LdT, shown beside the truth: too low for CRATE, which uses its dictionary 2t times a token."""
    n = count_parameters(config).total_without_positions
    return 6 * n + 12 * config.n_layer * config.d_model * config.n_ctx


def activation_bytes(
    config: ModelConfig, n_sequences: int = 1, n_ctx: int | None = None, bytes_per_value: int = 4
) -> int:
    """Bytes kept between the forward and the backward pass for `n_sequences` of `n_ctx` tokens, beside the weights.

    In units of d_model a token, a CRATE block keeps its input, the normalised input, u, the mixed heads, x', z, t - 1 ISTA
    residuals and t codes; a GPT-2 block the same with q, k, v for u and the hidden units for the codes (and the units before
    the activation where it is no ReLU). The head keeps both its gradients. Beside it, one chunk of logits exists for a moment.
    """
    d, h, context = config.d_model, config.d_code, n_ctx or config.n_ctx
    steps, is_relu = config.n_ista_steps, config.activation == "relu"
    crate = 6 * d + (steps - 1) * d + steps * h
    block = crate if config.architecture == "crate" else 8 * d + (h if is_relu else 2 * h)
    statistics = 4 * (
        config.n_layer * (4 + config.n_head) + 2
    )  # float32: mean and deviation of norms, log-sum of attention
    per_token = bytes_per_value * (config.n_layer * block + 2 * d) + statistics + 8  # 8: the token's id
    return n_sequences * context * per_token + 8 * context + bytes_per_value * config.vocab_size * d
