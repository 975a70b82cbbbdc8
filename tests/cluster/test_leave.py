"""A worker pod that is taken away: Ray is told, the work has time to save, and the pod's main process ends."""

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
from pathlib import Path

from tests.cluster.manifests import ROOT
from tests.e2e.sweeps import ray_command
from tests.ports import free_port

WORK = """
import sys, time, pathlib, ray
from ray._raylet import GcsClient

@ray.remote(num_cpus=1)
class Work:
    def run(self, address, folder):
        folder = pathlib.Path(folder)
        (folder / "running").touch()
        mine = ray.get_runtime_context().get_node_id()
        while mine not in {node.hex() if hasattr(node, "hex") else node for node in GcsClient(address).get_draining_nodes()}:
            time.sleep(0.2)
        time.sleep(2)  # writing a checkpoint
        (folder / "saved").touch()

ray.init(address=sys.argv[1], log_to_driver=False)
work = Work.remote()
ray.get(work.run.remote(*sys.argv[1:]))
ray.kill(work)
"""


def _wait_for(condition: object, seconds: float = 150) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_node_that_is_taken_away_saves_and_goes(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16), "RAY_USAGE_STATS_ENABLED": "0"}
    environment = {**os.environ, **token, "RAY_ADDRESS": address}
    command = ray_command("start", "--head", "--block", "--num-cpus=1", "--include-dashboard=false")
    short = tempfile.mkdtemp(prefix="leave-")  # sockets lie in it, and their paths may have 107 bytes
    command += [f"--port={address.rpartition(':')[2]}", f"--temp-dir={short}"]
    command += ["--object-store-memory=80000000"]
    starting = {k: v for k, v in environment.items() if k != "RAY_ADDRESS"}
    with (tmp_path / "log").open("w") as log:
        node = subprocess.Popen(command, env=starting, stdout=log, stderr=log, start_new_session=True)
        work = subprocess.Popen(
            [sys.executable, "-c", WORK, address, str(tmp_path)], env=environment, stdout=log, stderr=log
        )
    try:
        _wait_for((tmp_path / "running").exists)
        leave = [sys.executable, "-m", "cluster.leave", "--root", str(node.pid), "--seconds", "60"]
        started = time.monotonic()
        subprocess.run(leave, env=environment, cwd=ROOT, check=True, timeout=120)
        assert (tmp_path / "saved").exists(), "the node was let go before its work had saved"
        assert time.monotonic() - started < 60, "it waited although nobody was busy"
        assert node.wait(60) is not None  # `ray start --block`, in a pod the process that keeps it alive
    finally:
        work.kill()
        work.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(node.pid, signal.SIGKILL)
        node.wait()
        shutil.rmtree(short, ignore_errors=True)


def test_with_no_ray_below_it_goes_at_once() -> None:
    started = time.monotonic()
    with subprocess.Popen(["sleep", "300"]) as alone:  # this process itself may have a Ray below it, from other tests
        try:
            leave = [sys.executable, "-m", "cluster.leave", "--root", str(alone.pid), "--seconds", "300"]
            subprocess.run(leave, cwd=ROOT, check=True, timeout=120, capture_output=True)
            assert alone.poll() is None, "it ended a process that does not keep Ray"
        finally:
            alone.kill()
    assert time.monotonic() - started < 60
