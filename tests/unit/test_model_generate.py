"""Decoding with the cache equals decoding without, and the loss paths agree."""

import pytest
import torch

from crate_model.cache import GrowingCache
from crate_model.config import ModelConfig
from crate_model.model import LanguageModel


@pytest.fixture(params=["crate", "gpt2"])
def model(request: pytest.FixtureRequest) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(ModelConfig(request.param, 2, 2, 32, 24, 97)).eval()


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(97, (3, 20), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("pieces", [[20], [1] * 20, [7, 1, 12], [19, 1]], ids=str)
def test_a_cache_in_any_pieces_gives_the_same_stream(
    model: LanguageModel, ids: torch.Tensor, pieces: list[int]
) -> None:
    cache = GrowingCache()
    hidden = torch.cat([model.hidden(part, cache) for part in ids.split(pieces, dim=1)], dim=1)
    torch.testing.assert_close(hidden, model.hidden(ids), rtol=1e-5, atol=2e-6)


def test_the_cache_keeps_one_tensor_a_layer_where_key_and_value_are_one(
    model: LanguageModel, ids: torch.Tensor
) -> None:
    cache = GrowingCache()
    model.hidden(ids[:, :5], cache)
    model.hidden(ids[:, 5:6], cache)
    keys, values = cache._layers[0]
    assert (keys is values) == (model.config.architecture == "crate")
    assert keys.shape == (3, 2, 6, 16)


def test_padding_on_the_left_changes_nothing(model: LanguageModel, ids: torch.Tensor) -> None:
    padded = torch.cat((torch.zeros(3, 4, dtype=torch.long), ids), dim=1)
    attended = torch.arange(24).expand(3, 24) >= 4
    torch.testing.assert_close(model.hidden(padded, None, attended)[:, 4:], model.hidden(ids), rtol=1e-5, atol=2e-6)


def test_greedy_equals_taking_the_likeliest_each_time(model: LanguageModel, ids: torch.Tensor) -> None:
    prompt = expected = ids[:, :3]
    for _ in range(30):  # past n_ctx
        likeliest = model(expected[:, -24:])[:, -1].argmax(-1, keepdim=True)
        expected = torch.cat((expected, likeliest), dim=1)
    assert torch.equal(model.generate(prompt, 30, temperature=0), expected)


def test_sampling_is_seeded_and_top_k_is_kept(model: LanguageModel, ids: torch.Tensor) -> None:
    def sample(seed: int, **options: float) -> torch.Tensor:
        return model.generate(ids, 8, generator=torch.Generator().manual_seed(seed), **options)

    assert torch.equal(sample(0), sample(0))
    assert not torch.equal(sample(0), sample(1))
    assert torch.equal(sample(0, top_k=1), model.generate(ids, 8, temperature=0))
    few = torch.cat([sample(seed, top_k=2)[:, 20] for seed in range(20)]).reshape(20, 3)
    best_two = model(ids)[:, -1].topk(2).indices
    assert all(set(few[:, row].tolist()) <= set(best_two[row].tolist()) for row in range(3))


def test_too_many_positions_are_refused(model: LanguageModel) -> None:
    with pytest.raises(ValueError, match="n_ctx is 24"):
        model.hidden(torch.zeros(1, 25, dtype=torch.long))


def test_loss_equals_cross_entropy_of_the_logits(model: LanguageModel, ids: torch.Tensor) -> None:
    targets = ids.roll(-1, dims=1)
    targets[:, -1] = -1
    expected = torch.nn.functional.cross_entropy(model(ids).flatten(0, 1), targets.flatten(), ignore_index=-1)
    torch.testing.assert_close(model(ids, targets), expected)
    losses = model.token_losses(ids, targets)
    assert losses.dtype == torch.float32 and not losses.requires_grad
    torch.testing.assert_close(losses.sum() / (targets != -1).sum(), expected)


def test_bfloat16_weights_train(model: LanguageModel, ids: torch.Tensor) -> None:
    """Loss and gradients of bfloat16 weights are close to float32's, whatever way the device multiplies them."""
    model(ids, ids).backward()
    narrow = LanguageModel(model.config)
    narrow.load_state_dict(model.state_dict())
    narrow = narrow.to(torch.bfloat16)
    loss = narrow(ids, ids)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(model(ids, ids).item(), rel=1e-3)
    for (name, ours), exact in zip(narrow.named_parameters(), model.parameters(), strict=True):
        assert ours.grad.dtype == torch.bfloat16
        assert (ours.grad.float() - exact.grad).norm() / exact.grad.norm() < 0.15, name


def test_a_few_steps_of_training_learn(model: LanguageModel, ids: torch.Tensor) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = model(ids[:, :-1], ids[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
