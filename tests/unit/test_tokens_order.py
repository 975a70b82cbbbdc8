"""The order of batches: a permutation an epoch, the same for every number of workers, from any step at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.artifacts.order import chain, count_windows, share_of, window_ids

seeds = st.integers(0, 2**63)


@settings(deadline=None)
@given(seed=seeds, n=st.integers(1, 5000), epoch=st.integers(0, 1000))
def test_every_epoch_is_a_permutation(seed, n, epoch):
    assert sorted(window_ids(seed, epoch, n, n)) == list(range(n))


@settings(deadline=None)
@given(seed=seeds, step=st.integers(0, 10_000), batch=st.integers(1, 64), n=st.integers(1, 300))
def test_any_step_starts_where_the_steps_before_it_end(seed, step, batch, n):
    one_long = window_ids(seed, 0, batch * (step % 50 + 1), n)
    assert np.array_equal(window_ids(seed, step % 50, batch, n), one_long[-batch:])
    assert np.array_equal(window_ids(seed, step, batch, n), window_ids(seed, step, batch, n))


@settings(deadline=None)
@given(seed=seeds, step=st.integers(0, 10**9), batch=st.integers(1, 100), n=st.integers(1, 10**9))
def test_workers_share_the_same_batch_whatever_their_number(seed, step, batch, n):
    ids = window_ids(seed, step, batch, n)
    assert len(ids) == batch and ids.dtype == np.int64 and ids.min() >= 0 and ids.max() < n
    for world_size in (1, 2, 3, 8):
        shares = [share_of(ids, rank, world_size) for rank in range(world_size)]
        assert np.array_equal(np.concatenate(shares), ids)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_all_orders_of_three_windows_are_about_equally_frequent():
    orders = [tuple(window_ids(seed, 0, 3, 3)) for seed in range(3000)]
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(counts) == 6
    assert ((counts - 500) ** 2 / 500).sum() < 20.5  # chi-squared with 5 degrees of freedom, p = 0.001


def test_windows_that_lie_side_by_side_are_read_far_apart():
    order = window_ids(7, 0, 10_000, 10_000)
    assert abs(np.corrcoef(order, np.arange(10_000))[0, 1]) < 0.04
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.04
    other_epoch = window_ids(7, 1, 10_000, 10_000)
    assert (order == other_epoch).sum() < 10


def test_the_rolling_hash_tells_order_and_content():
    first, second = window_ids(0, 0, 8, 1000), window_ids(0, 1, 8, 1000)
    assert chain(chain("", first), second) == chain(chain("", first), second)
    assert chain(chain("", first), second) != chain(chain("", second), first)
    assert len(chain("", first)) == 64


def test_windows_are_counted_with_a_target_for_the_last_input():
    assert [count_windows(n, 10) for n in (0, 1, 10, 11, 20, 21)] == [0, 0, 0, 1, 1, 2]
    with pytest.raises(ValueError, match="no windows"):
        window_ids(0, 0, 1, 0)
