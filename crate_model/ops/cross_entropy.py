"""Linear head and cross entropy in one, a few rows at a time: the logits tensor (tokens x vocabulary) never exists as a whole.

Both gradients are made in the forward pass, while a chunk's probabilities are at hand, so nothing is computed twice and the
backward pass only scales. Peak memory is one chunk of logits and the weight's gradient.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from crate_model.ops import precision

CHUNK_BYTES = {"cpu": 2**26, "cuda": 2**29}  # float32 logits of one chunk; large enough for full-speed products
SMALLEST_PROBABILITY = 1e-37  # below it -log(p) of a float32 probability is no longer exact


def linear_cross_entropy(
    hidden: Float[Tensor, "n d_model"], weight: Float[Tensor, "vocab d_model"], targets: Int[Tensor, " n"]
) -> Float[Tensor, ""]:
    """Mean cross entropy in nats of `hidden @ weight.T` against `targets`; targets of -1 are ignored. float32 (or float64).

    *Source:* equals `ops.reference.linear_cross_entropy` up to rounding; NaN when every target is ignored, as torch gives.
    """
    hidden, weight = precision.autocast(hidden, weight)
    return _LinearCrossEntropy.apply(hidden, weight, targets)


@torch.no_grad()
def token_losses(
    hidden: Float[Tensor, "n d_model"], weight: Float[Tensor, "vocab d_model"], targets: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """Cross entropy of every row in nats, 0 where the target is -1; float32 (or float64), without gradients."""
    hidden, weight = precision.autocast(hidden, weight)
    losses, wide_weight = [], _widened(weight)
    for rows, chunk_targets in _chunks(_widened(hidden), targets, weight.shape[0]):
        logits = _at_least_float32(rows @ wide_weight.T)
        losses.append(F.cross_entropy(logits, chunk_targets, ignore_index=-1, reduction="none"))
    return torch.cat(losses)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        wide_hidden, wide_weight = _widened(hidden), _widened(weight)
        needs_gradient = any(ctx.needs_input_grad)
        accumulator = torch.promote_types(weight.dtype, torch.float32)
        grad_weight = torch.zeros_like(weight, dtype=accumulator) if needs_gradient else None
        counted = (targets != -1).sum()
        total, grad_hidden = torch.zeros((), dtype=accumulator, device=hidden.device), []
        for rows, chunk_targets in _chunks(wide_hidden, targets, weight.shape[0]):
            logits = rows @ wide_weight.T
            probabilities = (
                torch.softmax(logits, -1, dtype=accumulator) if logits.dtype != accumulator else _softmax_(logits)
            )
            safe_targets = chunk_targets.clamp_min(0)[:, None]
            kept = (chunk_targets != -1).to(accumulator)
            total += (_losses(probabilities, rows, wide_weight, safe_targets) * kept).sum()
            if not needs_gradient:
                continue
            scale = (kept / counted)[:, None]
            probabilities.scatter_add_(1, safe_targets, torch.full_like(safe_targets, -1, dtype=accumulator))
            residual = probabilities.to(rows.dtype)
            grad_hidden.append((residual @ wide_weight).to(accumulator) * scale)
            grad_weight.addmm_(residual.T.to(accumulator), rows.to(accumulator) * scale)
        if needs_gradient:
            ctx.save_for_backward(torch.cat(grad_hidden).to(hidden.dtype), grad_weight.to(weight.dtype))
        return total / counted

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        if gradient.device.type == "cpu" and gradient == 1:
            return grad_hidden, grad_weight, None
        return grad_hidden * gradient.to(grad_hidden.dtype), grad_weight * gradient.to(grad_weight.dtype), None


def _chunks(hidden: Tensor, targets: Tensor, vocab_size: int) -> list[tuple[Tensor, Tensor]]:
    rows = max(1, CHUNK_BYTES.get(hidden.device.type, 2**26) // (4 * vocab_size))
    pieces = -(-hidden.shape[0] // rows)
    return list(zip(hidden.tensor_split(pieces), targets.tensor_split(pieces), strict=True)) if pieces else []


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if precision.widens(tensor) else tensor


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _softmax_(logits: Tensor) -> Tensor:
    """Softmax over the last dimension in place: each row is read from memory once."""
    return torch.softmax(logits, -1, out=logits)


def _losses(probabilities: Tensor, rows: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """-log of each target's probability; a row whose probability underflows is computed anew from its logits."""
    chosen = probabilities.gather(1, targets)[:, 0]
    losses = -chosen.log()
    lost = chosen < SMALLEST_PROBABILITY
    if lost.any():
        logits = _at_least_float32(rows[lost] @ weight.T)
        losses[lost] = F.cross_entropy(logits, targets[lost, 0], reduction="none").to(losses.dtype)
    return losses
