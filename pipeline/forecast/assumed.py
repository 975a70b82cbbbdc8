"""Which machine a plan is for: the one that is named, the GPUs found here, or what is assumed for want of both."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field

from pipeline.errors import ConfigError
from pipeline.forecast.machine import Machine, Rates
from pipeline.pretrain.meter import peak_flops

CORES = "device"  # the name of a core of this machine
HERE = Rates(trainer_start_seconds=15.0, stage_start_seconds=4.0, report_seconds=6.0)  # of the quickstart, on two cores
USUAL_GPU, USUAL_GPUS, CORES_A_GPU = "H100", 8, 8


@dataclass(frozen=True)
class Assumed:
    """`said` tells a person what the hours rest on."""

    machine: Machine
    device: str
    said: str
    rates: Rates = field(default_factory=Rates)


def peak_of(gpu: str) -> float:
    """Dense 16-bit FLOP/s of a GPU by its name, in any case. Raises ConfigError for one that is not known."""
    peak = peak_flops(gpu) or peak_flops(gpu.upper())
    if peak is None:
        raise ConfigError(f"no peak is known of a GPU called {gpu}", fix="Try A100, H100, H200, B200, L40S or A10.")
    return peak


def assume(gpu: str = "", gpus: int = 0, only_gpus: bool = False) -> Assumed:
    """`gpu` and `gpus` as a person named them. Without either and without a GPU here: each of this machine's cores as a device,
    or, for what is counted in GPU-hours (`only_gpus`), a usual node.
    """
    import torch

    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpu or gpus or (only_gpus and not here):
        name, count = gpu or USUAL_GPU, gpus or USUAL_GPUS
        guessed = [text for text, told in ((f"--gpu {name}", gpu), (f"--gpus {count}", gpus)) if not told]
        return _gpus(name, count, f" ({' '.join(guessed)} assumed: name yours)" if guessed else "")
    if here:
        return _gpus(torch.cuda.get_device_name(0), here, " found here")
    cores = os.cpu_count() or 1
    machine = Machine(cores, cores, _matrix_product_rate() / cores, gpus_per_node=cores)
    said = f"no GPU is here or named (--gpu H100 --gpus 8): each of {cores} cores as a device"
    return Assumed(machine, CORES, said, HERE)


def _gpus(name: str, count: int, how: str) -> Assumed:
    machine = Machine(count, CORES_A_GPU * count, peak_of(name))
    share = Rates().train_utilisation
    said = f"{count} {name}{how}, {machine.peak_flops / 1e12:g} TFLOP/s each, of which training reaches {share:.0%}"
    return Assumed(machine, name, said)


def _matrix_product_rate() -> float:
    """FLOP/s of this machine's cores together."""
    import torch

    n, best = 1024, float("inf")
    a = torch.randn(n, n)
    for _ in range(4):
        started = time.perf_counter()
        (a @ a).sum().item()
        best = min(best, time.perf_counter() - started)
    return 2 * n**3 / best
