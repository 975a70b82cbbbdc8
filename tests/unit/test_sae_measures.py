"""Measures against their definitions, written out with whole logits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from sae_world import N_CTX, World, make_model, site
from training_world import make_tokens

from crate_model import taps
from crate_model.config import SAEConfig
from crate_model.model import LanguageModel
from crate_model.sae import SparseAutoencoder, spliced
from pipeline.artifacts.store import Store
from pipeline.artifacts.tokens import TokenSplit
from pipeline.config import SAEConfigSection
from pipeline.errors import ConfigError
from pipeline.sae.measures import Held, measure_all
from pipeline.sae.planned import check_held_out

SITES = (site("code-l0-2x", 0), site("code-l1-1x", 1, expansion=1))
N_MEASURED, N_LOSS = 10 * N_CTX, 6 * N_CTX


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("measures"), "gpt2")


@pytest.fixture(scope="module")
def saes() -> dict:
    torch.manual_seed(5)
    made = {one: SparseAutoencoder(SAEConfig(64, 64 * one.expansion)).eval() for one in SITES}
    with torch.no_grad():
        for sae in made.values():
            sae.b_enc[:10] = -1e3  # ten features that never fire
    return made


def held(world: World) -> Held:
    return Held(TokenSplit(world.tokens, "val"), 4, torch.device("cpu"))


def identity(d: int) -> SparseAutoencoder:
    sae = SparseAutoencoder(SAEConfig(d, d)).eval()
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(d))
        sae.W_dec.copy_(torch.eye(d))
    return sae


def windows(world: World, n: int) -> torch.Tensor:
    return torch.from_numpy(TokenSplit(world.tokens, "val").windows(range(n), N_CTX))


@torch.no_grad()
def log_probabilities(model: LanguageModel, ids: torch.Tensor) -> torch.Tensor:
    return model(ids[:, :-1]).double().log_softmax(-1).flatten(0, 1)


def test_statistics_are_their_definitions(world: World, saes: dict) -> None:
    rows, _ = measure_all(world.model, saes, held(world), N_MEASURED, N_LOSS)
    with taps.read(world.model, [one.point for one in SITES]) as values, torch.no_grad():
        world.model(windows(world, 10)[:, :-1])
    for one, row in zip(SITES, rows, strict=True):
        v = values[one.point].flatten(0, 1).double()
        f = saes[one].encode(v.float())
        v_hat = saes[one].decode(f).double()
        assert row["n_tokens"] == N_MEASURED
        assert row["l0"] == pytest.approx((f > 0).double().sum(1).mean().item())
        assert row["input_l0"] == pytest.approx((v > 0).double().sum(1).mean().item())
        unexplained = (v - v_hat).square().sum() / (v - v.mean(0)).square().sum()
        assert row["unexplained"] == pytest.approx(unexplained.item(), rel=1e-5)
        assert row["dead"] == pytest.approx(((f > 0).sum(0) == 0).double().mean().item())
        assert row["dead"] >= 10 / row["n_features"]


def test_losses_are_their_definitions(world: World, saes: dict) -> None:
    model = world.model
    rows, _ = measure_all(model, saes, held(world), N_MEASURED, N_LOSS)
    ids, targets = windows(world, 6), windows(world, 6)[:, 1:].flatten()
    clean = log_probabilities(model, ids)
    with taps.read(model, [one.point for one in SITES]) as values, torch.no_grad():
        model(windows(world, 10)[:, :-1])
    for one, row in zip(SITES, rows, strict=True):
        mean = values[one.point].flatten(0, 1).mean(0)
        with spliced(model, one.point, saes[one]):
            inside = log_probabilities(model, ids)
        with taps.edit(model, {one.point: torch.zeros_like}):
            zero = log_probabilities(model, ids)
        with taps.edit(model, {one.point: lambda value, mean=mean: mean.expand_as(value)}):
            ablated = log_probabilities(model, ids)
        assert row["n_loss_tokens"] == N_LOSS
        for name, told in (("clean", clean), ("spliced", inside), ("zero", zero), ("mean", ablated)):
            assert row[f"loss_{name}"] == pytest.approx(F.nll_loss(told, targets).item(), abs=1e-5), name
        kl = (clean.exp() * (clean - inside)).sum(-1).mean().item()
        assert row["kl"] == pytest.approx(kl, abs=1e-5)
        assert row["kl"] > 0.01, "the autoencoder is random: it has to hurt"
        assert row["loss_spliced"] != pytest.approx(row["loss_clean"], abs=1e-4)


def test_recovered_loss(world: World, saes: dict) -> None:
    for row in measure_all(world.model, saes, held(world), N_MEASURED, N_LOSS)[0]:
        for name in ("zero", "mean"):
            harm = row[f"loss_{name}"] - row["loss_clean"]
            expected = (row[f"loss_{name}"] - row["loss_spliced"]) / harm if harm > 0 else None
            assert row[f"recovered_{name}"] == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize("architecture", ["crate", "gpt2"])
def test_a_perfect_autoencoder_loses_nothing(world: World, architecture: str) -> None:
    """Non-negative inputs pass through an identity to the bit, so every loss is the clean one."""
    row = measure_all(make_model(architecture), {site(expansion=1): identity(64)}, held(world), N_MEASURED, N_LOSS)[0][
        0
    ]
    assert row["unexplained"] == 0.0
    assert row["loss_spliced"] == row["loss_clean"]
    assert row["kl"] == pytest.approx(0.0, abs=1e-6)
    assert row["l0"] == row["input_l0"]
    assert row["recovered_zero"] in (None, 1.0)


def test_batches_change_rounding_only(world: World, saes: dict) -> None:
    four, _ = measure_all(world.model, saes, held(world), N_MEASURED, N_LOSS)
    split = TokenSplit(world.tokens, "val")
    three, _ = measure_all(world.model, saes, Held(split, 3, torch.device("cpu")), N_MEASURED, N_LOSS)
    for a, b in zip(four, three, strict=True):
        assert {k: v for k, v in a.items() if isinstance(v, float)} == pytest.approx(
            {k: v for k, v in b.items() if isinstance(v, float)}, rel=1e-4, abs=1e-6
        )


def test_the_default_measures_a_million_tokens_though_windows_are_whole() -> None:
    for n_ctx in (256, 1024):
        assert SAEConfigSection().measure_tokens // n_ctx * n_ctx >= 1_000_000


def test_a_small_split_is_measured_whole(world: World, saes: dict) -> None:
    rows, _ = measure_all(world.model, saes, held(world), 10**9, N_LOSS)
    split = TokenSplit(world.tokens, "val")
    assert rows[0]["n_tokens"] == split.n_windows(N_CTX) * N_CTX


def test_val_without_a_window_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    tokens = make_tokens(Store(tmp_path), n_train=4000, n_val=1)
    n_tokens = tokens.summary["val"]["n_tokens"]
    longer = replace(make_model("crate").config, n_ctx=n_tokens)
    with pytest.raises(ConfigError, match=f"val has {n_tokens} tokens"):
        check_held_out(tokens, longer)
    check_held_out(tokens, replace(longer, n_ctx=n_tokens - 1))  # one window and its next token
    assert next(Held(TokenSplit(tokens, "val"), 2, torch.device("cpu")).batches(n_tokens - 1, 1)).shape == (1, n_tokens)
