"""Workers of a process group that train job after job: started once, since importing everything is what takes its time.

As a program it is one rank: it reads a job a line from stdin and answers with a line when it is done. As a module it starts
and talks to the ranks.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]


@dataclass(frozen=True)
class Order:
    """A job to train, in `root` under `name`. After `stop_after` steps a stop is asked for, after `hang_after` the last rank
    freezes."""

    root: str
    name: str
    recipe: dict[str, Any] = field(default_factory=dict)
    runtime: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    stop_after: int = 0
    hang_after: int = 0


def carry_out(order: Order) -> dict[str, Any]:
    """Train one job in this process's group; returns its outcome."""
    import torch
    from training_world import MODEL, make_job, with_runtime

    from crate_model.config import ModelConfig
    from pipeline.artifacts.store import Store
    from pipeline.pretrain import logbook
    from pipeline.pretrain.logbook import Wishes
    from pipeline.pretrain.worker import work

    logbook.ASK_EVERY_SECONDS = 0.0  # whether to stop is asked after every step, so that a test can count them
    root = Path(order.root)
    tokens = Store(root / "store").get("tokens", "7" * 32)
    model = ModelConfig(**{**vars(MODEL), **order.model})
    job = make_job(root, tokens, order.name, model=model, **order.recipe)
    job = with_runtime(job, **{"optimizer": "torch_fused", **order.runtime})
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        if asked == order.hang_after and torch.distributed.get_rank() == torch.distributed.get_world_size() - 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        return asked == order.stop_after

    work(job, torch.device("cpu"), Wishes(stop=stop))
    torch.distributed.barrier()  # rank 0 has written the outcome
    return job.read_note("outcome.json")


class Ranks:
    """A process group of this many workers, each a process of its own."""

    def __init__(self, world_size: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-W", "ignore", __file__],
                env={
                    **os.environ,
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(world_size),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                },
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(world_size)
        ]

    def give(self, order: Order) -> None:
        """Have all ranks begin with an order."""
        for process in self.processes:
            assert process.stdin
            process.stdin.write(json.dumps(vars(order)) + "\n")
            process.stdin.flush()

    def train(self, order: Order) -> dict[str, Any]:
        """Have all ranks carry out an order; returns the outcome that rank 0 left."""
        self.give(order)
        answers = []
        for process in self.processes:
            assert process.stdout
            line = process.stdout.readline()
            assert line, "a rank died; its last words are above"
            answers.append(json.loads(line))
        return answers[0]

    def close(self) -> None:
        for process in self.processes:
            assert process.stdin
            process.stdin.close()
        for process in self.processes:
            process.wait(60)


def main() -> None:
    from pipeline import runtime
    from pipeline.pretrain.__main__ import process_group

    runtime.quiet_libraries()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to stderr
    with process_group(300):
        for line in sys.stdin:
            answers.write(json.dumps(carry_out(Order(**json.loads(line)))) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
