"""All builds of AdamW make the same update, and none is taken for another."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.preflight import node
from pipeline import doctor
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
        optimizers.require("apex", CONFIG, CPU, offload=False)
    assert "CUDA" in told.value.what and "torch_fused" in told.value.fix
    with pytest.raises(ResourceError):
        optimizers.require("deepspeed_cpu", CONFIG, torch.device("cuda"), offload=False)


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


class WouldCompile(RuntimeError):
    """What compiling an operation raises where a test forbids it."""


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have the installed DeepSpeed be another: `installed(built_for, operations, running_on)`. Compiling raises WouldCompile."""
    op_builds.import_deepspeed()
    from deepspeed import git_version_info
    from deepspeed.accelerator import cpu_accelerator, cuda_accelerator, real_accelerator
    from deepspeed.ops.op_builder.builder import OpBuilder

    def compiles(builder: Any, verbose: bool = True) -> Any:
        raise WouldCompile(builder.name)

    def install(built_for: str, operations: list[str], running_on: str) -> None:
        kind = cuda_accelerator.CUDA_Accelerator if running_on == "cuda" else cpu_accelerator.CPU_Accelerator
        versions = {"version": ".".join(torch.__version__.split(".")[:2]), "cuda_version": torch.version.cuda}
        monkeypatch.setattr(real_accelerator, "ds_accelerator", kind())
        monkeypatch.setattr(git_version_info, "installed_ops", dict.fromkeys(operations, True))
        monkeypatch.setattr(git_version_info, "accelerator_name", built_for)
        monkeypatch.setattr(git_version_info, "torch_info", versions)
        monkeypatch.setattr(OpBuilder, "_loaded_ops", {})
        monkeypatch.setattr(OpBuilder, "jit_load", compiles)

    return install


BUILDS = [("cuda", ["fused_adam"]), ("cuda", ["cpu_adam"]), ("cpu", ["fused_adam", "cpu_adam"]), ("", [])]


@pytest.mark.parametrize("running_on", ["cpu", "cuda"])
@pytest.mark.parametrize(("built_for", "operations"), BUILDS)
def test_prebuilt_is_what_deepspeed_loads_without_compiling(
    installed: Callable[..., None], built_for: str, operations: list[str], running_on: str
) -> None:
    """Its own `load` is asked: it imports what was built in (not there, since nothing was built) or compiles."""
    installed(built_for, operations, running_on)
    from deepspeed.accelerator import get_accelerator

    for name, builder in (("deepspeed", "FusedAdamBuilder"), ("deepspeed_cpu", "CPUAdamBuilder")):
        with pytest.raises((WouldCompile, ModuleNotFoundError)) as told:
            get_accelerator().create_op_builder(builder).load()
        assert optimizers.is_prebuilt(name) == (told.type is ModuleNotFoundError), name


def test_auto_compiles_nothing_where_deepspeed_was_built_for_another_accelerator(
    installed: Callable[..., None],
) -> None:
    installed("cuda", ["fused_adam", "cpu_adam"], running_on="cpu")
    left_out = optimizers.choose([(100, 64)], CONFIG, CPU, offload=False).left_out
    for name in optimizers.OPERATIONS:
        assert left_out[name] in ("would have to be compiled first", optimizers.missing(name, "cpu")[0])


def test_what_is_compiled_because_it_was_asked_for_is_told(
    installed: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed("cuda", ["fused_adam"], running_on="cpu")
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")  # a compiler and ninja
    told: list[str] = []
    with pytest.raises(ResourceError, match="WouldCompile: fused_adam"):
        optimizers.require("deepspeed", CONFIG, CPU, offload=False, tell=told.append)
    assert told == ["compiling DeepSpeed's fused_adam, not prebuilt for this machine; kept for later jobs"]


@pytest.mark.parametrize(
    ("built_for", "line"), [("cuda", "cpu_adam, fused_adam"), ("cpu", "none prebuilt for this machine")]
)
def test_doctor_names_the_operations_that_need_no_compiler(
    installed: Callable[..., None], monkeypatch: pytest.MonkeyPatch, built_for: str, line: str
) -> None:
    installed(built_for, ["fused_adam", "cpu_adam"], running_on="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert doctor._deepspeed_ops(torch).startswith(line)


@pytest.mark.parametrize(("built_for", "good"), [("cuda", True), ("cpu", False)])
def test_the_preflight_takes_no_operation_of_another_accelerator(
    installed: Callable[..., None], monkeypatch: pytest.MonkeyPatch, built_for: str, good: bool
) -> None:
    installed(built_for, ["fused_adam"], running_on="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert next(node.fused()).good is good


class Planted(torch.optim.AdamW):
    """AdamW that is not quite: `round_up` moves every weight by one rounding, `forget` leaves the decay out."""

    def __init__(self, groups: Any, settings: dict[str, Any], fault: str) -> None:
        self.fault = fault
        super().__init__(groups, **settings)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        if self.fault == "does not load":
            raise ImportError("libsomething.so: undefined symbol: of_another_torch")
        if self.fault == "forgets the decay":
            for group in self.param_groups:
                group["weight_decay"] = 0.0
        super().step(closure)
        if self.fault == "rounds otherwise":
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.copy_(torch.nextafter(parameter, torch.full_like(parameter, torch.inf)))


def plant(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """Have `torch_fused` be one with a fault."""
    build = optimizers.build

    def planted(name: str, groups: Any, config: PretrainConfig, *rest: Any) -> Any:
        settings = {"lr": 0.0, "betas": (config.beta1, config.beta2), "eps": config.epsilon}
        return Planted(groups, settings, fault) if name == "torch_fused" else build(name, groups, config, *rest)

    monkeypatch.setattr(optimizers, "build", planted)


@pytest.mark.parametrize("fault", ["forgets the decay", "does not load"])
def test_auto_leaves_out_a_build_that_is_wrong_or_broken_and_says_why(
    monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    plant(monkeypatch, fault)
    choice = optimizers.choose([(100, 64)], CONFIG, CPU, offload=False)
    assert choice.name == "torch" and list(choice.milliseconds) == ["torch"]
    why = {"forgets the decay": "differs from torch's AdamW by", "does not load": "undefined symbol: of_another_torch"}
    assert why[fault] in choice.left_out["torch_fused"]
    with pytest.raises(ResourceError, match=why[fault]):
        optimizers.require("torch_fused", CONFIG, CPU, offload=False)


def test_a_build_that_only_rounds_otherwise_is_as_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed's FusedAdam differs by about 2e-7 a step: it must not be taken for wrong."""
    plant(monkeypatch, "rounds otherwise")
    assert 0 < optimizers.one_step_difference("torch_fused", CONFIG, "cpu") < optimizers.TOLERANCE
    assert "torch_fused" in optimizers.choose([(100, 64)], CONFIG, CPU, offload=False).milliseconds


def test_a_stale_build_lock_is_told_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[str] = []
    lock = tmp_path / "py311_cpu" / "fused_adam" / "lock"
    lock.parent.mkdir(parents=True)
    lock.write_text("")
    os.utime(lock, (time.time() - 1000,) * 2)
    assert op_builds.stale_locks(tmp_path) == [lock]
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    doctor.examine(tmp_path)
    assert str(lock) in capsys.readouterr().out
    with op_builds.building("fused_adam", told.append, tmp_path):
        assert not lock.exists()
    (sentence,) = told
    assert str(lock) in sentence and "killed" in sentence


def test_a_build_that_is_under_way_is_waited_for(tmp_path: Path) -> None:
    lock = tmp_path / "py311_cpu" / "fused_adam" / "lock"
    lock.parent.mkdir(parents=True)
    lock.write_text("")
    told: list[str] = []
    started = time.monotonic()
    with op_builds.building("fused_adam", told.append, tmp_path, quiet_seconds=1.5):
        pass
    assert time.monotonic() - started > 1.0
    assert [sentence.split()[0] for sentence in told] == ["waiting", "removing"]
