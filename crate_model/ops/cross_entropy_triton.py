"""A Triton kernel that turns logits, in place, into the gradient of their cross entropy, and returns the losses.

Two passes over each row, both in the logits' own dtype with float32 arithmetic: nothing of the logits' size is allocated.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

BLOCK, WARPS = 4096, 8  # words a program reads at once


def surprise_(logits: Float[Tensor, "n vocab"], targets: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Replace `logits` (contiguous) by softmax(logits) - one_hot(targets); the cross entropy of each row, float32."""
    losses = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
    kernel[(logits.shape[0],)](logits, targets, losses, logits.shape[1], block=BLOCK, num_warps=WARPS)
    return losses


@triton.jit
def kernel(logits_ptr, targets_ptr, losses_ptr, n_words, block: tl.constexpr):
    row = tl.program_id(0)
    row_ptr = logits_ptr + row.to(tl.int64) * n_words
    target = tl.load(targets_ptr + row)
    target_logit = tl.load(row_ptr + target).to(tl.float32)

    # One pass for the largest logit and, rescaled as it grows, the sum of exponentials.
    largest = target_logit
    total = 0.0
    for begin in range(0, n_words, block):
        words = begin + tl.arange(0, block)
        logits = tl.load(row_ptr + words, mask=words < n_words, other=float("-inf")).to(tl.float32)
        new_largest = tl.maximum(largest, tl.max(logits, axis=0))
        total = total * tl.exp(largest - new_largest) + tl.sum(tl.exp(logits - new_largest), axis=0)
        largest = new_largest
    tl.store(losses_ptr + row, tl.log(total) + largest - target_logit)

    for begin in range(0, n_words, block):
        words = begin + tl.arange(0, block)
        logits = tl.load(row_ptr + words, mask=words < n_words, other=float("-inf")).to(tl.float32)
        probabilities = tl.exp(logits - largest) / total
        surprise = tl.where(words == target, probabilities - 1.0, probabilities)
        tl.store(row_ptr + words, surprise.to(logits_ptr.dtype.element_ty), mask=words < n_words)
