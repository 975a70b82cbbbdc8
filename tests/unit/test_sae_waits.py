"""A training step never waits for the GPU, shown without one.

The step is taken on torch's meta device, which knows shapes and no values, and every operation on its way is looked at: those
that a host would have to wait for are reading a value, a shape that depends on values, and a copy that is not from pinned memory.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_world import World, changed, make_model, site
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from crate_model.config import SAEConfig
from crate_model.sae import SparseAutoencoder
from pipeline.artifacts.activation_stream import ActivationStream
from pipeline.artifacts.tokens import TokenSplit
from pipeline.sae.loop import _Loop
from pipeline.sae.measures import Held, _compare, statistics
from pipeline.sae.training import SAETrainer
from pipeline.sae.watcher import Watcher

GPU = torch.device("meta")
aten = torch.ops.aten
WAITED_FOR = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
}
SPARSITY = {"relu": 1e-3, "topk": 4.0, "batchtopk": 4.0, "jumprelu": 1e-3}


class NoWaits(TorchDispatchMode):
    """Raises AssertionError at an operation for which the host of a GPU would wait."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in WAITED_FOR or _by_mask(function, args) or _waiting_copy(function, args, kwargs):
            raise AssertionError(f"the host waits for the GPU at {function}")
        return function(*args, **kwargs)


def _by_mask(function: Any, args: Any) -> bool:
    indexing = function.overloadpacket in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)
    return indexing and any(index is not None and index.dtype == torch.bool for index in args[1])


def _waiting_copy(function: Any, args: Any, kwargs: Any) -> bool:
    if function is aten._to_copy.default:
        source, target = args[0], kwargs.get("device") or args[0].device
    elif function is aten.copy_.default:
        source, target = args[1], args[0].device
    else:
        return False
    pinned = kwargs.get("non_blocking", False) and getattr(source, "pinned", False)
    return source.device != target and not (target == GPU and pinned)


@pytest.fixture(autouse=True)
def pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU torch pins nothing: what would be pinned is marked."""

    def pin(tensor: Tensor) -> Tensor:
        tensor.pinned = True
        return tensor

    monkeypatch.setattr(Tensor, "pin_memory", pin)


@pytest.mark.parametrize(
    "wait",
    [
        lambda v: bool((v > 0).any()),
        lambda v: v.sum().item(),
        lambda v: v.tolist(),
        lambda v: v.cpu(),
        lambda v: v[v > 0],
        lambda v: v.masked_select(v > 0),
        lambda v: v.__setitem__(v > 0, torch.zeros((), device=GPU)),
        lambda v: torch.nonzero(v),
        lambda v: torch.tensor([1.0]).to(GPU, non_blocking=True),
        lambda v: v.copy_(torch.ones(4)),
    ],
)
def test_waits_are_noticed(wait: Callable[[Tensor], object]) -> None:
    with NoWaits(), pytest.raises(AssertionError, match="waits"):
        wait(torch.zeros(4, device=GPU))


@pytest.mark.parametrize("variant", SPARSITY)
@pytest.mark.parametrize("some_may_die", [False, True])
def test_a_step_waits_for_nothing(variant: str, some_may_die: bool) -> None:
    trainer = SAETrainer(site(variant=variant, sparsity=SPARSITY[variant]), changed(), 64, 0, GPU)
    trainer.step_number = 1
    if some_may_die:
        trainer.dying = torch.empty(20, dtype=torch.int64, device=GPU)
    with NoWaits():
        losses = trainer.step(torch.empty(64, 64, device=GPU))
    assert losses.total.shape == () and trainer.step_number == 2


@pytest.fixture
def no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)  # of the meta device, torch cannot say


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("waits"))


@pytest.mark.usefixtures("no_autocast")
def test_a_groups_steps_and_their_batches_wait_for_nothing(world: World, tmp_path: Path) -> None:
    """New fillings of the buffer, too: the language model's forward passes and the shuffling."""
    settings = changed(resample_steps=())
    sites = [site(f"code-l0-2x-{variant}", 0, variant, sparsity) for variant, sparsity in SPARSITY.items()]
    trainers = [SAETrainer(one, settings, 64, 0, GPU) for one in sites]
    split = TokenSplit(world.tokens, "train")
    stream = ActivationStream(make_model().to(GPU), split, ("blocks.0.code",), 1, 64, 96, 4, GPU)
    loop = _Loop(stream, trainers, [[] for _ in sites], settings, 0, Watcher(tmp_path, 1000))
    for trainer in trainers:
        trainer.step_number = 1
    with NoWaits():
        batches = stream.batches()
        for step in range(1, 8):
            loop._one_step(step, next(batches), n_steps=100_000)
    assert {trainer.step_number for trainer in trainers} == {8}


@pytest.mark.usefixtures("no_autocast")
def test_measuring_waits_for_nothing_before_its_end(world: World) -> None:
    held = Held(TokenSplit(world.tokens, "val"), 4, GPU)
    saes = {site(): SparseAutoencoder(SAEConfig(64, 128)).to(GPU).eval()}
    hidden = {("clean", ""): torch.empty(30, 16, device=GPU), ("zero", ""): torch.empty(30, 16, device=GPU)}
    targets = torch.empty(30, dtype=torch.int64, device=GPU)
    model = make_model().to(GPU)
    with NoWaits():
        statistics(model, saes, held, 320)
        sums = _compare(hidden, torch.empty(512, 16, device=GPU), targets)
    assert sums.shape == (2, 2)


def test_a_point_of_the_curve_is_one_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    trainer = SAETrainer(site(), changed(), 64, 0, torch.device("cpu"))
    losses = trainer.step(torch.rand(64, 64))
    monkeypatch.setattr(Tensor, "item", lambda tensor: pytest.fail("a wait of its own"))
    whole = Tensor.tolist
    monkeypatch.setattr(Tensor, "tolist", lambda tensor: asked.append(tensor) or whole(tensor))
    trainer.figures(losses, 64)
    assert len(asked) == 1
