"""What the pods talk to: the tracking server, the judge, and a Ray head that asks for its token."""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from cluster.preflight.fact import Fact, first_line


def mlflow() -> Iterator[Fact]:
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri.startswith("http"):
        yield Fact(None, "MLFLOW_TRACKING_URI names no server")
        return
    name, password = os.environ.get("MLFLOW_TRACKING_USERNAME", ""), os.environ.get("MLFLOW_TRACKING_PASSWORD", "")
    login = "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()
    url = f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/search?max_results=1"
    status = status_of(url, {"Authorization": login} if name else {})
    fixes: dict[int | str, str] = {
        401: "put MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD into crate-secrets",
        403: "its --allowed-hosts does not list this address",
    }
    yield Fact(status == 200, f"{uri} answers {status}", fixes.get(status, "is it up, and do the policies allow it?"))
    if status == 200:
        without = status_of(url, {})
        yield Fact(without == 401, f"without a password it answers {without}", "start it with --app-name=basic-auth")


def judge() -> Iterator[Fact]:
    url = os.environ.get("CRATE_JUDGE_URL", "")
    if not url:
        yield Fact(None, "CRATE_JUDGE_URL is not set")
        return
    key = os.environ.get("CRATE_JUDGE_API_KEY", "")
    status = status_of(f"{url.rstrip('/')}/models", {"Authorization": f"Bearer {key}"})
    yield Fact(status == 200, f"{url} answers {status}", "check CRATE_JUDGE_API_KEY in crate-secrets, and that it runs")


def token() -> Iterator[Fact]:
    """Whoever reaches a Ray head that asks for no token can run code on it. Starts one of this image's Ray, and asks."""
    right, port = secrets.token_hex(16), _free_port()
    with tempfile.TemporaryDirectory(prefix="pf-") as folder:
        log = Path(folder) / "start.log"
        head = _start_head(folder, log, right, port)
        try:
            url = f"http://127.0.0.1:{port}/api/jobs/"
            deadline = time.monotonic() + 120
            while (
                isinstance(without := status_of(url, {}), str) and head.poll() is None and time.monotonic() < deadline
            ):
                time.sleep(0.5)
            with_it = status_of(url, {"Authorization": f"Bearer {right}"})
            found = f"a Ray head answers {without} without its token and {with_it} with it"
            last = (log.read_text().strip() or "Ray said nothing").splitlines()[-1]
            yield Fact((without, with_it) == (401, 200), found, f"401 and 200 wanted; {last}")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(head.pid, signal.SIGKILL)  # its own session: the whole little cluster and nothing else
            head.wait()


def _start_head(folder: str, log: Path, right: str, port: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": right, "RAY_USAGE_STATS_ENABLED": "0"}
    environment.pop("RAY_ADDRESS", None)
    ray = Path(sysconfig.get_path("scripts")) / "ray"
    command = [
        str(ray),
        "start",
        "--head",
        "--block",
        "--num-cpus=0",
        "--include-dashboard=true",
        f"--temp-dir={folder}",
    ]
    command += [f"--port={_free_port()}", f"--dashboard-port={port}", "--object-store-memory=80000000"]
    with log.open("w") as out:
        return subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def status_of(url: str, headers: dict[str, str]) -> int | str:
    """The HTTP status, or why there was none."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError as error:
        return first_line(error)
