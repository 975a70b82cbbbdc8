"""Training on two workers: ZeRO stages, changing world sizes, stopping and going on; each held to one plain worker."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pretrain_ranks import Order, Ranks, carry_out
from safetensors.torch import load_file
from training_world import MODEL, make_tokens

from pipeline.artifacts.store import Store
from pipeline.pretrain.__main__ import process_group
from pipeline.pretrain.optimizers import is_prebuilt

# Where losses are compared within a tolerance the model is smooth: at the kink of a ReLU a rounding of 1e-8 changes a
# gradient by a finite amount, which Adam does not forget. Where bits are compared it is CRATE.
SMOOTH = {"architecture": "gpt2", "activation": "gelu"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("ranks")
    make_tokens(Store(folder / "store"))
    return str(folder)


@pytest.fixture(scope="module")
def pair() -> Iterator[Ranks]:
    ranks = Ranks(2)
    yield ranks
    ranks.close()


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    """This process is a group of one."""
    with process_group(300):
        yield


@pytest.fixture(scope="module")
def plain(root: str) -> np.ndarray:
    """The loss curve of one worker without ZeRO, never interrupted."""
    assert "summary" in carry_out(Order(root, "plain", runtime={"zero_stage": 0}, model=SMOOTH))
    return losses(root, "plain")


def losses(root: str, name: str) -> np.ndarray:
    return pq.read_table(Path(root) / name / "curve.parquet")["loss"].to_numpy()


def consumed(root: str, name: str) -> str:
    import json

    return json.loads((Path(root) / "store" / ".scratch" / name / "outcome.json").read_text())["summary"]["consumed"]


def weights(root: str, name: str) -> dict[str, Any]:
    return load_file(Path(root) / name / "model.safetensors")


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_zero_stage_gives_the_plain_curve(root: str, plain: np.ndarray, pair: Ranks, stage: int) -> None:
    pair.train(Order(root, f"zero-{stage}", runtime={"zero_stage": stage, "micro_batch": 2}, model=SMOOTH))
    np.testing.assert_allclose(losses(root, f"zero-{stage}"), plain, rtol=0, atol=1e-5)
    assert consumed(root, f"zero-{stage}") == consumed(root, "plain")


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_optimizer_may_lie_on_the_cpu(root: str, plain: np.ndarray, stage: int) -> None:
    name = f"offload-{stage}"
    carry_out(Order(root, name, runtime={"zero_stage": stage, "offload_optimizer": True}, model=SMOOTH))
    np.testing.assert_allclose(losses(root, name), plain, rtol=0, atol=1e-5)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("name", "runtime"),
    [
        ("deepspeed", {"zero_stage": 0}),
        ("deepspeed", {"zero_stage": 2}),
        ("deepspeed_cpu", {"zero_stage": 1, "offload_optimizer": True}),
        ("deepspeed_cpu", {"zero_stage": 3, "offload_optimizer": True}),
    ],
)
def test_a_compiled_optimizer_trains_and_goes_on(
    root: str, plain: np.ndarray, name: str, runtime: dict[str, Any]
) -> None:
    if not (is_prebuilt(name) or os.environ.get("CRATE_COMPILE_OPS") == "1"):
        pytest.skip(f"DeepSpeed's {name} is not prebuilt, and compiling takes a minute")
    job, runtime = f"{name}-{runtime['zero_stage']}", {**runtime, "optimizer": name}
    carry_out(Order(root, job, runtime=runtime, model=SMOOTH, stop_after=17))
    assert "summary" in carry_out(Order(root, job, runtime=runtime, model=SMOOTH))
    np.testing.assert_allclose(losses(root, job), plain, rtol=0, atol=1e-4)


def move(root: str, name: str, model: dict[str, Any], pair: Ranks, after: tuple[int, int] = (11, 14)) -> None:
    """Train a model that changes its world size and its ZeRO stage twice on the way, after so many steps each."""
    first, second = after
    legs = (
        (pair.train, {"zero_stage": 1, "micro_batch": 1}, first),
        (carry_out, {"zero_stage": 3, "micro_batch": 2}, second),
    )
    for train, runtime, steps in legs:
        stopped = train(Order(root, name, runtime=runtime, model=model, stop_after=steps))
        assert "stopped as asked" in stopped["error"]["what"]
    last = Order(root, name, runtime={"zero_stage": 2, "micro_batch": 4}, model=model)
    assert "summary" in pair.train(last)


def test_workers_two_one_two_and_stages_one_three_two(root: str, plain: np.ndarray, pair: Ranks) -> None:
    """Batches and losses do not notice."""
    move(root, "moving", SMOOTH, pair)
    np.testing.assert_allclose(losses(root, "moving"), plain, rtol=0, atol=1e-5)
    assert len(losses(root, "moving")) == 40
    assert consumed(root, "moving") == consumed(root, "plain")
    for name, tensor in weights(root, "plain").items():
        np.testing.assert_allclose(weights(root, "moving")[name].numpy(), tensor.numpy(), rtol=0, atol=1e-4)


def test_crate_moves_too(root: str, pair: Ranks) -> None:
    """As closely, but where a rounding moves a code over the kink of its ReLU: of three ways, two at least are spared it."""
    carry_out(Order(root, "crate", runtime={"zero_stage": 0}))
    apart = []
    for steps in ((5, 9), (11, 14), (15, 3)):
        name = f"crate-moving-{steps[0]}"
        move(root, name, {}, pair, steps)
        apart.append(float(np.abs(losses(root, name) - losses(root, "crate")).max()))
        assert consumed(root, name) == consumed(root, "crate")
    assert sorted(apart)[1] < 1e-5 and max(apart) < 1e-3


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_stopped_and_gone_on_is_bit_equal_at_the_same_size(root: str, pair: Ranks, stage: int) -> None:
    recipe, runtime = {"total_tokens": 20 * 256}, {"zero_stage": stage, "micro_batch": 2}
    pair.train(Order(root, f"straight-{stage}", recipe, runtime))
    pair.train(Order(root, f"halved-{stage}", recipe, runtime, stop_after=9))
    pair.train(Order(root, f"halved-{stage}", recipe, runtime))
    np.testing.assert_array_equal(losses(root, f"halved-{stage}"), losses(root, f"straight-{stage}"))
    for name, tensor in weights(root, f"straight-{stage}").items():
        np.testing.assert_array_equal(weights(root, f"halved-{stage}")[name].numpy(), tensor.numpy())


def test_bf16_goes_on_to_the_bit_with_its_float32_masters(root: str) -> None:
    recipe, runtime = {"precision": "bf16"}, {"zero_stage": 1}
    carry_out(Order(root, "bf16", recipe, runtime))
    carry_out(Order(root, "bf16-halved", recipe, runtime, stop_after=17))
    carry_out(Order(root, "bf16-halved", recipe, runtime))
    np.testing.assert_array_equal(losses(root, "bf16-halved"), losses(root, "bf16"))


def test_an_uneven_elastic_group_keeps_the_batch(root: str, plain: np.ndarray, pair: Ranks) -> None:
    """Five windows over two workers: one of them fills up with a window that does not count."""
    recipe = {"batch_tokens": 5 * 32, "total_tokens": 20 * 5 * 32}
    carry_out(Order(root, "whole", recipe, model=SMOOTH))
    pair.train(Order(root, "uneven", recipe, {"min_workers_per_cell": 1, "zero_stage": 2}, SMOOTH))
    np.testing.assert_allclose(losses(root, "uneven"), losses(root, "whole"), rtol=0, atol=1e-5)


def test_recomputing_activations_changes_no_bit(root: str, plain: np.ndarray) -> None:
    carry_out(Order(root, "recomputed", runtime={"zero_stage": 0, "activation_checkpointing": True}, model=SMOOTH))
    np.testing.assert_array_equal(losses(root, "recomputed"), plain)


def test_gpt2_trains_too(root: str) -> None:
    summary = carry_out(Order(root, "gpt2", model={"architecture": "gpt2"}))["summary"]
    curve = losses(root, "gpt2")
    assert curve[-5:].mean() < curve[:5].mean() - 0.05
    assert summary["n_params_with_positions"] - summary["n_params"] == MODEL.n_ctx * MODEL.d_model
    assert summary["n_params"] > summary["n_params_non_embedding"]


def test_log_spaced_checkpoints_are_kept(root: str) -> None:
    carry_out(Order(root, "spaced", {"keep_log_spaced": True}))
    kept = sorted(int(path.name) for path in (Path(root) / "spaced" / "steps").iterdir())
    assert kept == [1, 2, 4, 8, 16, 32]
