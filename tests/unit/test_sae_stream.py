"""The stream of activations: every token once a filling, any step to be had at once, the model's own values."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sae_world import N_CTX, World

from crate_model import taps
from pipeline.artifacts.activation_stream import ActivationStream, forward_to
from pipeline.artifacts.order import window_ids
from pipeline.artifacts.tokens import TokenSplit

POINTS = ("blocks.0.code", "blocks.1.out")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("stream"))


def stream(
    world: World, batch_tokens: int = 60, buffer_tokens: int = 5 * N_CTX, batch_rows: int = 2
) -> ActivationStream:
    split = TokenSplit(world.tokens, "train")
    return ActivationStream(world.model, split, POINTS, 7, batch_tokens, buffer_tokens, batch_rows, torch.device("cpu"))


def take(made: ActivationStream, start: int, count: int) -> list[dict[str, torch.Tensor]]:
    batches = made.batches(start)
    return [{point: value.clone() for point, value in next(batches).items()} for _ in range(count)]


def test_a_partial_forward_gives_the_values_of_the_whole_one(world: World) -> None:
    ids = torch.arange(2 * N_CTX).view(2, N_CTX)
    with taps.read(world.model, POINTS) as whole, torch.no_grad():
        world.model(ids)
    part = forward_to(world.model, ids, POINTS)
    assert all(torch.equal(part[point], whole[point]) for point in POINTS)


def test_a_filling_holds_each_of_its_tokens_once(world: World) -> None:
    """8 batches of 60 are 480 tokens: three fillings of 160, whole, though no batch divides a filling."""
    made = stream(world)
    rows = torch.cat([batch["blocks.0.code"] for batch in take(made, 0, 8)])
    split = TokenSplit(world.tokens, "train")
    expected = []
    for filling in range(3):
        windows = window_ids(7, filling, 5, split.n_windows(N_CTX))
        ids = torch.from_numpy(split.windows(windows, N_CTX)[:, :-1].copy())
        expected.append(forward_to(world.model, ids, POINTS)["blocks.0.code"].flatten(0, 1))
    for filling in range(3):
        got = rows[filling * 160 : (filling + 1) * 160]
        torch.testing.assert_close(sorted_rows(got), sorted_rows(expected[filling]), atol=1e-5, rtol=0)
        assert not torch.allclose(got, expected[filling], atol=1e-3), "not shuffled"


def sorted_rows(rows: torch.Tensor) -> torch.Tensor:
    return rows[rows.sum(dim=1).round(decimals=3).argsort(stable=True)].sum(dim=1).sort().values


def test_taps_stay_aligned(world: World) -> None:
    """Row i of every tap is the same token: the code of layer 1 decodes to its output."""
    made = ActivationStream(
        world.model,
        TokenSplit(world.tokens, "train"),
        ("blocks.1.code", "blocks.1.out"),
        7,
        60,
        160,
        2,
        torch.device("cpu"),
    )
    batch = take(made, 2, 1)[0]
    decoded = batch["blocks.1.code"] @ world.model.blocks[1].feedforward.dictionary
    torch.testing.assert_close(decoded, batch["blocks.1.out"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("start", [1, 2, 5, 8])
def test_any_step_can_be_the_first(world: World, start: int) -> None:
    whole = take(stream(world), 0, start + 3)[start:]
    for a, b in zip(whole, take(stream(world), start, 3), strict=True):
        assert all(torch.equal(a[point], b[point]) for point in POINTS)


def test_memory_is_one_buffer_a_tap(world: World) -> None:
    """The buffers are made once and written anew: no filling is ever held beside another."""
    made = stream(world)
    first = made._fill(0, {})
    places = {point: buffer.data_ptr() for point, buffer in first.items()}
    again = made._fill(1, first)
    assert {point: buffer.data_ptr() for point, buffer in again.items()} == places
    assert {buffer.shape[0] for buffer in again.values()} == {160}


def test_a_buffer_below_a_window_still_holds_one(tmp_path: Path, world: World) -> None:
    assert take(stream(world, buffer_tokens=1), 0, 1)[0]["blocks.0.code"].shape == (60, 64)
