"""Coding rate and sparsity, against numbers worked out by other means."""

from typing import Any

import numpy as np
import pytest
import torch

from crate_model import taps
from crate_model.config import ModelConfig
from crate_model.diagnostics import coding_rate, diagnose, fraction_nonzero
from crate_model.model import LanguageModel


def test_coding_rate_by_singular_values() -> None:
    """1/2 sum over heads and singular values s of log(1 + p s^2 / (N eps^2)), from numpy."""
    projected = torch.randn(2, 25, 12, generator=torch.Generator().manual_seed(0))
    expected = 0.0
    for head in np.split(projected.reshape(50, 12).double().numpy(), 3, axis=1):
        singular = np.linalg.svd(head, compute_uv=False)
        expected += 0.5 * np.log1p(4 * singular**2 / (50 * 0.5**2)).sum()
    assert coding_rate(projected, n_head=3).item() == pytest.approx(expected, rel=1e-12)


def test_coding_rate_of_nothing_and_of_compressed_tokens() -> None:
    projected = torch.randn(100, 16, generator=torch.Generator().manual_seed(0))
    assert coding_rate(torch.zeros(10, 16), 4).item() == 0
    line = projected[:, :1].expand(100, 16)  # all tokens on one line of each subspace
    rates = [coding_rate(tokens, 4).item() for tokens in (projected, 0.5 * projected, line)]
    assert rates[0] > rates[1] > 0 and rates[0] > rates[2]


def test_fraction_nonzero() -> None:
    assert fraction_nonzero(torch.tensor([[0.0, 1.0, 0.0, 2.0]])).item() == 0.5


def test_diagnose_crate() -> None:
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig("crate", 2, 4, 32, 16, 97))
    ids = torch.randint(97, (4, 16))
    first, second = diagnose(model, ids)
    assert (first.layer, second.layer) == (0, 1)
    with taps.read(model, ["blocks.1.code", "blocks.1.attention_shared"]) as values:
        model(ids)
    assert second.fraction_nonzero == pytest.approx((values["blocks.1.code"] > 0).double().mean().item())
    assert second.coding_rate_before == pytest.approx(coding_rate(values["blocks.1.attention_shared"], 4).item())
    assert first.coding_rate is not None and first.coding_rate > 0
    assert 0.3 < first.fraction_nonzero < 0.7  # at initialisation about half of a code is zero


def test_diagnose_gpt2_has_sparsity_alone() -> None:
    layers = diagnose(LanguageModel(ModelConfig("gpt2", 2, 4, 32, 16, 97)), torch.randint(97, (2, 16)))
    assert [layer.coding_rate for layer in layers] == [None, None]
    assert all(0.3 < layer.fraction_nonzero < 0.7 for layer in layers)


@pytest.mark.parametrize("architecture", ["crate", "gpt2"])
@pytest.mark.parametrize("padding", [0, 7])
def test_padding_after_a_text_is_not_counted(architecture: str, padding: int) -> None:
    """A whole window and a short one, padded; whatever the padding is, the figures are those of the texts alone."""
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(architecture, 2, 4, 32, 16, 97))
    whole, short = torch.randint(97, (1, 16)), torch.randint(97, (1, 5))
    ids = torch.cat((whole, torch.cat((short, torch.full((1, 11), padding)), dim=1)))
    real = torch.cat((torch.ones(1, 16), torch.cat((torch.ones(1, 5), torch.zeros(1, 11)), dim=1))).bool()
    for layer in diagnose(model, ids, real):
        names = [f"blocks.{layer.layer}.code"]
        crate = architecture == "crate"
        names += [f"blocks.{layer.layer}.{tap}" for tap in ("attention_shared", "residual_mid")] if crate else []
        texts = []
        for text in (whole, short):
            with taps.read(model, names) as values:
                model.hidden(text)
            texts.append({name: value[0] for name, value in values.items()})
        code, *rates = (torch.cat([text[name] for text in texts]) for name in names)
        assert layer.fraction_nonzero == pytest.approx(fraction_nonzero(code).item(), abs=1e-3)
        if crate:
            block: Any = model.blocks[layer.layer]
            with torch.no_grad():
                compressed = block.attention.shared(block.attention_norm(rates[1]))
            assert layer.coding_rate_before == pytest.approx(coding_rate(rates[0], 4).item(), rel=1e-5)
            assert layer.coding_rate == pytest.approx(coding_rate(compressed, 4).item(), rel=1e-5)
