"""The gradients by hand are those of autograd on the oracle."""

from __future__ import annotations

import pytest
import torch

from crate_model.config import SAEConfig
from crate_model.ops.precision import matmul_precision
from crate_model.ops.sparse_autoencoder import Dead, Workspace, gradients
from crate_model.sae import BANDWIDTH, SparseAutoencoder, loss

VARIANTS = ("relu", "topk", "batchtopk", "jumprelu")


def autoencoder(variant: str, dtype: torch.dtype = torch.float64, d_in: int = 12, d_sae: int = 30) -> SparseAutoencoder:
    torch.manual_seed(0)
    sae = SparseAutoencoder(SAEConfig(d_in, d_sae, variant, k=5)).to(dtype)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        if variant == "jumprelu":
            sae.log_threshold.copy_(torch.rand(d_sae, dtype=dtype).mul_(0.2).add_(0.05).log())
    return sae.train()


def data(n: int = 40, d_in: int = 12, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    v = torch.randn(n, d_in, generator=torch.Generator().manual_seed(1), dtype=dtype).relu()
    v[3] = 0.0
    return v


DEAD = {
    "nobody is asked": ([], None),
    "none of some": ([], range(4, 20)),
    "three of four": ([3, 8, 9], [3, 8, 9, 14]),  # fewer than half the inputs: all dead ones take part
    "nine of twenty": (range(9), range(20)),  # more than half the inputs: the most excited take part
    "twelve of all": (range(5, 17), range(30)),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", DEAD)
def test_gradients_equal_autograds(variant: str, case: str) -> None:
    sae, v = autoencoder(variant), data()
    if variant == "jumprelu":  # put some pre-activations within the rectangle, or the threshold has no gradient
        with torch.no_grad():
            h = sae.pre_activations(v)
            sae.log_threshold.copy_((h.clamp_min(0.01).amax(dim=0) - 0.2 * BANDWIDTH).log())
    dead, among = DEAD[case]
    mask = torch.zeros(30, dtype=torch.bool).index_fill_(0, torch.tensor(list(dead), dtype=torch.int64), True)
    losses, f = loss(sae, v, 0.01, mask)
    names, parameters = zip(*sae.named_parameters(), strict=True)
    expected = dict(zip(names, torch.autograd.grad(losses.total, parameters), strict=True))
    got = gradients(sae, v, 0.01, among and Dead(torch.tensor(list(among)), mask[list(among)]))
    assert (losses.penalty > 0) == (variant in ("relu", "jumprelu") or bool(mask.any()))
    assert got.by_name.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0, f"{name}: nothing to compare"
        torch.testing.assert_close(got.by_name[name], gradient, atol=1e-12, rtol=1e-9)
    for name in ("total", "reconstruction", "penalty"):
        torch.testing.assert_close(
            getattr(got.losses, name).double(), getattr(losses, name).double(), rtol=1e-12, atol=0
        )
    torch.testing.assert_close(got.features, f, atol=1e-14, rtol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_in_single_precision(variant: str) -> None:
    sae, v = autoencoder(variant, torch.float32, 64, 256), data(500, 64, torch.float32)
    losses, _ = loss(sae, v, 0.01)
    names, parameters = zip(*sae.named_parameters(), strict=True)
    expected = dict(zip(names, torch.autograd.grad(losses.total, parameters), strict=True))
    got = gradients(sae, v, 0.01)
    for name, gradient in expected.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(got.by_name[name], gradient, atol=1e-5 * scale, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_memory_used_again_changes_no_bit(variant: str) -> None:
    """By another autoencoder of the same shape, by one of another shape, and with a batch of another length."""
    workspace = Workspace()
    for n, d_sae in ((40, 30), (40, 30), (40, 12), (17, 30), (40, 30)):
        sae, v = autoencoder(variant, d_sae=d_sae), data(n)
        alone, shared = gradients(sae, v, 0.01), gradients(sae, v, 0.01, workspace=workspace)
        assert torch.equal(shared.features, alone.features) and torch.equal(shared.losses.total, alone.losses.total)
        for name, gradient in alone.by_name.items():
            assert torch.equal(shared.by_name[name], gradient), name
    addresses = {tensor.data_ptr() for tensor in workspace.held.values()}
    gradients(autoencoder(variant), data(), 0.01, workspace=workspace)
    assert {tensor.data_ptr() for tensor in workspace.held.values()} == addresses


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("precision", ["high", "medium"])
def test_gradients_with_narrow_factors(variant: str, precision: str) -> None:
    """bfloat16 keeps eight bits of a factor. A threshold's gradient is of the few pre-activations within 0.001 of it, and those
    are others after rounding: it is held by what training makes of it (test_sae_training.py)."""
    sae, v = autoencoder(variant, torch.float32, 64, 256), data(500, 64, torch.float32)
    exact = gradients(sae, v, 0.01)
    with matmul_precision(precision):
        narrow = gradients(sae, v, 0.01)
    assert torch.get_float32_matmul_precision() == "highest"
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        gradient = exact.by_name[name]
        assert narrow.by_name[name].dtype == torch.float32
        error = (narrow.by_name[name] - gradient).norm() / gradient.norm()
        assert error < 0.05, f"{name}: {error:.3f}"
    torch.testing.assert_close(narrow.losses.total, exact.losses.total, rtol=5e-3, atol=0)


def test_a_row_of_zeros_has_no_part_in_the_papers_loss() -> None:
    """There it divides by zero, and one such token makes every weight NaN."""
    sae, v = autoencoder("relu"), data()
    found = gradients(sae, v, 0.0)
    without = gradients(sae, torch.cat((v[:3], v[4:])), 0.0)
    assert all(bool(gradient.isfinite().all()) for gradient in found.by_name.values())
    torch.testing.assert_close(found.losses.reconstruction * 40, without.losses.reconstruction * 39)
    torch.testing.assert_close(found.by_name["W_dec"] * 40, without.by_name["W_dec"] * 39)
