"""Every variant against its formula, written out in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sae_world import make_model

from crate_model.config import SAEConfig
from crate_model.sae import (
    AUXILIARY_COEFFICIENT,
    BANDWIDTH,
    SparseAutoencoder,
    auxiliary_loss,
    loss,
    spliced,
    without_radial_part,
)

VARIANTS = ("relu", "topk", "batchtopk", "jumprelu")


def autoencoder(variant: str) -> SparseAutoencoder:
    torch.manual_seed(0)
    sae = SparseAutoencoder(SAEConfig(8, 20, variant, k=3)).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return sae


def data() -> torch.Tensor:
    return torch.randn(15, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def pre(sae: SparseAutoencoder) -> np.ndarray:
    W, b, b_dec = (t.detach().numpy() for t in (sae.W_enc, sae.b_enc, sae.b_dec))
    return (data().numpy() - b_dec) @ W + b


def test_relu() -> None:
    sae = autoencoder("relu")
    np.testing.assert_allclose(sae.encode(data()).detach(), np.maximum(pre(sae), 0))


def test_topk_keeps_the_k_largest_of_every_token() -> None:
    sae = autoencoder("topk")
    h = np.maximum(pre(sae), 0)
    kept = h >= np.sort(h, axis=1)[:, -3][:, None]
    np.testing.assert_allclose(sae.encode(data()).detach(), h * kept)


def test_batchtopk_keeps_k_a_token_on_average_and_then_a_threshold() -> None:
    sae = autoencoder("batchtopk").train()
    h = np.maximum(pre(sae), 0)
    kept = h >= np.sort(h.ravel())[-3 * 15]
    np.testing.assert_allclose(sae.encode(data()).detach(), h * kept)
    assert len(set(kept.sum(axis=1))) > 1, "each token may have another number"
    sae.eval().threshold.fill_(0.7)
    np.testing.assert_allclose(sae.encode(data()).detach(), h * (h > 0.7))
    np.testing.assert_allclose(sae.encode(data()[:1]).detach(), (h * (h > 0.7))[:1])


def test_jumprelu_keeps_what_exceeds_its_threshold() -> None:
    sae = autoencoder("jumprelu")
    with torch.no_grad():
        sae.log_threshold.copy_(torch.linspace(-2, 0.5, 20))
    h = pre(sae)
    np.testing.assert_allclose(sae.encode(data()).detach(), h * (h > np.exp(np.linspace(-2, 0.5, 20))), rtol=1e-6)


def test_jumprelu_thresholds_have_the_rectangles_gradient() -> None:
    """Equations 11 and 12 of Rajamanoharan et al., for one token near the threshold of one feature."""
    sae = autoencoder("jumprelu")
    v = data()[:1]
    h = torch.from_numpy(pre(sae))[0]
    feature = int(h.argmax())
    with torch.no_grad():
        sae.log_threshold.fill_(5.0)
        sae.log_threshold[feature] = (h[feature] - 0.3 * BANDWIDTH).log()
    losses, f = loss(sae, v, 0.02)
    losses.total.backward()
    threshold = sae.log_threshold.detach()[feature].exp()
    to_feature = 2 * (sae.decode(f) - v).detach() @ sae.W_dec.detach()[feature]
    expected = -(threshold * to_feature.item() + 0.02) / BANDWIDTH * threshold
    assert sae.log_threshold.grad is not None
    assert sae.log_threshold.grad[feature].item() == pytest.approx(expected.item(), rel=1e-5)
    assert sae.log_threshold.grad.count_nonzero() == 1


def test_losses_of_the_variants_that_expect_normalised_inputs() -> None:
    for variant in ("topk", "batchtopk", "jumprelu"):
        sae = autoencoder(variant).train()
        losses, f = loss(sae, data(), 0.5)
        error = (sae.decode(f) - data()).detach().numpy()
        expected = (error**2).sum(axis=1).mean()
        assert losses.reconstruction.item() == pytest.approx(expected)
        active = (f > 0).double().sum(dim=1).mean().item()
        extra = 0.5 * active if variant == "jumprelu" else 0.0
        assert losses.total.item() == pytest.approx(expected + extra, rel=1e-6)


def test_the_auxiliary_loss_is_the_dead_features_share_of_the_error() -> None:
    sae = autoencoder("topk")
    dead = torch.zeros(20, dtype=torch.bool)
    dead[[2, 5, 11, 13, 17, 19]] = True
    losses, f = loss(sae, data(), 0.0, dead)
    residual = (data() - sae.decode(f)).detach().numpy()
    h = np.maximum(pre(sae), 0)[:, dead.numpy()]
    kept = h * (h >= np.sort(h, axis=1)[:, -4][:, None])  # min(512, d_in / 2, dead) = 4
    explained = kept @ sae.W_dec.detach().numpy()[dead.numpy()]
    expected = ((explained - residual) ** 2).sum() / (residual**2).sum()
    assert losses.penalty.item() == pytest.approx(expected)
    assert losses.total.item() == pytest.approx(losses.reconstruction.item() + AUXILIARY_COEFFICIENT * expected)


def test_no_dead_features_no_auxiliary_loss() -> None:
    sae = autoencoder("topk")
    none = torch.zeros(20, dtype=torch.bool)
    assert auxiliary_loss(sae, sae.pre_activations(data()), data(), none).item() == 0.0


@pytest.mark.parametrize("variant", VARIANTS)
def test_decoder_rows_begin_at_unit_norm(variant: str) -> None:
    sae = SparseAutoencoder(SAEConfig(8, 20, variant, k=3))  # type: ignore[arg-type]
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(20))
    assert torch.equal(sae.W_enc, sae.W_dec.T) == (variant != "relu")


@pytest.mark.parametrize("variant", VARIANTS)
def test_rescaled_for_unscaled_inputs(variant: str) -> None:
    sae = autoencoder(variant).eval()
    if variant == "batchtopk":
        sae.threshold.fill_(0.4)
    with torch.no_grad():
        scaled, features = sae(4 * data()) / 4, sae.encode(4 * data()) / 4
        sae.rescale(4.0)
        torch.testing.assert_close(sae(data()), scaled, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(sae.encode(data()), features, atol=1e-6, rtol=1e-6)


def test_a_gradient_without_its_radial_part_is_orthogonal_to_the_rows() -> None:
    rows, gradient = torch.randn(6, 4), torch.randn(6, 4)
    rest = without_radial_part(gradient, rows)
    torch.testing.assert_close((rest * rows).sum(dim=1), torch.zeros(6), atol=1e-5, rtol=0)


def test_an_unknown_tap_is_told() -> None:
    with pytest.raises(ValueError, match=r"blocks\.0\.cod"), spliced(make_model(), "blocks.0.cod", autoencoder("relu")):
        pass


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((0, 4), "d_in is 0"),
        ((4, 0), "d_sae is 0"),
        ((4, 8, "lasso"), "variant is 'lasso'"),
        ((4, 8, "topk", 9), "k 9"),
    ],
)
def test_impossible_shapes(values: tuple, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SAEConfig(*values)
