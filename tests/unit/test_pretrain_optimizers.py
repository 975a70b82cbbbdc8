"""All builds of AdamW make the same update, and none is taken for another."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import PretrainConfig
from pipeline.errors import ResourceError
from pipeline.pretrain import op_builds, optimizers

CONFIG = PretrainConfig()
CPU = torch.device("cpu")


def trained(name: str, steps: int, interrupt_at: int = 0) -> list[torch.Tensor]:
    """Parameters after some steps on the same made-up gradients; at `interrupt_at` the state moves to a new optimizer."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.LayerNorm(30), torch.nn.Linear(30, 5))
    optimizer = optimizers.build(name, optimizers.parameter_groups(model, CONFIG.weight_decay), CONFIG)
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        if step and step == interrupt_at:
            optimizer = moved(name, model, optimizer, step)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


def moved(name: str, model: torch.nn.Module, old: Any, updates: int) -> Any:
    new = optimizers.build(name, optimizers.parameter_groups(model, CONFIG.weight_decay), CONFIG)
    for parameter in model.parameters():
        new.state[parameter] = optimizers.fresh_state(new, parameter)
        for moment in ("exp_avg", "exp_avg_sq"):
            new.state[parameter][moment].copy_(old.state[parameter][moment])
    optimizers.set_updates(new, updates)
    return new


def available(names: tuple[str, ...] = optimizers.NAMES) -> list[str]:
    """What this machine has without compiling anything."""
    found = [name for name in names if not optimizers.missing(name, "cpu")[0]]
    return [name for name in found if name not in optimizers.OPERATIONS or optimizers.is_prebuilt(name)]


@pytest.mark.parametrize("name", available())
def test_fifty_steps_equal_torch(name: str) -> None:
    for ours, theirs in zip(trained(name, 50), trained("torch", 50), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)  # of weights that moved by about 0.05


@pytest.mark.skipif(os.environ.get("CRATE_COMPILE_OPS") != "1", reason="compiling takes a minute an operation")
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", sorted(optimizers.OPERATIONS))
def test_fifty_steps_of_a_compiled_build_equal_torch(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    for ours, theirs in zip(trained(name, 50), trained("torch", 50), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", available())
def test_an_optimizer_that_took_over_a_state_goes_on_to_the_bit(name: str) -> None:
    for whole, in_two in zip(trained(name, 9), trained(name, 9, interrupt_at=4), strict=True):
        assert torch.equal(whole, in_two)


def test_decay_is_for_matrices_only() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    decayed, plain = optimizers.parameter_groups(model, 0.1)
    assert [p.ndim for p in decayed["params"]] == [2] and decayed["weight_decay"] == 0.1
    assert {p.ndim for p in plain["params"]} == {1} and plain["weight_decay"] == 0.0


def test_the_other_apex_does_not_fool_us(tmp_path: Path) -> None:
    """PyPI's `apex` is another project; a package of that name alone must not count."""
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").write_text("")
    code = "from pipeline.pretrain import optimizers; print(*optimizers.missing('apex', 'cuda'))"
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    told = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True
    ).stdout
    assert "it is not NVIDIA's" in told and "amp_C" in told


def test_a_choice_that_cannot_be_had_fails_with_what_to_install() -> None:
    with pytest.raises(ResourceError) as told:
        optimizers.require("apex", "cpu", offload=False)
    assert "CUDA" in told.value.what and "torch_fused" in told.value.fix
    with pytest.raises(ResourceError):
        optimizers.require("deepspeed_cpu", "cuda", offload=False)


def test_a_missing_compiler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    what, fix = optimizers.missing("deepspeed", "cuda")
    assert "nvcc" in what and "DS_BUILD_FUSED_ADAM=1" in fix


def test_auto_measures_what_is_there_and_compiles_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    choice = optimizers.choose([(1000, 64), (64,)], CONFIG, CPU, offload=False)
    assert choice.name in choice.milliseconds
    assert {"torch", "torch_fused"} <= set(choice.milliseconds)
    assert "CUDA" in choice.left_out["apex"]
    assert set(choice.milliseconds) | set(choice.left_out) == set(optimizers.NAMES)
    assert not list(tmp_path.iterdir())


def test_a_stale_build_lock_is_told_and_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lock = tmp_path / "py311_cpu" / "fused_adam" / "lock"
    lock.parent.mkdir(parents=True)
    lock.write_text("")
    os.utime(lock, (time.time() - 1000,) * 2)
    assert op_builds.stale_locks(tmp_path) == [lock]
    with op_builds.building("fused_adam", tmp_path):
        assert not lock.exists()
    assert str(lock) in caplog.text


def test_a_build_that_is_under_way_is_waited_for(tmp_path: Path) -> None:
    lock = tmp_path / "py311_cpu" / "fused_adam" / "lock"
    lock.parent.mkdir(parents=True)
    lock.write_text("")
    started = time.monotonic()
    with op_builds.building("fused_adam", tmp_path, quiet_seconds=1.5):
        pass
    assert time.monotonic() - started > 1.0
