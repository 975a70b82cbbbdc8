"""A Ray cluster of several nodes, each a process of its own, as pods would be: some are killed, one is taken away politely."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from pipeline.artifacts.store import Store
from pipeline.progress import read_progress
from tests.corpus import write_corpus
from tests.e2e.sweeps import ROOT, command, environment, ray_command, tiny_config, write_config
from tests.ports import free_port

PATIENCE_SECONDS = 240


@dataclass
class Nodes:
    """A head that does no work, and workers of one core each."""

    folder: Path
    variables: dict[str, str]
    address: str = field(default_factory=lambda: f"127.0.0.1:{free_port()}")
    workers: list[subprocess.Popen] = field(default_factory=list)

    def start_head(self) -> subprocess.Popen:
        port = self.address.rpartition(":")[2]
        return self._start(
            "--head", "--num-cpus=0", "--include-dashboard=false", f"--port={port}", f"--temp-dir={self.folder}"
        )

    def add_worker(self) -> subprocess.Popen:
        self.workers.append(self._start(f"--address={self.address}", "--num-cpus=1"))
        return self.workers[-1]

    def wait_for_nodes(self, number: int) -> None:
        log = self.folder / "nodes.log"
        wait_until(lambda: log.read_text().count("Ray runtime started") == number)

    def _start(self, *arguments: str) -> subprocess.Popen:
        ports = [f"--dashboard-agent-listen-port={free_port()}", f"--dashboard-agent-grpc-port={free_port()}"]
        options = ["--block", "--disable-usage-stats", "--object-store-memory=100000000"]
        whole = ray_command("start", *options, *arguments, *ports)
        with (self.folder / "nodes.log").open("a") as log:
            return subprocess.Popen(whole, env=self.variables, stdout=log, stderr=log, start_new_session=True)


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    folder = Path(tempfile.mkdtemp(prefix="nodes-"))  # short: sockets lie in it, and their paths may have 107 bytes
    variables = environment() | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    cluster = Nodes(folder, variables)
    started = [cluster.start_head()]
    try:
        cluster.wait_for_nodes(1)
        for number in (2, 3, 4):  # one after the other: together they take longer to start than Ray waits
            cluster.add_worker()
            cluster.wait_for_nodes(number)
        yield cluster
    finally:
        for process in [*cluster.workers, *started]:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def wait_until(condition: Callable[[], object], process: subprocess.Popen | None = None) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline and (process is None or process.poll() is None)
        time.sleep(0.2)


def trainers(node: subprocess.Popen) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        below = psutil.Process(node.pid).children(recursive=True)
        return [p for p in below if "RayTrainWorker" in " ".join(p.cmdline())]
    return []


def trained(store: Path, cell: str) -> float:
    """Tokens that a cell's training has seen."""
    states = read_progress(Store(store), "tiny").values()
    return max((state.done for state in states if state.step == f"{cell}/pretrain"), default=0.0)


def test_a_sweep_outlives_a_node_that_dies_and_one_that_is_taken_away(nodes: Nodes, tmp_path: Path) -> None:
    store = tmp_path / "store"
    changes = {"pretrain__total_tokens": 51_200, "pretrain__eval_every_steps": 100, "runtime__parallel_cells": 2}
    config = write_config(tmp_path / "tiny.yaml", tiny_config(write_corpus(tmp_path), store, **changes))
    variables = nodes.variables | {"RAY_ADDRESS": nodes.address}
    log = (tmp_path / "log").open("w")
    sweep = subprocess.Popen(command(config), cwd=ROOT, env=variables, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until(lambda: min(trained(store, "crate-1l"), trained(store, "gpt2-1l")) >= 5_000, sweep)
        first, second = [node for node in nodes.workers if trainers(node)]  # two models, on two nodes
        os.killpg(first.pid, signal.SIGKILL)
        spare = next(node for node in nodes.workers if node not in (first, second))
        wait_until(lambda: trainers(spare), sweep)

        leave = [sys.executable, "-m", "cluster.leave", "--root", str(second.pid), "--seconds", "120"]
        subprocess.run(leave, cwd=ROOT, env=variables, check=True, timeout=200)
        assert second.wait(60) is not None and not trainers(second)
        nodes.add_worker()  # the node comes back

        assert sweep.wait(PATIENCE_SECONDS) == 0, (tmp_path / "log").read_text()[-3000:]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(sweep.pid, signal.SIGKILL)
        sweep.wait()
        log.close()
    assert (store / "runs/tiny/report/index.html").is_file()
    assert len(list(store.glob("pretrain/*/manifest.json"))) == 2
