"""Equality with the released sparse autoencoder: forward, loss, eight training steps, learning rates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from crate_model.config import SAEConfig
from crate_model.ops.sparse_autoencoder import gradients
from crate_model.sae import SparseAutoencoder, loss
from pipeline.artifacts.saes import Site
from pipeline.config import SAEConfigSection
from pipeline.sae.adam import Adam
from pipeline.sae.training import SAETrainer, learning_rate

GOLDEN = np.load(Path(__file__).parents[1] / "data" / "sae_official_golden.npz")
D_IN, D_SAE = (int(value) for value in GOLDEN["config/d_in_d_sae_l1_lr"][:2])
L1, RATE = (float(value) for value in GOLDEN["config/d_in_d_sae_l1_lr"][2:])
NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")


def golden(name: str) -> torch.Tensor:
    return torch.from_numpy(GOLDEN[name].copy())


def put_weights(sae: SparseAutoencoder, prefix: str) -> SparseAutoencoder:
    with torch.no_grad():
        for name in NAMES:
            getattr(sae, name).copy_(golden(f"{prefix}/{name}"))
    return sae


def test_forward_and_loss() -> None:
    sae = put_weights(SparseAutoencoder(SAEConfig(D_IN, D_SAE)), "init")
    x = golden("x")[0]
    f = sae.encode(x)
    torch.testing.assert_close(f, golden("forward/features"), atol=2e-6, rtol=0)
    torch.testing.assert_close(sae.decode(f), golden("forward/recon"), atol=2e-6, rtol=0)
    losses, f = loss(sae, x, L1)
    assert losses.total.item() == pytest.approx(float(GOLDEN["loss/total"]), rel=1e-6)
    assert losses.reconstruction.item() == pytest.approx(float(GOLDEN["loss/recon"]), rel=1e-6)
    assert losses.penalty.item() == pytest.approx(float(GOLDEN["loss/l1_sum_mean"]), rel=1e-6)
    assert L1 * losses.penalty.item() == pytest.approx(float(GOLDEN["loss/l1_weighted"]), rel=1e-6)
    assert (f > 0).sum(dim=1).double().mean().item() == float(GOLDEN["loss/mean_active"])
    assert (f > 0).sum(dim=0).tolist() == GOLDEN["loss/fire_counts"].tolist()


def test_eight_training_steps() -> None:
    settings = SAEConfigSection(expansions=(D_SAE // D_IN,), learning_rate=RATE, l1=L1)
    site = Site("code-l0-4x", 0, "code", D_SAE // D_IN, "relu", L1)
    trainer = SAETrainer(site, settings, D_IN, 0, torch.device("cpu"))
    put_weights(trainer.sae, "init")
    for step, x in enumerate(golden("x")):
        figures = trainer.step(x)
        assert figures.total.item() == pytest.approx(float(GOLDEN["train/loss"][step]), rel=2e-6)
        assert figures.reconstruction.item() == pytest.approx(float(GOLDEN["train/recon"][step]), rel=2e-6)
        after = learning_rate(trainer.clock, RATE, settings.warmup_steps)
        assert after == pytest.approx(float(GOLDEN["train/lr_after_step"][step]), rel=1e-12)
    for name in NAMES:
        torch.testing.assert_close(getattr(trainer.sae, name).data, golden(f"train/final/{name}"), atol=2e-6, rtol=0)


def test_learning_rate_of_2500_steps() -> None:
    rates = [learning_rate(step, RATE, 1000) for step in range(2500)]
    np.testing.assert_allclose(rates, GOLDEN["lr_used_by_step"], rtol=1e-12)


def test_the_golden_steps_see_projection_and_renormalisation() -> None:
    """Without them the weights end elsewhere, so their equality means something."""
    sae = put_weights(SparseAutoencoder(SAEConfig(D_IN, D_SAE)), "init")
    optimizer = Adam({name: tensor.detach() for name, tensor in sae.named_parameters()})
    for step, x in enumerate(golden("x")):
        optimizer.step(gradients(sae, x, L1).by_name, learning_rate(step, RATE, 1000))
    assert (sae.W_dec.data - golden("train/final/W_dec")).abs().max() > 1e-5


def test_adam_is_torchs() -> None:
    generator = torch.Generator().manual_seed(0)
    theirs = torch.nn.Parameter(torch.randn(5, 7, generator=generator))
    ours = theirs.detach().clone()
    reference, adam = torch.optim.Adam([theirs], betas=(0.9, 0.999)), Adam({"w": ours})
    for step in range(20):
        theirs.grad = torch.randn(5, 7, generator=generator)
        reference.param_groups[0]["lr"] = rate = 1e-3 / (step + 1)
        reference.step()
        adam.step({"w": theirs.grad}, rate)
    torch.testing.assert_close(ours, theirs.detach(), atol=1e-7, rtol=1e-6)
