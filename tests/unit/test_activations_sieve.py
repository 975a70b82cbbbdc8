"""The sieve finds in a row what looking at every token finds; and in pieces, as on a CPU, comes out what comes out at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.activations import moments, priority, quantiles, sieve
from pipeline.activations.priority import LARGEST, SMALLEST, name_hashes, priorities, token_hashes
from pipeline.activations.reservoir import NONE, POSITION_BITS

N_CTX, N_NEURONS = 1024, 48
OPENAI, TWELFTHS = (0.5, 0.9, 0.99, 0.999), tuple(i / 12 for i in range(1, 12))


def activations(signed: bool, seed: int = 0, n_tokens: int = N_CTX) -> torch.Tensor:
    """From neurons that always fire to dead ones, with stretches in which nobody does."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn((n_tokens, N_NEURONS), generator=generator) - torch.linspace(-4, 5, N_NEURONS)
    values[: n_tokens // 3] -= 2
    return values if signed else values.relu()


def hashes(first: int) -> torch.Tensor:
    of_tokens = torch.from_numpy(token_hashes(0, np.arange(first, first + N_CTX)))
    return priorities(of_tokens, torch.from_numpy(name_hashes(0, "site", N_NEURONS)))


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    def switch() -> None:
        for module in (priority, quantiles, sieve):
            monkeypatch.setattr(module, "on_cpu", lambda _tensor: False)

    return switch


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("shares", [OPENAI, TWELFTHS])
@pytest.mark.parametrize("fullness", ["empty", "half", "full"])
def test_the_sieve_finds_each_bins_smallest_hash_or_says_that_it_does_not_know(signed, shares, fullness):
    measured = quantiles.level_counts(activations(signed, n_tokens=8 * N_CTX), signed).numpy()
    edges = torch.from_numpy(quantiles.edge_keys(measured, shares, signed)).T.contiguous()
    share = {"empty": 1.0, "half": 0.02, "full": 0.0005}[fullness]
    worst = torch.full((N_NEURONS, len(shares) + 1), int(SMALLEST + share * (LARGEST - SMALLEST)), dtype=torch.int32)
    if fullness == "half":
        worst[::2] = LARGEST
    known = 0
    for row in range(3):
        values, h = activations(signed, seed=row + 1), hashes(row * N_CTX)
        positions = torch.arange(row * N_CTX, (row + 1) * N_CTX)
        keys, unsure = sieve.Sieve(worst, edges, shares, N_CTX).keys(values, h, positions)
        least = quantiles.least_in_bins(h, quantiles.order_keys(values, h), edges, len(shares) + 1)
        sure = torch.ones(N_NEURONS, dtype=torch.bool)
        sure[unsure] = False
        there = (least <= worst) & (least != LARGEST)
        assert torch.equal((keys != NONE)[sure], there[sure])
        assert torch.equal((keys >> POSITION_BITS)[sure][there[sure]], least.long()[sure][there[sure]])
        for neuron, bin_ in (there & sure[:, None]).nonzero().tolist():
            position = int(keys[neuron, bin_]) & (1 << POSITION_BITS) - 1
            assert h[position - row * N_CTX, neuron] == least[neuron, bin_]
        known += int(sure.sum())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sieve, "on_cpu", lambda _tensor: False)
            again, _ = sieve.Sieve(worst, edges, shares, N_CTX).keys(values, h, positions)
        assert torch.equal(keys, again)
    assert known > (0.9 if fullness == "full" else 0.2) * 3 * N_NEURONS  # or else it saves nothing


@pytest.mark.parametrize("signed", [False, True])
def test_pieces_and_the_whole_give_the_same(signed, as_on_a_gpu):
    values = activations(signed, n_tokens=3000)
    values[5, 3], values[6, 3], values[7, 3] = -0.0, 1e-40, 1e3
    h, counts, of_pieces = hashes(7), quantiles.level_counts(values, signed), moments.of_values(values)
    as_on_a_gpu()
    assert torch.equal(h, hashes(7))
    assert torch.equal(counts, quantiles.level_counts(values, signed))
    assert counts.sum(1).tolist() == [3000] * N_NEURONS
    np.testing.assert_allclose(of_pieces.sums, moments.of_values(values).sums, rtol=1e-4, atol=1e-3)
