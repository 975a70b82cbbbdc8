"""One factory for AdamW in all its builds. The choice is runtime: every build computes the same update.

`auto` takes what needs no compiler, checks one step of it against torch's plain AdamW, times it on the shapes at hand and
keeps the fastest; a build that is asked for by name and cannot be had is refused with what to install.
"""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from pipeline.config import PretrainConfig
from pipeline.errors import ResourceError
from pipeline.pretrain.op_builds import building, prebuilt_operations

if TYPE_CHECKING:
    import torch
    from torch import nn

logger = logging.getLogger(__name__)
NAMES = (
    "torch_fused",
    "apex",
    "deepspeed",
    "deepspeed_cpu",
    "torch",
)  # `auto` keeps an earlier one when times are close
OPERATIONS = {"deepspeed": "fused_adam", "deepspeed_cpu": "cpu_adam"}
TIMED_STEPS, CLOSE = 5, 0.9  # a later build must need less than nine tenths of the time
TOLERANCE = 1e-3  # of one step against torch's, relative to the rate: some dozen roundings; a forgotten decay is 0.1
BROKEN = (ImportError, OSError, RuntimeError)  # what loading or building a compiled extension may raise


@dataclass(frozen=True)
class Choice:
    """The optimizer in use and, where `auto` chose, every candidate's milliseconds a step and why others were left out."""

    name: str
    milliseconds: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def facts(self) -> dict[str, str]:
        """For the tracker: the name and, where `auto` chose, its reasons."""
        if not self.milliseconds:
            return {"optimizer": self.name}
        times = ", ".join(f"{name} {value:.3g}" for name, value in self.milliseconds.items())
        left_out = "; ".join(f"{name}: {why}" for name, why in self.left_out.items())
        return {"optimizer": self.name, "optimizer_milliseconds": times, "optimizer_left_out": left_out}


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Tensors of two or more dimensions decay, vectors (norms, biases) do not. *Source:* crate-lm, nanoGPT."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = (
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    )
    return [group for group in groups if group["params"]]


def build(
    name: str, groups: list[dict[str, Any]], config: PretrainConfig, tell: Callable[[str], None] = logger.warning
) -> torch.optim.Optimizer:
    """AdamW of the recipe over `groups`; the learning rate is set before every step.

    Every default that the builds do not share (decay, mode, bias correction) is said here. `tell` hears of a leftover lock.
    """
    settings: dict[str, Any] = {"lr": 0.0, "betas": (config.beta1, config.beta2), "eps": config.epsilon}
    if name in ("torch", "torch_fused"):
        import torch

        return torch.optim.AdamW(groups, **settings, fused=name == "torch_fused")
    if name == "apex":
        from apex.optimizers import FusedAdam as ApexFusedAdam

        return ApexFusedAdam(groups, **settings, adam_w_mode=True, bias_correction=True)
    with building(OPERATIONS[name], tell):
        from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam

        if name == "deepspeed":
            return FusedAdam(groups, **settings, adam_w_mode=True, bias_correction=True)
        return DeepSpeedCPUAdam(groups, **settings, adamw_mode=True, bias_correction=True)


def fresh_state(optimizer: torch.optim.Optimizer, parameter: torch.Tensor) -> dict[str, Any]:
    """The state that this optimizer would give `parameter` in its first step: both moments zero, no steps done."""
    import torch

    moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
    if isinstance(optimizer, torch.optim.AdamW):
        device = parameter.device if optimizer.defaults.get("fused") else None
        return {"step": torch.zeros((), device=device), **moments}
    return moments if type(optimizer).__module__.startswith("apex") else {"step": 0, **moments}


def set_updates(optimizer: torch.optim.Optimizer, updates: int) -> None:
    """Say how many updates were done; apex counts them in its groups, the others (also) beside each parameter's moments."""
    import torch

    for group in optimizer.param_groups:
        if not isinstance(optimizer, torch.optim.AdamW):
            group["step"] = updates
    for state in optimizer.state.values():
        if "step" in state:
            state["step"] = torch.full_like(state["step"], updates) if torch.is_tensor(state["step"]) else updates


def missing(name: str, device: str, offload: bool = False) -> tuple[str, str]:
    """Why this build cannot be had on `device` and what would help; two empty texts when it can, perhaps by compiling."""
    on_cpu = device == "cpu" or offload
    if name == "apex":
        if on_cpu:
            return "apex's FusedAdam runs on CUDA only", "Set runtime.optimizer to torch_fused."
        return _missing_apex()
    if name == "deepspeed_cpu" and not on_cpu:
        return "DeepSpeedCPUAdam needs its parameters on the CPU", "Set runtime.offload_optimizer: true."
    if name == "deepspeed" and offload and device != "cpu":
        return "DeepSpeed's FusedAdam does not update offloaded parameters", "Set runtime.optimizer to deepspeed_cpu."
    if name in OPERATIONS and not is_prebuilt(name):
        return _missing_compiler(name, "c++" if on_cpu else "nvcc")
    return "", ""


def _missing_apex() -> tuple[str, str]:
    """NVIDIA's extension is known by `amp_C`; the unrelated `apex` on PyPI has none and must not be taken for it."""
    if importlib.util.find_spec("amp_C") and importlib.util.find_spec("apex.optimizers"):
        return "", ""
    unrelated = " (an `apex` is installed, but it is not NVIDIA's)" if importlib.util.find_spec("apex") else ""
    fix = (
        "Use an image that carries NVIDIA apex, or build it from github.com/NVIDIA/apex with --cuda_ext; not from PyPI."
    )
    return f"NVIDIA apex with its compiled extension amp_C is not installed{unrelated}", fix


def _missing_compiler(name: str, compiler: str) -> tuple[str, str]:
    import shutil

    if shutil.which(compiler) and shutil.which("ninja"):
        return "", ""
    from deepspeed.accelerator import get_accelerator

    operation, accelerator = OPERATIONS[name], get_accelerator()._name
    how = f"DS_BUILD_{operation.upper()}=1 DS_ACCELERATOR={accelerator}"
    what = f"DeepSpeed's {operation} is not built for {accelerator}, and {compiler} or ninja is missing to build it"
    return what, f"Install {compiler} and ninja, or a DeepSpeed wheel built with {how}."


def is_prebuilt(name: str) -> bool:
    """Whether this build of DeepSpeed's needs no compiler here."""
    return OPERATIONS[name] in prebuilt_operations()


def not_for_auto(name: str, device: str, offload: bool) -> str:
    """Why `auto`, which never compiles, does not try this build on `device`; empty when it is there."""
    why, _ = missing(name, device, offload)
    if not why and name in OPERATIONS and not is_prebuilt(name):
        return "would have to be compiled first"
    return why


def require(
    name: str, config: PretrainConfig, device: torch.device, offload: bool, tell: Callable[[str], None] = logger.warning
) -> None:
    """Raise ResourceError when a build that was asked for by name cannot be had: not there, does not compile, does not load."""
    what, fix = missing(name, device.type, offload)
    if not what:
        if name in OPERATIONS and not is_prebuilt(name):
            tell(f"compiling DeepSpeed's {OPERATIONS[name]}, not prebuilt for this machine; kept for later jobs")
        what = _trial(name, config, "cpu" if offload else str(device), tell)
        fix = "Build it for this torch and this GPU, or set runtime.optimizer: auto."
    if what:
        raise ResourceError(f"runtime.optimizer {name}: {what}", fix=fix)


def _trial(name: str, config: PretrainConfig, place: str, tell: Callable[[str], None] = logger.warning) -> str:
    """Why a build that is there cannot be used after all; empty when its step is torch's."""
    try:
        difference = one_step_difference(name, config, place, tell)
    except BROKEN as error:
        last_line = str(error).strip().rpartition("\n")[2]
        return f"it does not work here: {type(error).__name__}: {last_line}"
    if not difference <= TOLERANCE:
        return f"it differs from torch's AdamW by {difference:.1e} of the learning rate in one step"
    return ""


def choose(shapes: list[tuple[int, ...]], config: PretrainConfig, device: torch.device, offload: bool) -> Choice:
    """`auto`: the fastest build that needs no compiler and agrees with torch, timed on tensors of these shapes."""
    milliseconds: dict[str, float] = {}
    left_out: dict[str, str] = {}
    place = "cpu" if offload else str(device)
    for name in NAMES:
        if why := not_for_auto(name, device.type, offload) or _trial(name, config, place):
            left_out[name] = why
        else:
            milliseconds[name] = _time(name, shapes, config, place)
    best = "torch_fused" if "torch_fused" in milliseconds else "torch"
    for name, needed in milliseconds.items():
        if needed < CLOSE * milliseconds[best]:
            best = name
    return Choice(best, milliseconds, left_out)


def one_step_difference(
    name: str, config: PretrainConfig, device: str, tell: Callable[[str], None] = logger.warning
) -> float:
    """The largest difference to torch's plain AdamW after one step, as a fraction of the learning rate."""
    import torch

    rate, results = 1e-2, []  # so high that a rounding of the parameters (1e-7) is small beside it
    for build_name in ("torch", name):
        generator = torch.Generator().manual_seed(0)
        parameters = [torch.nn.Parameter(torch.randn(n, generator=generator).to(device)) for n in (1000, 17)]
        optimizer = build(build_name, [{"params": parameters, "weight_decay": config.weight_decay}], config, tell)
        optimizer.param_groups[0]["lr"] = rate
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(device)
        optimizer.step()
        results.append(torch.cat([parameter.detach() for parameter in parameters]))
    return float((results[0] - results[1]).abs().max()) / rate


def _time(name: str, shapes: list[tuple[int, ...]], config: PretrainConfig, device: str) -> float:
    """Median milliseconds of a step over tensors of these shapes."""
    import torch

    parameters = [torch.nn.Parameter(torch.zeros(shape, device=device)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer = build(name, [{"params": parameters, "weight_decay": config.weight_decay}], config)
    times = []
    for _ in range(TIMED_STEPS + 1):
        _synchronize(device)
        started = time.perf_counter()
        optimizer.step()
        _synchronize(device)
        times.append(1000 * (time.perf_counter() - started))
    return median(times[1:])


def _synchronize(device: str) -> None:
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize()
