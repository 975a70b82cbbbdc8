"""`ray job submit` against a cluster with token authentication: the cluster way of starting a sweep."""

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
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.artifacts.store import Store
from pipeline.progress import read_progress
from tests.corpus import write_corpus
from tests.e2e.sweeps import ROOT, environment, interpreter, ray_command, tiny_config, write_config
from tests.ports import free_port

JOB = "tiny"  # the sweep's own name: whoever submits it twice is told
UPLOAD_BYTES = 10 * 2**20


@dataclass(frozen=True)
class Head:
    """A `ray start --head` on loopback with a token, and what a laptop knows of it."""

    folder: Path
    address: str
    token: str
    variables: dict[str, str]

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

    def job_status(self) -> str:
        return json.loads(self.ask(JOB)[1])["status"]

    def submit(self, config: Path, *options: str) -> subprocess.CompletedProcess[str]:
        options = ("submit", "--working-dir", ".", "--submission-id", JOB, *options)
        return self.job(*options, "--", "python", "pipeline/sweep.py", "--config", str(config))

    def job(self, action: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        whole = ray_command("job", action, "--address", self.address, *arguments)
        return subprocess.run(
            whole, cwd=ROOT, env=self.variables, capture_output=True, text=True, timeout=560, check=False
        )


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    token = tmp_path / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    variables = environment() | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_JOB_STOP_WAIT_TIME_S": "110",  # as the image has it
    }
    variables["PATH"] = f"{Path(interpreter()).parent}{os.pathsep}{variables['PATH']}"
    port, dashboard = free_port(), free_port()
    folder = Path(tempfile.mkdtemp(prefix="job-"))  # short: sockets lie in it, and their paths may have 107 bytes
    start = ["start", "--head", "--block", f"--port={port}", "--include-dashboard=true", "--dashboard-host=127.0.0.1"]
    start += [f"--dashboard-port={dashboard}", "--num-cpus=2", "--node-ip-address=127.0.0.1", "--disable-usage-stats"]
    start += [f"--temp-dir={folder}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(ray_command(*start), env=variables, start_new_session=True, **quiet)
    try:
        started = Head(folder, f"http://127.0.0.1:{dashboard}", token.read_text(), variables)
        wait_until(lambda: started.ask()[0] == 200, 60)
        yield started
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def wait_until(condition: Callable[[], object], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_strangers_are_refused_and_a_stopped_job_goes_on(head: Head, tmp_path: Path) -> None:
    assert head.ask(token="")[0] == 401
    assert head.ask(token="wrong" * 8)[0] in (401, 403)

    store = tmp_path / "store"
    grid = {"model.architecture": ["crate"], "model.n_layer": [1]}
    changes = {"grid": grid, "pretrain__total_tokens": 51_200, "pretrain__eval_every_steps": 100}
    config = write_config(tmp_path / "tiny.yaml", tiny_config(write_corpus(tmp_path), store, **changes))

    def training() -> tuple[float, float]:
        """Tokens trained on, and those of them that an earlier attempt had done."""
        state = read_progress(Store(store), "tiny").get("crate-1l/pretrain")
        return (state.done, state.done_at_start) if state else (0, 0)

    first = head.submit(config, "--no-wait")
    assert first.returncode == 0, first.stdout + first.stderr
    twice = head.submit(config, "--no-wait")
    assert twice.returncode != 0 and "already" in twice.stdout + twice.stderr

    wait_until(lambda: training()[0] >= 5_000)
    sent = list(head.folder.glob("session_2*/runtime_resources/working_dir_files/*/**/*"))
    assert sum(path.stat().st_size for path in sent if path.is_file()) < UPLOAD_BYTES
    names = {path.name for path in sent}
    assert "sweep.py" in names and not names & {".venv", ".git", "store", "build"}

    assert head.ask(f"{JOB}/stop", "POST")[0] == 200  # what `ray job stop` sends, and at once
    wait_until(lambda: head.job_status() == "STOPPED")
    assert b"Run the same command to go on" in head.ask(f"{JOB}/logs")[1]
    assert list(store.glob(".scratch/*/resume/0*")) and not list(store.glob("pretrain/*"))

    forgotten = head.job("delete", JOB)  # the id is free again; the store forgets nothing
    assert forgotten.returncode == 0, forgotten.stdout + forgotten.stderr
    second = head.submit(config)
    assert second.returncode == 0, second.stdout[-3000:] + second.stderr[-3000:]
    assert training()[1] >= 5_000
    assert (store / "runs/tiny/report/index.html").is_file()
