"""`ray job submit` against a cluster with token authentication: the cluster way of starting a sweep."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.corpus import write_corpus
from tests.e2e.sweeps import ROOT, environment, interpreter, ray_command, tiny_config, write_config
from tests.ports import free_port


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A `ray start --head` of its own, on loopback, with a token; gives the job address and the environment to use it."""
    token = tmp_path / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    variables = environment() | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    variables["PATH"] = f"{Path(interpreter()).parent}{os.pathsep}{variables['PATH']}"
    port, dashboard = free_port(), free_port()
    start = ["start", "--head", "--block", f"--port={port}", "--include-dashboard=true", "--dashboard-host=127.0.0.1"]
    start += [f"--dashboard-port={dashboard}", "--num-cpus=2", "--node-ip-address=127.0.0.1", "--disable-usage-stats"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    head = subprocess.Popen(ray_command(*start), env=variables, start_new_session=True, **quiet)
    address = f"http://127.0.0.1:{dashboard}"
    try:
        wait_until_up(address, variables["RAY_AUTH_TOKEN_PATH"])
        yield address, variables
    finally:
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()


def status_of(address: str, token: str | None) -> int:
    request = urllib.request.Request(f"{address}/api/jobs/")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return 0


def wait_until_up(address: str, token_path: str) -> None:
    deadline = time.monotonic() + 60
    while status_of(address, Path(token_path).read_text()) != 200:
        assert time.monotonic() < deadline, "the head did not come up"
        time.sleep(0.5)


def test_a_submitted_job_runs_the_sweep_and_strangers_are_refused(
    cluster: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    address, variables = cluster
    assert status_of(address, None) == 401
    assert status_of(address, "wrong" * 8) in (401, 403)
    grid = {"model.architecture": ["crate"], "model.n_layer": [1]}
    settings = tiny_config(write_corpus(tmp_path), tmp_path / "store", grid=grid, pretrain__total_tokens=2560)
    config = write_config(tmp_path / "tiny.yaml", settings)
    submit = ["job", "submit", "--address", address, "--working-dir", ".", "--submission-id", "tiny-sweep", "--"]
    job = ray_command(*submit, "python", "pipeline/sweep.py", "--config", str(config))
    result = subprocess.run(job, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=560, check=False)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert (tmp_path / "store/runs/tiny/report/index.html").is_file()
