"""Sparse autoencoders in four variants behind two methods: `encode` and `decode`. Plain torch; this file is the oracle.

All share `v_hat = f W_dec + b_dec`, decoder rows of unit norm, and the pre-activation `h = (v - b_dec) W_enc + b_enc`; they
differ in how features f come from h and in the loss:

- `relu`: f = relu(h); L1. *Source:* the paper's baseline (Bai & Ma 2025, released code); Bricken et al. 2023.
- `topk`: the k largest of relu(h) a token; no penalty. *Source:* Gao et al. 2024, arXiv 2406.04093.
- `batchtopk`: in training the k*n largest of the batch's n tokens, then a threshold. *Source:* Bussmann et al. 2024.
- `jumprelu`: h where h exceeds a learned threshold; L0. *Source:* Rajamanoharan et al. 2024, arXiv 2407.14435.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from crate_model import taps
from crate_model.config import SAEConfig
from crate_model.model import LanguageModel

NORM_GUARD = 1e-6  # added to a decoder row's norm before the division. Source: released code
BANDWIDTH = 1e-3  # of the rectangle that stands for the step's derivative (jumprelu), for inputs of mean squared norm 1
INITIAL_THRESHOLD = 1e-3  # jumprelu
AUXILIARY_COEFFICIENT = 1 / 32  # of the loss that revives dead features (topk, batchtopk). Source: Gao et al. 2024
MAX_AUXILIARY = 512  # dead features that take part in it. Source: Gao et al. 2024

Rows = Float[Tensor, "*batch d_in"]
Features = Float[Tensor, "*batch d_sae"]


class SparseAutoencoder(nn.Module):
    """v (..., d_in) -> features (..., d_sae), non-negative -> v_hat (..., d_in). Initialised from torch's global generator."""

    def __init__(self, config: SAEConfig) -> None:
        super().__init__()
        self.config = config
        self.threshold: Tensor  # of batchtopk after training
        self.W_enc = nn.Parameter(torch.empty(config.d_in, config.d_sae))
        self.b_enc = nn.Parameter(torch.empty(config.d_sae))
        self.W_dec = nn.Parameter(torch.empty(config.d_sae, config.d_in))
        self.b_dec = nn.Parameter(torch.empty(config.d_in))
        if config.variant == "jumprelu":
            self.log_threshold = nn.Parameter(torch.empty(config.d_sae))
        if config.variant == "batchtopk":
            self.register_buffer("threshold", torch.empty(()))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The released code's initialisation for `relu`; the others begin with an encoder that is the decoder transposed."""
        nn.init.kaiming_uniform_(self.W_enc)
        nn.init.kaiming_uniform_(self.W_dec)
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True))
        if self.config.variant != "relu":
            self.W_enc.copy_(self.W_dec.T)
        self.b_enc.zero_()
        self.b_dec.zero_()
        if self.config.variant == "jumprelu":
            self.log_threshold.fill_(torch.tensor(INITIAL_THRESHOLD).log())
        if self.config.variant == "batchtopk":
            self.threshold.zero_()

    def pre_activations(self, v: Rows) -> Features:
        return (v - self.b_dec) @ self.W_enc + self.b_enc

    def encode(self, v: Rows) -> Features:
        return self.select(self.pre_activations(v))

    def select(self, h: Features) -> Features:
        """The features that pre-activations h give. In training mode, `batchtopk` looks at the whole batch."""
        variant, k = self.config.variant, self.config.k
        if variant == "topk":
            return keep_largest(torch.relu(h), k)
        if variant == "batchtopk" and self.training:
            n_tokens = h[..., 0].numel()
            return keep_largest(torch.relu(h).flatten(), k * n_tokens).view_as(h)
        if variant == "batchtopk":
            return torch.relu(h) * (h > self.threshold)
        if variant == "jumprelu":
            return _JumpReLU.apply(torch.relu(h), self.log_threshold.exp())
        return torch.relu(h)

    def decode(self, f: Features) -> Rows:
        return f @ self.W_dec + self.b_dec

    def forward(self, v: Rows) -> Rows:
        return self.decode(self.encode(v))

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True) + NORM_GUARD)

    @torch.no_grad()
    def rescale(self, factor: float) -> None:
        """Make of an autoencoder of `factor * v` one of v with the same reconstruction: its features shrink by `factor`."""
        self.b_enc.div_(factor)
        self.b_dec.div_(factor)
        if self.config.variant == "jumprelu":
            self.log_threshold.sub_(torch.tensor(factor).log())
        if self.config.variant == "batchtopk":
            self.threshold.div_(factor)


def without_radial_part(gradient: Float[Tensor, "n d"], rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """The gradient of each decoder row less its part along the row, which would only change the row's norm."""
    along = (gradient * rows).sum(dim=1, keepdim=True) / rows.square().sum(dim=1, keepdim=True)
    return gradient - along * rows


def keep_largest(values: Float[Tensor, "*batch n"], k: int) -> Float[Tensor, "*batch n"]:
    """`values` with all but the k largest of the last axis set to zero."""
    if k >= values.shape[-1]:
        return values
    largest = values.topk(k, dim=-1, sorted=False)
    return torch.zeros_like(values).scatter(-1, largest.indices, largest.values)


@dataclass(frozen=True)
class SAELoss:
    """Scalars; `total` carries the gradient. `penalty` is the L1 norm (relu), L0 (jumprelu) or auxiliary loss, unweighted."""

    total: Float[Tensor, ""]
    reconstruction: Float[Tensor, ""]
    penalty: Float[Tensor, ""]


def loss(
    sae: SparseAutoencoder, v: Float[Tensor, "n d_in"], sparsity: float, dead: Bool[Tensor, " d_sae"] | None = None
) -> tuple[SAELoss, Float[Tensor, "n d_sae"]]:
    """The training loss of a batch and its features.

    relu: mean over tokens and inputs of (v_hat - v)^2 / ||v||_2, plus `sparsity` times the mean L1 norm of the features.
    *Source:* released code; a row of zeros, which divides by zero there, has weight 0 here.
    jumprelu: mean squared error norm plus `sparsity` times the mean L0. topk, batchtopk: mean squared error norm plus 1/32 of
    how badly the `dead` features explain the error. These three expect inputs of mean squared norm 1.
    """
    h = sae.pre_activations(v)
    f = sae.select(h)
    error = sae.decode(f) - v
    if sae.config.variant == "relu":
        reconstruction = (error.square() * inverse_norm(v)).mean()
        penalty = f.sum(dim=-1).mean()
        return SAELoss(reconstruction + sparsity * penalty, reconstruction, penalty), f
    reconstruction = error.square().sum(dim=-1).mean()
    if sae.config.variant == "jumprelu":
        penalty = _Step.apply(h, sae.log_threshold.exp()).sum(dim=-1).mean()
        return SAELoss(reconstruction + sparsity * penalty, reconstruction, penalty), f
    penalty = auxiliary_loss(sae, h, -error.detach(), dead)
    return SAELoss(reconstruction + AUXILIARY_COEFFICIENT * penalty, reconstruction, penalty), f


def inverse_norm(v: Float[Tensor, "n d_in"]) -> Float[Tensor, "n 1"]:
    """1 / ||v||_2 a row; 0 for a row of zeros."""
    norm = v.norm(dim=-1, keepdim=True)
    return torch.where(norm > 0, 1 / norm, 0.0)


def auxiliary_loss(
    sae: SparseAutoencoder,
    h: Float[Tensor, "n d_sae"],
    residual: Float[Tensor, "n d_in"],
    dead: Bool[Tensor, " d_sae"] | None,
) -> Float[Tensor, ""]:
    """Squared error of the dead features' best reconstruction of `residual`, over the residual's own squared norm.

    *Source:* Gao et al. 2024, appendix A.2 (AuxK): the min(512, d_in / 2) most excited dead features a token.
    """
    if dead is None or not bool(dead.any()):
        return h.new_zeros(())
    count = min(MAX_AUXILIARY, max(1, sae.config.d_in // 2), int(dead.sum()))
    f = keep_largest(torch.relu(h[:, dead]), count)
    return (f @ sae.W_dec[dead] - residual).square().sum() / residual.square().sum().clamp_min(1e-12)


class _JumpReLU(torch.autograd.Function):
    """h where h > threshold; the threshold's gradient through a rectangle of width BANDWIDTH."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, threshold: Tensor) -> Tensor:
        ctx.save_for_backward(h, threshold)
        return h * (h > threshold)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        h, threshold = ctx.saved_tensors
        near = ((h - threshold).abs() < BANDWIDTH / 2).to(h.dtype)
        to_threshold = -(threshold / BANDWIDTH) * near * gradient
        return gradient * (h > threshold), to_threshold.flatten(0, -2).sum(dim=0)


class _Step(torch.autograd.Function):
    """1 where h > threshold; the threshold's gradient through a rectangle of width BANDWIDTH, none to h."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, threshold: Tensor) -> Tensor:
        ctx.save_for_backward(h, threshold)
        return (h > threshold).to(h.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        h, threshold = ctx.saved_tensors
        near = ((h - threshold).abs() < BANDWIDTH / 2).to(h.dtype)
        return None, (-near / BANDWIDTH * gradient).flatten(0, -2).sum(dim=0)


@contextmanager
def spliced(model: LanguageModel, tap: str, sae: SparseAutoencoder) -> Iterator[None]:
    """Inside the block, the value at `tap` is replaced by its reconstruction. Raises ValueError for an unknown tap."""

    def reconstruct(value: Tensor) -> Tensor:
        return sae(value.float()).to(value.dtype)

    with taps.edit(model, {tap: reconstruct}):
        yield


def sae_from_tensors(config: SAEConfig, tensors: dict[str, Tensor]) -> SparseAutoencoder:
    """An autoencoder in evaluation mode with the given weights. Raises ValueError when they do not fit `config`."""
    sae = SparseAutoencoder(config)
    expected: dict[str, Any] = {name: tuple(tensor.shape) for name, tensor in sae.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != found:
        raise ValueError(f"weights {found} do not fit an autoencoder of {expected}")
    sae.load_state_dict(tensors)
    return sae.eval()
