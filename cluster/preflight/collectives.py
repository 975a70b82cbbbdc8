"""All-reduce over every GPU of every node, as gradients do; without GPUs two processes a node, by gloo.

Bus bandwidth as nccl-tests count it: 2 (n - 1) / n x bytes / seconds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator

from cluster.preflight.fact import Fact

TIMEOUT_SECONDS = 600


def collectives() -> Iterator[Fact]:
    nodes, index = int(os.environ.get("NODES", "1")), int(os.environ.get("JOB_COMPLETION_INDEX", "0"))
    try:
        done = subprocess.run(
            _command(nodes, index), capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        yield Fact(
            False, f"all-reduce over {nodes} nodes: nothing in {TIMEOUT_SECONDS} s", "are all nodes' pods running?"
        )
        return
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        yield Fact(
            False, f"all-reduce over {nodes} nodes: {last}", "NCCL_DEBUG=INFO says more; check NCCL_SOCKET_IFNAME"
        )
    elif index:
        yield Fact(True, "all-reduce done; node 0 has the figures")
    else:
        found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"world')))
        wanted = float(os.environ.get("PREFLIGHT_BUS_GB_S", "0"))
        what = f"all-reduce of {found['mib']} MiB, {found['world']} processes on {nodes} nodes, {found['backend']}"
        fix = f"{wanted:g} wanted; NCCL_DEBUG=INFO says which transport it took"
        yield Fact(found["bus_gb_s"] >= wanted, f"{what}: {found['bus_gb_s']:.2f} GB/s bus", fix)


def _command(nodes: int, index: int) -> list[str]:
    import torch

    host, _, port = os.environ.get("RENDEZVOUS", "127.0.0.1:29500").rpartition(":")
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={nodes}", f"--node-rank={index}"]
    launcher += [f"--nproc-per-node={torch.cuda.device_count() or 2}", f"--master-addr={host}", f"--master-port={port}"]
    return [*launcher, "-m", "cluster.preflight.collectives"]


def all_reduce() -> None:
    """One process of them."""
    import torch
    import torch.distributed as dist

    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if gpu else "gloo")
    mib, rounds = (256, 20) if gpu else (16, 5)
    values = torch.ones(mib << 18, device="cuda" if gpu else "cpu")
    finish = torch.cuda.synchronize if gpu else lambda: None
    for _ in range(3):
        dist.all_reduce(values)
    finish()
    started = time.monotonic()
    for _ in range(rounds):
        dist.all_reduce(values)
    finish()
    seconds, world = (time.monotonic() - started) / rounds, dist.get_world_size()
    bus = 2 * (world - 1) / world * (mib << 20) / seconds / 1e9
    if dist.get_rank() == 0:
        print(json.dumps({"world": world, "mib": mib, "backend": dist.get_backend(), "bus_gb_s": bus}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    all_reduce()
