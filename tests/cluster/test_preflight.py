"""The preflight on this machine: what it measures, and that each fault it looks for is found."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.manifests import ROOT


def preflight(checks: str, **variables: str) -> tuple[int, str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "CRATE_", "RAY_"))}
    command = [sys.executable, "-m", "cluster.preflight", "--only", checks]
    done = subprocess.run(
        command, env=inherited | variables, cwd=ROOT, capture_output=True, text=True, check=False, timeout=250
    )
    return done.returncode, done.stdout + done.stderr


class Server(http.server.BaseHTTPRequestHandler):
    """An HTTP server with a password, or (path /open) without one."""

    def do_GET(self) -> None:
        allowed = self.path.startswith("/open") or self.headers.get("Authorization") in ("Basic YTpi", "Bearer key")
        self.send_response(403 if self.path.startswith("/stranger") else 200 if allowed else 401)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_fit_node(tmp_path: Path) -> None:
    code, told = preflight(
        "shm,scratch,store,gpus,triton,mlflow,judge",
        CRATE_STORE=str(tmp_path),
        PREFLIGHT_SHM_GIB="0.01",
        PREFLIGHT_SCRATCH_GIB="0.1",
    )
    assert code == 0, told
    assert told.splitlines()[-1] == "preflight of node 0: fit"
    assert "MiB/s written and read" in told and list(tmp_path.iterdir()) == []  # it leaves nothing behind


def test_too_little_is_told_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    bounds = {"PREFLIGHT_SHM_GIB": "100000", "PREFLIGHT_SCRATCH_GIB": "1e9"}
    code, told = preflight("shm,scratch,store", CRATE_STORE=str(tmp_path / "file" / "store"), **bounds)
    assert code == 1
    assert [line.split()[:2] for line in told.splitlines()[:3]] == [
        ["BAD", "shm"],
        ["BAD", "scratch"],
        ["BAD", "store"],
    ]
    assert "mount an emptyDir of medium Memory" in told and "check the claim or the bucket" in told
    assert told.splitlines()[-1] == "preflight of node 0: 3 bad"


def test_a_tracking_server_with_a_password(url: str) -> None:
    login = {"MLFLOW_TRACKING_USERNAME": "a", "MLFLOW_TRACKING_PASSWORD": "b"}
    code, told = preflight(
        "mlflow,judge", MLFLOW_TRACKING_URI=url, CRATE_JUDGE_URL=url, CRATE_JUDGE_API_KEY="key", **login
    )
    assert code == 0, told
    assert "without a password it answers 401" in told


@pytest.mark.parametrize(
    ("path", "fix"),
    [
        ("", "put MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD into crate-secrets"),
        ("/stranger", "--allowed-hosts does not list this address"),
        ("/open", "start it with --app-name=basic-auth"),
    ],
)
def test_a_faulty_tracking_server(url: str, path: str, fix: str) -> None:
    code, told = preflight("mlflow", MLFLOW_TRACKING_URI=url + path)
    assert code == 1 and fix in told


def test_no_server_at_all() -> None:
    code, told = preflight("mlflow", MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert code == 1 and "refused" in told


def test_ray_asks_for_its_token() -> None:
    code, told = preflight("token")
    assert code == 0, told
    assert "answers 401 without its token and 200 with it" in told


def test_all_reduce_over_two_processes() -> None:
    code, told = preflight("collectives")
    assert code == 0, told
    assert "2 processes on 1 nodes, gloo" in told
    assert float(told.split(" GB/s bus")[0].rsplit(" ", 1)[1]) > 0


def test_an_unknown_check_lists_the_known_ones() -> None:
    code, told = preflight("nccl")
    assert code == 2 and "there are user, shm" in told
