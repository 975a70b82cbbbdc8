"""Giving dead features a new start on inputs that the autoencoder reconstructs badly.

*Source:* the released code ("anthropic" mode), after Bricken et al. 2023. From each window one token is drawn, with
probability proportional to how much the next-token loss rises when the autoencoder is spliced in. There 60,000 windows are
scanned and some of the drawn tokens used; windows come in random order, so scanning only until there is one for each dead
feature draws from the same distribution. The counts of the released code cover fewer tokens than it divides by; ours do not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crate_model.sae import SparseAutoencoder, spliced
from pipeline.artifacts.activation_stream import ActivationStream
from pipeline.artifacts.order import window_ids
from pipeline.config import SAEConfigSection
from pipeline.sae.training import SAETrainer, seed_of
from pipeline.transfer import to_device

RARE, RARE_LATE, LATE_STEP = 1e-6, 1e-7, 25_000  # firing frequency below which a feature is dead, and from this step on
ENCODER_SHARE = 0.2  # of the mean norm of the alive features' encoder columns


def counting_starts(settings: SAEConfigSection) -> set[int]:
    """The steps before which firing counts are forgotten: one window before each resampling, or at the one before it."""
    starts, previous = set(), 0
    for step in sorted(settings.resample_steps):
        starts.add(max(previous, step - settings.resample_window_steps))
        previous = step
    return starts


def dead_features(trainer: SAETrainer) -> Tensor:
    """Indices of the features that fired too rarely since counting began."""
    rare = RARE_LATE if trainer.step_number >= LATE_STEP else RARE
    return torch.nonzero(trainer.n_fired < rare * trainer.n_counted).flatten()


def resample(trainer: SAETrainer, stream: ActivationStream, seed: int) -> int:
    """Restart the dead features of an autoencoder and its learning rate; returns how many there were."""
    dead = dead_features(trainer)
    if len(dead) == 0:
        return 0
    inputs = badly_reconstructed(
        trainer, stream, len(dead), seed_of(seed, "resample", trainer.site.name, trainer.step_number)
    )
    dead = dead[: len(inputs)]
    restart_features(trainer.sae, dead, inputs)
    for name, axis in (("W_enc", 1), ("b_enc", 0), ("W_dec", 0)):
        trainer.optimizer.forget(name, axis, dead)
    trainer.clock = 0
    trainer.n_resampled += len(dead)
    return len(dead)


@torch.no_grad()
def restart_features(sae: SparseAutoencoder, dead: Tensor, inputs: Tensor) -> None:
    """Point the features `dead` (n,) at `inputs` (n, d_in): decoder rows their directions, encoder columns the same, small."""
    directions = inputs / inputs.norm(dim=1, keepdim=True)
    alive = torch.ones(sae.config.d_sae, dtype=torch.bool, device=dead.device).index_fill_(0, dead, False)
    typical = sae.W_enc[:, alive].norm(dim=0).mean() if len(dead) < len(alive) else sae.W_enc.norm(dim=0).mean()
    sae.W_dec[dead] = directions
    sae.W_enc[:, dead] = directions.T * ENCODER_SHARE * typical
    sae.b_enc[dead] = 0.0


@torch.no_grad()
def badly_reconstructed(trainer: SAETrainer, stream: ActivationStream, wanted: int, seed: int) -> Tensor:
    """Activations (at most `wanted`, d_in), one from each window in which splicing hurts, until there are enough."""
    model, point = stream.model, trainer.site.point
    n_ctx, n_rows = model.config.n_ctx, stream.batch_rows
    generator = torch.Generator().manual_seed(seed)
    found: list[Tensor] = []
    for batch in range(-(-trainer.settings.resample_rows // n_rows)):
        rows = window_ids(seed, batch, n_rows, stream.split.n_windows(n_ctx))
        ids = to_device(stream.split.windows(rows, n_ctx), stream.device)
        found.append(_one_a_window(trainer.sae, model, point, ids, generator))
        if sum(map(len, found)) >= wanted:
            break
    return torch.cat(found)[:wanted]


def _one_a_window(sae: SparseAutoencoder, model, point: str, ids: Tensor, generator: torch.Generator) -> Tensor:
    from crate_model import taps

    with taps.read(model, [point]) as values:
        clean = model.token_losses(ids[:, :-1], ids[:, 1:])
    with spliced(model, point, sae):
        rise = (model.token_losses(ids[:, :-1], ids[:, 1:]) - clean).relu().cpu()
    rows = torch.nonzero(rise.sum(dim=1) > 0).flatten()
    if len(rows) == 0:
        return values[point].new_empty(0, sae.config.d_in, dtype=torch.float32)
    drawn = torch.multinomial(rise[rows], 1, generator=generator).flatten()
    activations = values[point][rows.to(ids.device), drawn.to(ids.device)].float()
    return activations[activations.any(dim=1)]
