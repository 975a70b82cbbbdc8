"""The small parts of training: peaks, cores, the watchdog's sentence, spikes, the ZeRO rule."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from crate_model.config import ModelConfig
from pipeline.config import RuntimeConfig
from pipeline.errors import ConfigError
from pipeline.pretrain.engine import zero_stage
from pipeline.pretrain.loop import SPIKE_MEMORY, is_loss_spike, is_spike
from pipeline.pretrain.meter import Meter, peak_flops
from pipeline.pretrain.watchdog import Watchdog

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA A10G", None),
        ("NVIDIA L40", None),
        ("Tesla T4", None),
    ],
)
def test_the_dense_peak_goes_by_name_and_is_never_guessed(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak


def test_mfu_is_left_out_where_the_peak_is_unknown() -> None:
    model = ModelConfig(n_layer=1, n_head=2, d_model=32, n_ctx=32, vocab_size=512)
    known, unknown = (Meter(model, 2, name).read(1000) for name in ("NVIDIA H200", "Voodoo 2"))
    assert "mfu" not in unknown and unknown["tokens_per_second"] > 0
    assert known["mfu"] == pytest.approx(known["flops_per_second"] / (2 * 989e12))


def test_trainers_side_by_side_take_different_cores(tmp_path: Path) -> None:
    code = (
        "import sys, os, pathlib; from pipeline.pretrain import cores\n"
        "print(cores.take_cores(1, pathlib.Path(sys.argv[1])), os.sched_getaffinity(0), flush=True)\n"
        "cores.use_any_core(); print(len(os.sched_getaffinity(0)), flush=True); sys.stdin.read()"
    )
    trainers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    lines = [[trainer.stdout.readline().strip() for _ in range(2)] for trainer in trainers if trainer.stdout]
    for trainer in trainers:
        trainer.communicate("")
    bound = [line[0] for line in lines]
    if int(lines[0][1]) > 1:  # more than one core: both found one, and not the same
        assert bound[0] != bound[1] and all(line.startswith("[") and line[1] != "]" for line in bound)


def test_cores_that_are_not_there_are_not_taken(tmp_path: Path) -> None:
    from pipeline.pretrain.cores import take_cores

    assert take_cores(10_000, tmp_path) == []


def test_the_watchdog_names_who_is_behind() -> None:
    store = dist.HashStore()
    dogs = [Watchdog(store, rank, 3, 60.0, lambda what: None) for rank in range(2)]
    dogs[0].beat(7)
    assert "rank 2 does not answer" in dogs[0].who_is_behind()
    dogs.append(Watchdog(store, 2, 3, 60.0, lambda what: None))
    dogs[2].beat(7)
    dogs[1].beat(4)
    told = dogs[0].who_is_behind()
    assert "rank 1 (host" in told and "after step 4" in told and "rank 0" not in told and "rank 2" not in told
    for dog in dogs:
        dog.close()


def test_a_spike_is_far_above_the_recent_norms() -> None:
    calm = [1.0 + 0.1 * (i % 3) for i in range(SPIKE_MEMORY)]
    assert is_spike(calm, 12.0)
    assert not is_spike(calm, 5.0)
    assert not is_spike(calm[1:], 12.0)  # too little known yet


def test_a_loss_spike_is_six_deviations_above_the_recent_losses() -> None:
    falling = [4.0 - 0.01 * i for i in range(SPIKE_MEMORY)]  # mean 3.845, standard deviation 0.092
    assert is_loss_spike(falling, 4.5)
    assert not is_loss_spike(falling, 4.3)
    assert not is_loss_spike(falling[1:], 9.0)  # too little known yet
    assert not is_loss_spike(falling, float("nan"))  # which is told as divergence, not left out


def test_the_zero_stage_follows_the_model_s_size() -> None:
    small, large = ModelConfig(), ModelConfig(n_layer=48, n_head=25, d_model=1600, architecture="gpt2")
    assert zero_stage(RuntimeConfig(), small, "fp32") == 0
    assert zero_stage(RuntimeConfig(), small, "bf16") == 1
    assert zero_stage(RuntimeConfig(), large, "bf16") == 3
    assert zero_stage(RuntimeConfig(zero_stage=2), small, "bf16") == 2
    with pytest.raises(ConfigError):
        zero_stage(RuntimeConfig(zero_stage=0), small, "bf16")
