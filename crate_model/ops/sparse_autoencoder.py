"""The gradients of a sparse autoencoder's loss, by hand: five matrix products where autograd takes six, and few passes between.

`crate_model.sae.loss` under torch's own autograd is the oracle. There the subtraction of b_dec makes autograd carry a gradient
back to the input, a whole product that nobody asks for; here b_dec is folded into the encoder's bias. And there the dead
features are picked out by a mask, for which the host has to wait until the device has counted them; here every shape is known
beforehand, so that a GPU is never waited for.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crate_model.sae import (
    AUXILIARY_COEFFICIENT,
    BANDWIDTH,
    MAX_AUXILIARY,
    SAELoss,
    SparseAutoencoder,
    inverse_norm,
    keep_largest,
)


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
class Dead:
    """The features that may be dead, by index, and which of them are. Every dead feature has to be among them."""

    among: Int[Tensor, " c"]
    are_dead: Bool[Tensor, " c"]


@dataclass(frozen=True)
class Gradients:
    """Of one batch: the losses, the features, and `by_name`, the gradient of every parameter."""

    losses: SAELoss
    features: Float[Tensor, "n d_sae"]
    by_name: dict[str, Tensor]


@torch.no_grad()
def gradients(
    sae: SparseAutoencoder,
    v: Float[Tensor, "n d_in"],
    sparsity: float,
    dead: Dead | None = None,
    workspace: Workspace | None = None,
) -> Gradients:
    """What `loss(sae, v, sparsity, mask)` and its backward pass give, up to rounding, where `mask` says which are dead.

    The features may lie in the workspace: the next call with it overwrites them.
    """
    n, variant = len(v), sae.config.variant
    workspace = workspace or Workspace()
    h = workspace.out_of(torch.addmm, "h", sae.b_enc - sae.b_dec @ sae.W_enc, v, sae.W_enc)
    f = h.relu_() if variant == "relu" else sae.select(h)
    error = torch.addmm(sae.b_dec, f, sae.W_dec).sub_(v)
    weight = inverse_norm(v).div_(v.shape[1]) if variant == "relu" else v.new_ones(())
    to_output = error * weight.mul_(2 / n)  # the gradient of the reconstruction
    reconstruction = (error * to_output).sum() / 2
    to_code = workspace.out_of(torch.mm, "to_code", to_output, sae.W_dec.T)
    found = {"W_dec": f.T @ to_output}
    penalty, penalty_weight = reconstruction.new_zeros(()), sparsity
    if variant == "relu":
        penalty = f.sum() / n
        to_code.add_(sparsity / n)
    if variant == "jumprelu":
        penalty = (f > 0).sum().to(v.dtype) / n
        found["log_threshold"] = _to_log_threshold(sae, h, to_code, sparsity / n)
    to_code = torch.ops.aten.threshold_backward(to_code, f, 0, grad_input=to_code)  # where f > 0: one pass, no mask
    if dead is not None and variant in ("topk", "batchtopk"):
        penalty, penalty_weight = _auxiliary(sae, h, error, dead, to_code, found["W_dec"]), AUXILIARY_COEFFICIENT
    found |= _of_encoder(sae, v, to_output, to_code)
    return Gradients(SAELoss(reconstruction + penalty_weight * penalty, reconstruction, penalty), f, found)


def _of_encoder(sae: SparseAutoencoder, v: Tensor, to_output: Tensor, to_code: Tensor) -> dict[str, Tensor]:
    """The gradients of W_enc, b_enc and of b_dec, which is in the encoder's bias as well as in the output."""
    to_bias = to_code.sum(dim=0)
    return {
        "W_enc": (v.T @ to_code).addr_(sae.b_dec, to_bias, alpha=-1),
        "b_enc": to_bias,
        "b_dec": to_output.sum(dim=0) - sae.W_enc @ to_bias,
    }


def _auxiliary(
    sae: SparseAutoencoder, h: Tensor, error: Tensor, dead: Dead, to_code: Tensor, to_decoder: Tensor
) -> Tensor:
    """`auxiliary_loss` of the residual -error; its weighted gradients are added to `to_code` (n, d_sae) and `to_decoder`.

    Features of `among` that are not dead take part as zeros, which change no sum, so the shapes need not be asked of the device.
    """
    rows = sae.W_dec[dead.among]
    excited = h[:, dead.among].relu_().masked_fill_(~dead.are_dead, 0.0)
    f = keep_largest(excited, min(MAX_AUXILIARY, max(1, sae.config.d_in // 2)))
    missed = torch.addmm(error, f, rows)
    share = error.square().sum().clamp_min(1e-12).reciprocal()
    to_missed = missed * (2 * AUXILIARY_COEFFICIENT * share)
    to_code.index_add_(1, dead.among, torch.ops.aten.threshold_backward(to_missed @ rows.T, f, 0))
    to_decoder.index_add_(0, dead.among, f.T @ to_missed)
    return torch.where(dead.are_dead.any(), missed.square().sum() * share, 0.0)


def _to_log_threshold(sae: SparseAutoencoder, h: Tensor, to_code: Tensor, step_weight: float) -> Tensor:
    """Through the rectangle of width BANDWIDTH around the threshold, of both the reconstruction and the L0.

    *Source:* Rajamanoharan et al. 2024, equations 11 and 12.
    """
    threshold = sae.log_threshold.exp()
    near = (h - threshold).abs_() < BANDWIDTH / 2
    to_threshold = -(torch.where(near, to_code * threshold + step_weight, 0.0)).sum(dim=0) / BANDWIDTH
    return to_threshold * threshold
