"""The gradients of a sparse autoencoder's loss, by hand: five matrix products where autograd takes six, and few passes between.

`crate_model.sae.loss` under torch's own autograd is the oracle. There the subtraction of b_dec makes autograd carry a gradient
back to the input, a whole product that nobody asks for; here b_dec is folded into the encoder's bias.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crate_model.sae import BANDWIDTH, SAELoss, SparseAutoencoder, inverse_norm, loss


@dataclass
class Workspace:
    """Memory for the results as large as the features, used again from batch to batch and by one autoencoder after the other:
    on a CPU it costs as much to get such memory anew as to compute what is written into it."""

    held: dict[tuple[object, ...], Tensor] = field(default_factory=dict)

    def out_of(self, product: Callable[..., Tensor], name: str, *factors: Tensor) -> Tensor:
        """`product(*factors)`, written where the last result of this name and kind lay."""
        first, last = factors[-2:]
        key = (name, len(first), last.shape[1], last.dtype, last.device)
        self.held[key] = product(*factors, out=self.held.get(key))
        return self.held[key]


@dataclass(frozen=True)
class Gradients:
    """Of one batch: the losses, the features, and `by_name`, the gradient of every parameter."""

    losses: SAELoss
    features: Float[Tensor, "n d_sae"]
    by_name: dict[str, Tensor]


def gradients(
    sae: SparseAutoencoder,
    v: Float[Tensor, "n d_in"],
    sparsity: float,
    dead: Bool[Tensor, " d_sae"] | None = None,
    workspace: Workspace | None = None,
) -> Gradients:
    """What `loss(sae, v, sparsity, dead)` and its backward pass give, up to rounding. Dead features go through autograd.

    The features may lie in the workspace: the next call with it overwrites them.
    """
    if dead is not None and bool(dead.any()):
        return _by_autograd(sae, v, sparsity, dead)
    with torch.no_grad():
        return _by_hand(sae, v, sparsity, workspace or Workspace())


def _by_autograd(sae: SparseAutoencoder, v: Tensor, sparsity: float, dead: Tensor | None) -> Gradients:
    losses, f = loss(sae, v, sparsity, dead)
    names, parameters = zip(*sae.named_parameters(), strict=True)
    found = torch.autograd.grad(losses.total, parameters)
    return Gradients(losses, f.detach(), dict(zip(names, found, strict=True)))


def _by_hand(sae: SparseAutoencoder, v: Tensor, sparsity: float, workspace: Workspace) -> Gradients:
    n, variant = len(v), sae.config.variant
    W_enc, W_dec = sae.W_enc, sae.W_dec
    h = workspace.out_of(torch.addmm, "h", sae.b_enc - sae.b_dec @ W_enc, v, W_enc)
    f = h.relu_() if variant == "relu" else sae.select(h)
    error = torch.addmm(sae.b_dec, f, W_dec).sub_(v)
    weight = inverse_norm(v).div_(v.shape[1]) if variant == "relu" else v.new_ones(())
    to_output = error * weight.mul_(2 / n)  # the gradient of the reconstruction
    reconstruction = (error * to_output).sum() / 2
    to_code = workspace.out_of(torch.mm, "to_code", to_output, W_dec.T)
    found: dict[str, Tensor] = {}
    penalty = reconstruction.new_zeros(())
    if variant == "relu":
        penalty = f.sum() / n
        to_code.add_(sparsity / n)
    if variant == "jumprelu":
        penalty = (f > 0).sum().to(v.dtype) / n
        found["log_threshold"] = _to_log_threshold(sae, h, to_code, sparsity / n)
    to_code = torch.ops.aten.threshold_backward(to_code, f, 0, grad_input=to_code)  # where f > 0: one pass, no mask
    to_bias = to_code.sum(dim=0)
    found["W_enc"] = (v.T @ to_code).addr_(sae.b_dec, to_bias, alpha=-1)
    found["b_enc"] = to_bias
    found["W_dec"] = f.T @ to_output
    found["b_dec"] = to_output.sum(dim=0) - W_enc @ to_bias
    total = reconstruction + (sparsity * penalty if variant in ("relu", "jumprelu") else 0.0)
    return Gradients(SAELoss(total, reconstruction, penalty), f, found)


def _to_log_threshold(sae: SparseAutoencoder, h: Tensor, to_code: Tensor, step_weight: float) -> Tensor:
    """Through the rectangle of width BANDWIDTH around the threshold, of both the reconstruction and the L0.

    *Source:* Rajamanoharan et al. 2024, equations 11 and 12.
    """
    threshold = sae.log_threshold.exp()
    near = (h - threshold).abs_() < BANDWIDTH / 2
    to_threshold = -(torch.where(near, to_code * threshold + step_weight, 0.0)).sum(dim=0) / BANDWIDTH
    return to_threshold * threshold
