"""Linear head and cross entropy in one, a few rows at a time: the logits tensor (tokens x vocabulary) never exists as a whole.

Both gradients are made in the forward pass, while a chunk's probabilities are at hand, so no product is computed twice and
the backward pass only scales. Peak memory is one chunk of logits and the weight's gradient.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from crate_model.ops import precision

CHUNK_BYTES = {"cpu": 2**26, "cuda": 0}  # logits of one chunk: large enough for products at full speed; 0: by the card
SHARE_OF_THE_CARD = 1 / 40  # of a GPU's memory, for one chunk: 2 GiB of an H100's
BLOCK_BYTES = 2**21  # of rows widened at a time: a core's cache
SMALLEST_PROBABILITY = 1e-37  # of a float32: below it -log(p) is no longer exact


def linear_cross_entropy(
    hidden: Float[Tensor, "n d_model"], weight: Float[Tensor, "vocab d_model"], targets: Int[Tensor, " n"]
) -> Float[Tensor, ""]:
    """Mean cross entropy in nats of `hidden @ weight.T` against `targets` (-1: ignored), in float32 or float64.

    *Source:* equals `ops.reference.linear_cross_entropy` up to rounding; NaN when every target is ignored, as torch gives.
    """
    return _LinearCrossEntropy.apply(*precision.autocast(hidden, weight), targets)


@torch.no_grad()
def token_losses(
    hidden: Float[Tensor, "n d_model"], weight: Float[Tensor, "vocab d_model"], targets: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """Cross entropy of every row in nats, 0 where the target is -1; float32 or float64, without gradients."""
    hidden, weight = (precision.widened(tensor) for tensor in precision.autocast(hidden, weight))
    losses = torch.empty(len(targets), dtype=_exact(hidden), device=hidden.device)
    for rows, logits in _logits_by_chunk(hidden, weight):
        for block in _blocks(logits):
            wide, asked = logits[block].to(losses.dtype), targets[rows][block]
            losses[rows][block] = F.cross_entropy(wide, asked, ignore_index=-1, reduction="none")
    return losses


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    @precision.without_autocast
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        wide_hidden, wide_weight = precision.widened(hidden), precision.widened(weight)
        exact = _exact(hidden)
        counted = targets != -1
        share = (counted.to(exact) / counted.sum())[:, None]  # of each row in the mean; 0 where ignored
        safe_targets = targets.clamp_min(0)[:, None]
        loss = torch.zeros((), dtype=exact, device=hidden.device)
        wants_hidden, wants_weight, _ = ctx.needs_input_grad
        grad_hidden = torch.empty_like(hidden, dtype=exact) if wants_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=exact) if wants_weight else None
        for rows, logits in _logits_by_chunk(wide_hidden, wide_weight):
            losses, surprise = _losses_and_surprise(logits, safe_targets[rows], wide_hidden[rows], wide_weight)
            loss = loss + losses @ share[rows, 0]  # not in place: compiled by torch 2.11, that had no gradient
            if grad_hidden is not None:
                torch.mul(surprise @ wide_weight, share[rows], out=grad_hidden[rows])
            if grad_weight is not None:
                # The share is kept exact: rounded to 16 bits, it would scale all of the weight's gradient wrongly.
                weighted = (wide_hidden[rows] * share[rows]).to(surprise.dtype)
                precision.add_product_(grad_weight, surprise.T, weighted)
        narrow = [None if grad is None else grad.to(hidden.dtype) for grad in (grad_hidden, grad_weight)]
        ctx.save_for_backward(*narrow)
        return loss

    @staticmethod
    @once_differentiable
    @precision.without_autocast
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if not _branches_cost(gradient) and gradient == 1:
            return *ctx.saved_tensors, None
        scaled = (None if grad is None else grad * gradient.to(grad.dtype) for grad in ctx.saved_tensors)
        return *scaled, None


def _exact(tensor: Tensor) -> torch.dtype:
    """The dtype of losses and accumulated gradients: float32, or float64 for float64."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _logits_by_chunk(hidden: Tensor, weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """(rows, their logits) chunk by chunk. The chunks share one buffer: a chunk is lost when the next is asked for."""
    n_rows, n_words = hidden.shape[0], weight.shape[0]
    chunk_bytes = CHUNK_BYTES.get(hidden.device.type, 2**26) or _bytes_by_the_card()
    most = max(1, chunk_bytes // (n_words * hidden.element_size()))
    n_chunks = max(1, -(-n_rows // most))
    size = -(-n_rows // n_chunks)
    buffer = hidden.new_empty(size, n_words)
    for start in range(0, n_rows, max(1, size)):
        rows = slice(start, min(start + size, n_rows))
        yield rows, torch.mm(hidden[rows], weight.T, out=buffer[: rows.stop - rows.start])


@precision.constant_when_compiled
def _bytes_by_the_card() -> int:
    return int(SHARE_OF_THE_CARD * torch.cuda.get_device_properties().total_memory)


def _losses_and_surprise(logits: Tensor, targets: Tensor, hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The rows' losses (n,), and softmax minus one-hot (n, vocab) in the logits' place and dtype; targets are (n, 1)."""
    exact = _exact(logits)
    if precision.runs_triton(logits):
        from crate_model.ops import cross_entropy_triton

        return cross_entropy_triton.surprise_(logits, targets[:, 0]), logits
    if logits.dtype != exact and not _branches_cost(logits):
        return _in_blocks(logits, targets, hidden, weight), logits
    losses = F.cross_entropy(logits.to(exact), targets[:, 0], reduction="none") if _branches_cost(logits) else None
    # In place where the dtype allows: each row is then read from memory once.
    probabilities = torch.softmax(logits, -1, out=logits) if logits.dtype == exact else logits.softmax(-1, dtype=exact)
    if losses is None:
        losses = _losses(probabilities, targets, hidden, weight)
    probabilities.scatter_add_(1, targets, torch.full_like(targets, -1, dtype=exact))
    return losses, probabilities.to(logits.dtype)


def _blocks(logits: Tensor) -> list[slice]:
    """The rows in parts whose float32 copies stay in a CPU's cache; in one part on a GPU and in a compiled graph."""
    n_rows = len(logits)
    size = n_rows if _branches_cost(logits) else max(1, BLOCK_BYTES // (4 * logits.shape[1]))
    return [slice(start, min(start + size, n_rows)) for start in range(0, n_rows, max(1, size))]


def _in_blocks(logits: Tensor, targets: Tensor, hidden: Tensor, weight: Tensor) -> Tensor:
    """The same for narrow logits, a few rows at a time: their wide copies stay in a CPU's cache, and in one piece of memory.
    Float32 logits need no copies, and are faster whole."""
    exact, blocks = _exact(logits), _blocks(logits)
    losses = torch.empty(len(logits), dtype=exact)
    wide = torch.empty(blocks[0].stop, logits.shape[1], dtype=exact)
    minus_one = torch.full_like(targets, -1, dtype=exact)
    for rows in blocks:
        block = wide[: rows.stop - rows.start].copy_(logits[rows])
        torch.softmax(block, -1, out=block)
        losses[rows] = _losses(block, targets[rows], hidden[rows], weight)
        logits[rows] = block.scatter_add_(1, targets[rows], minus_one[rows])
    return losses


def _losses(probabilities: Tensor, targets: Tensor, hidden: Tensor, weight: Tensor) -> Tensor:
    """-log of the targets' probabilities, without another pass over the logits; where they underflow, from the logits."""
    chosen = probabilities.gather(1, targets)[:, 0]
    losses = -chosen.log()
    lost = chosen < SMALLEST_PROBABILITY
    if lost.any():
        again = (hidden[lost] @ weight.T).to(losses.dtype)
        losses[lost] = F.cross_entropy(again, targets[lost, 0], reduction="none")
    return losses


def _branches_cost(tensor: Tensor) -> bool:
    """Where looking at a value to decide what to do stalls a GPU or splits the graph of torch.compile."""
    return tensor.is_cuda or torch.compiler.is_compiling()
