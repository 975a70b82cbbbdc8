"""A Ray cluster of several nodes with a token, each node a process of its own, as pods would be; and its jobs' address."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.e2e.sweeps import ROOT, environment, interpreter, ray_command
from tests.ports import free_port
from tests.processes import named_below

PATIENCE_SECONDS = 480


def wait_until(condition: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@dataclass
class Nodes:
    """A head that does no work, and workers of one core each; and what a laptop knows of them: an address and a token."""

    folder: Path
    token: str
    gcs: str = field(default_factory=lambda: f"127.0.0.1:{free_port()}")
    dashboard_port: int = field(default_factory=free_port)
    workers: list[subprocess.Popen] = field(default_factory=list)

    @property
    def variables(self) -> dict[str, str]:
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, "RAY_USAGE_STATS_ENABLED": "0"}
        path = f"{Path(interpreter()).parent}{os.pathsep}{os.environ['PATH']}"
        return environment() | token | {"PATH": path, "RAY_JOB_STOP_WAIT_TIME_S": "110"}  # as the image has it

    # ---- nodes ----------------------------------------------------------------------------------------------------

    def start_head(self) -> subprocess.Popen:
        dashboard = (
            "--include-dashboard=true",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={self.dashboard_port}",
        )
        port = self.gcs.rpartition(":")[2]
        return self._start("--head", "--num-cpus=0", *dashboard, f"--port={port}")

    def add_worker(self) -> subprocess.Popen:
        """A node that is up. Where others keep the cores busy `ray start` may lose patience: then it is asked again."""
        for _ in range(3):
            before, worker = self.n_up(), self._start(f"--address={self.gcs}", "--num-cpus=1")
            self.workers.append(worker)
            wait_until(lambda: self.n_up() > before or worker.poll() is not None)  # noqa: B023
            if worker.poll() is None:
                return worker
            self.workers.remove(worker)
        raise AssertionError((self.folder / "nodes.log").read_text()[-3000:])

    def n_up(self) -> int:
        return (self.folder / "nodes.log").read_text().count("Ray runtime started")

    def _start(self, *arguments: str) -> subprocess.Popen:
        ports = [f"--dashboard-agent-listen-port={free_port()}", f"--dashboard-agent-grpc-port={free_port()}"]
        options = ["--block", "--disable-usage-stats", "--object-store-memory=100000000"]
        own = tempfile.mkdtemp(prefix="", dir=self.folder)  # as a pod has: each node unpacks the job's code anew
        whole = ray_command("start", *options, f"--temp-dir={own}", *arguments, *ports)
        with (self.folder / "nodes.log").open("a") as log:
            return subprocess.Popen(whole, env=self.variables, stdout=log, stderr=log, start_new_session=True)

    # ---- jobs -----------------------------------------------------------------------------------------------------

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.dashboard_port}"

    def ask(self, path: str = "", method: str = "GET", token: str | None = None) -> tuple[int, bytes]:
        """Status (0: nobody is there) and body of the jobs' address, with the right token unless another is given."""
        request = urllib.request.Request(f"{self.address}/api/jobs/{path}", method=method)
        if given := self.token if token is None else token:
            request.add_header("Authorization", f"Bearer {given}")
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, b""
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return 0, b""

    def job_status(self, job: str) -> str:
        return json.loads(self.ask(job)[1])["status"]

    def job_log(self, job: str) -> str:
        return json.loads(self.ask(f"{job}/logs")[1])["logs"]

    def submit(self, job: str, config: Path) -> subprocess.CompletedProcess[str]:
        options = ("--working-dir", ".", "--submission-id", job, "--no-wait")
        return self.job("submit", *options, "--", "python", "pipeline/sweep.py", "--config", str(config))

    def job(self, action: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        whole = ray_command("job", action, "--address", self.address, *arguments)
        return subprocess.run(
            whole, cwd=ROOT, env=self.variables, capture_output=True, text=True, timeout=120, check=False
        )


@contextlib.contextmanager
def running_nodes(n_workers: int) -> Iterator[Nodes]:
    folder = Path(tempfile.mkdtemp(prefix="nodes-"))  # short: sockets lie in it, and their paths may have 107 bytes
    nodes = Nodes(folder, secrets.token_hex(32))
    head = nodes.start_head()
    try:
        wait_until(lambda: nodes.n_up() == 1)
        for _ in range(n_workers):  # one after the other: together they take longer to start than Ray waits
            nodes.add_worker()
        wait_until(lambda: nodes.ask()[0] == 200)
        yield nodes
    finally:
        for process in [*nodes.workers, head]:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def trainers(node: subprocess.Popen) -> list[psutil.Process]:
    return named_below("RayTrainWorker", node.pid)
