"""One autoencoder in training: its weights, its optimizer, its own learning-rate clock and firing counts.

Several of these take the same batches side by side; none knows of the others, so a group may hold one or fifty and each
comes out the same to the bit.

A step asks nothing of the device: a host that waited for an answer could not queue the next step meanwhile. Counts and losses
lie on the device until a point of the curve is drawn; which features may die is asked every hundred steps.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crate_model.config import SAEConfig
from crate_model.ops.precision import matmul_precision
from crate_model.ops.sparse_autoencoder import Dead, Workspace, gradients
from crate_model.sae import SAELoss, SparseAutoencoder, without_radial_part
from pipeline.artifacts.saes import Site
from pipeline.config import SAEConfigSection
from pipeline.sae.adam import Adam

FIRST_RATE = 0.1  # of the learning rate, where the warm-up begins. Source: released code
COUNTED_AT_ONCE = 256  # tokens
LOOKED_EVERY = 100  # steps between two looks at which features may die
THRESHOLD_RATE = 0.01  # of the moving average of batchtopk's threshold


def seed_of(*parts: object) -> int:
    """A 63-bit seed from names and numbers, the same everywhere."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8], "big") >> 1


def learning_rate(clock: int, peak: float, warmup_steps: int) -> float:
    """The rate of the step `clock` steps after the start or the last resampling: half a cosine up from a tenth, then flat.

    *Source:* released code, whose last rise is one step short of the peak; so is ours.
    """
    if warmup_steps == 0:
        return peak
    share = min(clock, warmup_steps - 1) / warmup_steps
    return peak * (FIRST_RATE + (1 - FIRST_RATE) * 0.5 * (1 - math.cos(math.pi * share)))


def firing_counts(f: Float[Tensor, "n d_sae"]) -> Int[Tensor, " d_sae"]:
    """Over how many of the n tokens each feature is active; n below 2^24."""
    if f.device.type != "cpu":
        return (f > 0).sum(dim=0)
    # Thrice as fast on a CPU as counting booleans, and as exact; in blocks that stay in its cache.
    return torch.stack([rows.sign().sum(dim=0) for rows in f.split(COUNTED_AT_ONCE)]).sum(dim=0).to(torch.int64)


@dataclass(frozen=True)
class StepFigures:
    """Of one batch, for the curve."""

    loss: float
    reconstruction: float
    penalty: float
    l0: float
    silent: float
    learning_rate: float


class SAETrainer:
    """Trains the autoencoder of `site`. Inputs are scaled to mean squared norm 1 for all variants but the paper's `relu`."""

    def __init__(
        self,
        site: Site,
        settings: SAEConfigSection,
        d_in: int,
        seed: int,
        device: torch.device,
        workspace: Workspace | None = None,
    ) -> None:
        self.site, self.settings, self.workspace = site, settings, workspace or Workspace()
        k = int(site.sparsity) if site.variant in ("topk", "batchtopk") else 1
        config = SAEConfig(d_in, site.expansion * d_in, site.variant, k)  # type: ignore[arg-type]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, "sae", site.name))
            self.sae = SparseAutoencoder(config).to(device)
        self.optimizer = Adam({name: tensor.detach() for name, tensor in self.sae.named_parameters()})
        self.step_number = 0
        self.clock = 0  # steps since the start or the last resampling: the learning rate's time
        self.n_counted = 0  # tokens over which `n_fired` counts
        self.n_fired = torch.zeros(config.d_sae, dtype=torch.int64, device=device)
        # Tokens since a feature last fired, and the features that may be dead before the next look.
        self.silent_for = torch.zeros(config.d_sae, dtype=torch.int64, device=device)
        self.dying = torch.empty(0, dtype=torch.int64, device=device)
        self.n_resampled = 0
        self.scale = 1.0
        self.rate = 0.0  # of the last step
        self.n_active = torch.zeros((), dtype=torch.int64, device=device)  # over the tokens of the last step

    def step(self, v: Tensor) -> SAELoss:
        """One optimizer step on activations v (batch_tokens, d_in)."""
        if self.step_number == 0 and self.site.variant != "relu":
            self._fit_to_data(v)
        v = v * self.scale if self.scale != 1.0 else v
        with matmul_precision(self.settings.matmul_precision):
            found = gradients(self.sae.train(), v, self.site.sparsity, self._dead(), self.workspace)
        found.by_name["W_dec"] = without_radial_part(found.by_name["W_dec"], self.sae.W_dec.detach())
        self.rate = learning_rate(self.clock, self.settings.learning_rate, self.settings.warmup_steps)
        self.optimizer.step(found.by_name, self.rate)
        self.sae.normalise_decoder()
        self._count(found.features)
        self.step_number += 1
        self.clock += 1
        return found.losses

    @torch.no_grad()
    def _fit_to_data(self, v: Tensor) -> None:
        """Begin with the data's scale and mean. *Source:* Gao et al. 2024; the mean stands for their geometric median."""
        self.scale = float(v.square().sum(dim=-1).mean().clamp_min(1e-12).rsqrt())
        self.sae.b_dec.copy_(v.mean(dim=0) * self.scale)

    def _dead(self) -> Dead | None:
        """None while no feature can be dead, so that the auxiliary loss costs nothing then."""
        if self.site.variant not in ("topk", "batchtopk"):
            return None
        if self.step_number % LOOKED_EVERY == 0:
            until_next_look = LOOKED_EVERY * self.settings.batch_tokens
            may_die = self.silent_for + until_next_look >= self.settings.dead_after_tokens
            self.dying = torch.nonzero(may_die).flatten()
        if len(self.dying) == 0:
            return None
        return Dead(self.dying, self.silent_for[self.dying] >= self.settings.dead_after_tokens)

    @torch.no_grad()
    def _count(self, f: Tensor) -> None:
        fired = firing_counts(f)
        self.n_fired += fired
        self.n_counted += len(f)
        self.silent_for.add_(len(f)).masked_fill_(fired > 0, 0)
        self.n_active = fired.sum()
        if self.site.variant == "batchtopk":
            threshold = self.sae.threshold
            smallest = torch.where(f > 0, f, math.inf).min()
            smallest = torch.where(smallest.isfinite(), smallest, threshold)  # where nothing fired it stays
            threshold.lerp_(smallest, THRESHOLD_RATE if self.step_number else 1.0)

    def figures(self, losses: SAELoss, n: int) -> StepFigures:
        """What the curve says of the step just made on n tokens: one wait for the device."""
        silent = (self.n_fired == 0).double().mean()
        on_device = (losses.total, losses.reconstruction, losses.penalty, self.n_active.double() / n, silent)
        total, reconstruction, penalty, l0, silent = torch.stack([figure.double() for figure in on_device]).tolist()
        return StepFigures(total, reconstruction, penalty, l0, silent, self.rate)

    def count_anew(self) -> None:
        """Forget the firing counts: what follows decides who is dead at the next resampling."""
        self.n_counted = 0
        self.n_fired.zero_()

    def finished(self) -> SparseAutoencoder:
        """The trained autoencoder, of unscaled inputs, in evaluation mode on the CPU."""
        sae = SparseAutoencoder(self.sae.config)
        sae.load_state_dict({name: tensor.cpu() for name, tensor in self.sae.state_dict().items()})
        sae.rescale(self.scale)
        return sae.eval()
