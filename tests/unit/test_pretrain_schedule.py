"""The learning rate of a step."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import PretrainConfig
from pipeline.pretrain.schedule import learning_rate

GOLDEN = Path(__file__).parents[1] / "data" / "crate_official_golden.npz"


def test_cosine_is_the_published_schedule() -> None:
    golden = np.load(GOLDEN)
    config = PretrainConfig()  # the paper's: 6e-4 to 6e-5, 2,000 steps of warm-up, 600,000 steps
    rates = [learning_rate(config, int(step), 600_000) for step in golden["lr_schedule/iter"]]
    np.testing.assert_allclose(rates, golden["lr_schedule/lr"], rtol=1e-12)


def test_wsd_is_flat_until_its_decay_and_ends_low() -> None:
    config = PretrainConfig(schedule="wsd", warmup_steps=10, decay_fraction=0.25)
    rates = [learning_rate(config, step, 100) for step in range(101)]
    assert rates[0] == 0 and rates[5] == pytest.approx(3e-4)
    assert set(rates[10:76]) == {6e-4}
    assert all(later < earlier for earlier, later in pairwise(rates[75:]))
    assert rates[100] == pytest.approx(6e-5)


def test_wsd_shares_its_stable_part_with_a_longer_run() -> None:
    config = PretrainConfig(schedule="wsd", warmup_steps=10)
    short, long = ([learning_rate(config, step, total) for step in range(80)] for total in (100, 1000))
    assert short == long  # so that a longer run may begin where a shorter one stood before its decay
