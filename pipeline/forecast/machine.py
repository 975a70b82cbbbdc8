"""The cluster that a forecast is for, and how fast it is taken to be.

Every rate here is an assumption with its source, until your own cluster has measured it; `docs/scale.md` says which of them
decide the answer.
"""

from __future__ import annotations

from dataclasses import dataclass

GIGA = 1e9


@dataclass(frozen=True)
class Machine:
    """GPUs, all of one kind, in nodes; CPU cores; the network between nodes; the store; what an hour costs."""

    gpus: int
    cores: int
    peak_flops: float  # dense 16-bit, of one GPU (of a core where there is none)
    gpus_per_node: int = 8
    bus_inside: float = 350 * GIGA  # bytes/s of all-reduce bus bandwidth among the GPUs of a node (NVLink)
    bus_between: float = 40 * GIGA  # the same when a group spans nodes: InfiniBand; plain 100 GbE has about 10
    store_read: float = 10 * GIGA  # bytes/s from the store, all nodes together
    gpu_hour: float = 2.5  # in the price's own unit; whoever forecasts knows theirs
    core_hour: float = 0.04

    def bus(self, gpus: float) -> float:
        return self.bus_inside if gpus <= self.gpus_per_node else self.bus_between


@dataclass(frozen=True)
class Rates:
    """Shares of the peak and fixed costs. Sources: published runs of models of this size, or measured on two CPU cores."""

    train_utilisation: float = 0.40  # true FLOPs; llm.c and nanochat report 0.40 to 0.46 for 124 M parameters on H100
    forward_utilisation: float = 0.40
    extraction_share: float = (
        0.6  # of a forward pass's rate, all layers at once: the bound that bench_activations holds
    )
    records_bytes_per_second: float = 236e6  # one process puts the readers' parts together; bench_activations' finish
    step_floor_seconds: float = 0.010  # an optimizer step is never shorter: launches, optimizer, data
    overlap: float = 2 / 3  # of a step's compute is backward, and hides communication
    gradient_bytes: float = 2.0  # a parameter, all-reduced in bf16
    tokens_per_core_second: float = 20e6  # text to sealed shards; measured 13e6 to 40e6 with the fast encoder
    judge_flops_per_pass: float = 2 * 7e9 * 400  # a 7 B simulator reads an excerpt, shared prefix cached
    judge_flops_per_explanation: float = 2 * 7e9 * 3000
    judge_answer_seconds: float = 0.5  # of a judge behind HTTP, one of `runtime.judge_concurrency` at once
    offline_neurons_per_core_second: float = 200.0  # the built-in token table
    trainer_start_seconds: float = 30.0  # measured 14 to 16 s on two cores, an image pulled and NCCL set up on top
    stage_start_seconds: float = 10.0
    report_seconds: float = 60.0  # the bound for 24 cells
    seal_bytes_per_second: float = (
        0.4e9  # one node hashes an artifact's files (and copies them to a bucket) before it counts
    )
    pile_val_share: float = 0.001  # of the text: the Pile's own val file
    bytes_per_token: float = 4.3  # of the Pile's text under GPT-2's encoding, about
