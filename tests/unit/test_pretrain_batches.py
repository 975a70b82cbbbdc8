"""Batches are decided by the recipe alone and divided over any workers without loss."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_world import N_CTX, RECIPE, make_tokens

from pipeline.artifacts.store import Store
from pipeline.artifacts.tokens import TokenSplit
from pipeline.config import PretrainConfig
from pipeline.errors import ConfigError
from pipeline.pretrain.batches import Batches, divisors, plan_batches


def recipe(**changes: int) -> PretrainConfig:
    return PretrainConfig(**{**RECIPE.model_dump(), **changes})


@pytest.fixture(scope="module")
def train_split(tmp_path_factory: pytest.TempPathFactory) -> TokenSplit:
    return TokenSplit(make_tokens(Store(tmp_path_factory.mktemp("tokens"))), "train")


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("fits", [1, 2, 8])
def test_workers_share_a_batch_without_loss(train_split: TokenSplit, world_size: int, fits: int) -> None:
    plan = plan_batches(RECIPE, N_CTX, world_size, fits=fits, elastic=True)
    seen, weight, passes = [], 0.0, set()
    for rank in range(world_size):
        batches = Batches(train_split, 0, N_CTX, rank, plan)
        made = list(batches.micro_batches(batches.window_ids(3)))
        passes.add(len(made))
        for micro in made:
            assert micro.windows.shape == (plan.micro_batch, N_CTX + 1)
            seen.extend(micro.windows[: micro.n_counted])
            weight += micro.weight / world_size
    whole = Batches(train_split, 0, N_CTX, 0, plan_batches(RECIPE, N_CTX, 1))
    np.testing.assert_array_equal(np.stack(seen), train_split.windows(whole.window_ids(3), N_CTX))
    assert weight == pytest.approx(1.0)
    assert passes == {plan.accumulation}  # all workers meet in as many collectives


@given(world_size=st.integers(1, 64), fits=st.integers(1, 64), windows=st.integers(1, 96))
def test_a_plan_covers_the_batch_exactly_or_names_what_would(world_size: int, fits: int, windows: int) -> None:
    config = recipe(batch_tokens=windows * N_CTX, total_tokens=windows * N_CTX)
    try:
        plan = plan_batches(config, N_CTX, world_size, fits=fits)
    except ConfigError as error:
        assert windows % world_size
        legal = [int(word) for word in error.fix.rstrip(".").replace(",", " ").split() if word.isdigit()]
        assert legal and all(windows % size == 0 for size in legal)
        return
    assert plan.world_size * plan.accumulation * plan.micro_batch == windows
    assert plan.micro_batch <= fits


def test_what_does_not_divide_is_told_with_what_would() -> None:
    with pytest.raises(ConfigError) as told:
        plan_batches(recipe(batch_tokens=1000), N_CTX, 1)
    assert "992 and 1024" in told.value.fix
    with pytest.raises(ConfigError) as told:
        plan_batches(RECIPE, N_CTX, 2, micro_batch=3)
    assert "1, 2, 4" in told.value.fix
    with pytest.raises(ConfigError) as told:
        plan_batches(recipe(total_tokens=10), N_CTX, 1)
    assert "256" in told.value.fix


def test_an_elastic_group_takes_the_nearest_micro_batch_that_divides() -> None:
    """Eight windows over three workers are three each; the two at a time that four workers took do not divide them."""
    sizes = {n: plan_batches(RECIPE, N_CTX, n, micro_batch=2, elastic=True).micro_batch for n in (2, 3, 4)}
    assert sizes == {2: 2, 3: 1, 4: 2}


def test_the_paper_s_batches_divide_over_usual_boxes() -> None:
    for batch_tokens, worlds in ((262_144, (1, 2, 4, 8, 16, 32)), (491_520, (1, 2, 4, 8, 16, 32))):
        for world_size in worlds:
            plan = plan_batches(PretrainConfig(batch_tokens=batch_tokens), 1024, world_size, fits=32)
            assert plan.world_size * plan.accumulation * plan.micro_batch * 1024 == batch_tokens


def test_divisors() -> None:
    assert divisors(12) == [1, 2, 3, 4, 6, 12]
    assert divisors(1) == [1]


def test_a_micro_batch_shrinks_to_what_divides() -> None:
    plan = plan_batches(RECIPE, N_CTX, 1, fits=8)
    assert (plan.micro_batch, plan.at_most(5).micro_batch, plan.at_most(0).micro_batch) == (8, 4, 1)


def test_batches_read_ahead_are_the_steps_own(train_split: TokenSplit) -> None:
    """In turn, and from any step on: a thread that reads ahead changes nothing."""
    batches = Batches(train_split, 0, N_CTX, 0, plan_batches(RECIPE, N_CTX, 1, micro_batch=2))
    for step in (3, 4, 5, 9, 10, 3):
        ids, ahead = batches.take(step)
        np.testing.assert_array_equal(ids, batches.window_ids(step))
        for ours, plain in zip(ahead, batches.micro_batches(ids), strict=True):
            np.testing.assert_array_equal(ours.windows, plain.windows)
            assert (ours.n_counted, ours.weight) == (plain.n_counted, plain.weight)
    batches.close()


def test_an_error_of_the_reader_is_raised_where_its_batch_is_taken(
    train_split: TokenSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = Batches(train_split, 0, N_CTX, 0, plan_batches(RECIPE, N_CTX, 1))

    def broken(*_arguments: object) -> None:
        raise OSError("the disk is gone")

    batches.take(0)
    monkeypatch.setattr(train_split, "windows", broken)
    with pytest.raises(OSError, match="gone"):
        for step in (1, 2):  # the thread may have read step 1 before the disk went
            batches.take(step)
    batches.close()
