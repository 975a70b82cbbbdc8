"""The Triton kernel of the cross entropy under Triton's interpreter, run by test_cross_entropy.py with TRITON_INTERPRET=1."""

import pytest
import torch

from crate_model.ops import cross_entropy_triton


@pytest.mark.parametrize("n_words", [1, 31, 64, 200])
@pytest.mark.parametrize("spread", [1.0, 100.0])
def test_losses_and_gradient(n_words: int, spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy_triton, "BLOCK", 64)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(9, n_words, generator=generator) * spread
    targets = torch.randint(n_words, (9,), generator=generator)
    expected = logits.clone().requires_grad_()
    losses = torch.nn.functional.cross_entropy(expected, targets, reduction="none")
    losses.sum().backward()
    ours = cross_entropy_triton.surprise_(logits, targets)
    torch.testing.assert_close(ours, losses.detach())
    torch.testing.assert_close(logits, expected.grad, rtol=1e-5, atol=1e-6)
