"""The head and its loss without a logits tensor, against the plain torch oracle that makes one."""

import pytest
import torch
from torch import Tensor

from crate_model.ops import cross_entropy as op
from crate_model.ops import precision, reference


def inputs(dtype: torch.dtype, n: int = 29, d: int = 16, vocab: int = 131) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, d, generator=generator, dtype=torch.float64)
    weight = torch.randn(vocab, d, generator=generator, dtype=torch.float64)
    targets = torch.randint(vocab, (n,), generator=generator)
    targets[::5] = -1
    return hidden.to(dtype), weight.to(dtype), targets


def loss_and_gradients(function, hidden: Tensor, weight: Tensor, targets: Tensor, scale: float = 1.0) -> list[Tensor]:
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    loss = function(hidden, weight, targets)
    (loss * scale).backward()
    assert hidden.grad is not None and weight.grad is not None
    return [loss.detach(), hidden.grad, weight.grad]


@pytest.fixture(params=[1, 7, 1000], ids=lambda rows: f"{rows} rows a chunk")
def chunked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(op.CHUNK_BYTES, "cpu", request.param * 131 * 4)


@pytest.mark.parametrize("scale", [1.0, 0.125])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_loss_and_gradients(chunked: None, dtype: torch.dtype, tolerance: float, scale: float) -> None:
    ours = loss_and_gradients(op.linear_cross_entropy, *inputs(dtype), scale)
    theirs = loss_and_gradients(reference.linear_cross_entropy, *inputs(dtype), scale)
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance, check_dtype=False)


def test_bfloat16_keeps_its_dtype_and_is_close(chunked: None) -> None:
    hidden, weight, targets = inputs(torch.bfloat16)
    loss, *ours = loss_and_gradients(op.linear_cross_entropy, hidden, weight, targets)
    exact_loss, *exact = loss_and_gradients(reference.linear_cross_entropy, hidden.float(), weight.float(), targets)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact_loss.item(), rel=5e-3)
    for our, their in zip(ours, exact, strict=True):
        assert our.dtype == torch.bfloat16
        assert (our.float() - their).norm() / their.norm() < 0.01


@pytest.mark.parametrize("native", [True, False], ids=["native", "widened"])
def test_the_weights_gradient_has_its_length_however_many_targets_count(
    native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One over the number of targets, rounded to 16 bits, would scale all of it: by 0.13 % for 700 of them."""
    monkeypatch.setattr(precision, "_ask_for_bf16", lambda: native)
    hidden, weight, targets = inputs(torch.bfloat16, n=700)
    targets = targets.clamp_min(0)
    _, _, ours = loss_and_gradients(op.linear_cross_entropy, hidden, weight, targets)
    _, _, exact = loss_and_gradients(reference.linear_cross_entropy, hidden.double(), weight.double(), targets)
    along = (ours.double() * exact).sum() / exact.square().sum()
    assert along.item() == pytest.approx(1, abs=3e-4)


@pytest.mark.parametrize("block", [1, 5, 1000], ids=lambda rows: f"{rows} rows a block")
def test_narrow_logits_are_widened_in_blocks(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """To the bit what softmax of all of them gives: what a CPU that multiplies bfloat16 does in training."""
    monkeypatch.setattr(op, "BLOCK_BYTES", block * 131 * 4)
    hidden, weight, targets = inputs(torch.bfloat16)
    targets = targets.clamp_min(0)[:, None]
    logits = hidden @ weight.T
    expected = logits.float().softmax(-1)
    losses, surprise = op._losses_and_surprise(logits.clone(), targets, hidden, weight)
    torch.testing.assert_close(losses, -expected.gather(1, targets)[:, 0].log(), rtol=0, atol=0)
    one_hot = torch.zeros_like(expected).scatter_(1, targets, 1.0)
    assert torch.equal(surprise, (expected - one_hot).bfloat16())


def test_autocast_keeps_float32_weights_gradients() -> None:
    hidden, weight, targets = inputs(torch.float32)
    exact_loss, *exact = loss_and_gradients(reference.linear_cross_entropy, hidden, weight, targets)
    with torch.autocast("cpu", torch.bfloat16):
        loss, *ours = loss_and_gradients(op.linear_cross_entropy, hidden, weight, targets)
    assert loss.item() == pytest.approx(exact_loss.item(), rel=2e-2)
    for our, their in zip(ours, exact, strict=True):
        assert our.dtype == torch.float32
        assert (our - their).norm() / their.norm() < 0.03


def test_a_probability_that_underflows_still_has_its_loss() -> None:
    """A target 300 nats below the rest: its float32 probability is 0, its loss is not infinite."""
    hidden, targets = torch.tensor([[1.0], [1.0]]), torch.tensor([0, 1])
    weight = torch.tensor([[-300.0], [0.0], [0.0]])
    ours = loss_and_gradients(op.linear_cross_entropy, hidden, weight, targets)
    torch.testing.assert_close(ours, loss_and_gradients(reference.linear_cross_entropy, hidden, weight, targets))
    assert torch.isfinite(ours[0])


def test_nothing_counted_is_nan_as_in_torch() -> None:
    hidden, weight, targets = inputs(torch.float32)
    assert torch.isnan(op.linear_cross_entropy(hidden, weight, torch.full_like(targets, -1)))


def test_token_losses(chunked: None) -> None:
    hidden, weight, targets = inputs(torch.float32)
    losses = op.token_losses(hidden, weight, targets)
    expected = torch.nn.functional.cross_entropy(hidden @ weight.T, targets, ignore_index=-1, reduction="none")
    torch.testing.assert_close(losses, expected)
    assert torch.all(losses[targets == -1] == 0)


def test_no_gradient_no_work() -> None:
    hidden, weight, targets = inputs(torch.float32)
    assert not op.linear_cross_entropy(hidden, weight, targets).requires_grad


def test_a_frozen_table_still_gives_the_hidden_gradient() -> None:
    hidden, weight, targets = inputs(torch.float32)
    ours, theirs = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    op.linear_cross_entropy(ours, weight, targets).backward()
    reference.linear_cross_entropy(theirs, weight, targets).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_frozen_body_still_gives_the_table_gradient() -> None:
    hidden, weight, targets = inputs(torch.float32)
    ours, theirs = weight.clone().requires_grad_(), weight.clone().requires_grad_()
    op.linear_cross_entropy(hidden, ours, targets).backward()
    reference.linear_cross_entropy(hidden, theirs, targets).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
