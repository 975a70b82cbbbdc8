"""The oracles: each operation in plain torch as the mathematics is written, with torch's own gradients. Slow and trusted."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def ista_codes(
    z: Float[Tensor, "... d_model"],
    dictionary: Float[Tensor, "d_code d_model"],
    step_size: float,
    lambda_sparsity: float,
    n_steps: int,
) -> list[Float[Tensor, "... d_code"]]:
    """The code after every ISTA step, from zero, for `z` under the dictionary whose atoms are the rows of `dictionary`.

    Each step is `a <- relu(a + step_size * (z W^T - (a W) W^T) - step_size * lambda_sparsity)`. *Source:* the published module,
    which computes z W^T anew in every step; this oracle computes it once, which changes no bit.
    """
    analysis = z @ dictionary.T
    code = torch.relu(step_size * analysis - step_size * lambda_sparsity)
    codes = [code]
    for _ in range(n_steps - 1):
        gram_step = (code @ dictionary) @ dictionary.T
        code = torch.relu(code + step_size * (analysis - gram_step) - step_size * lambda_sparsity)
        codes.append(code)
    return codes


def linear_cross_entropy(
    hidden: Float[Tensor, "n d_model"],
    weight: Float[Tensor, "vocab d_model"],
    targets: Int[Tensor, " n"],
    ignore_index: int = -1,
) -> Float[Tensor, ""]:
    """Mean cross entropy in nats of `hidden @ weight.T` against `targets`, with the whole float32 logits tensor in memory."""
    logits = hidden @ weight.T
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, targets, ignore_index=ignore_index)


def causal_attention(
    query: Float[Tensor, "batch head t d_head"],
    key: Float[Tensor, "batch head t d_head"],
    value: Float[Tensor, "batch head t d_head"],
) -> Float[Tensor, "batch head t d_head"]:
    """softmax(q k^T / sqrt(d_head)) v over the positions up to one's own."""
    t = query.shape[-2]
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    future = torch.ones(t, t, dtype=torch.bool, device=query.device).triu(1)
    return scores.masked_fill(future, float("-inf")).softmax(dim=-1) @ value
