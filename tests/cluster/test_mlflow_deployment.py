"""The tracking server with the very arguments of its Deployment: who gets in, and by which name it may be called."""

from __future__ import annotations

import base64
import os
import secrets
import shlex
import signal
import subprocess
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.check.objects import load
from tests.cluster.manifests import CLUSTER
from tests.ports import free_port

PASSWORD = "a password of at least twelve letters"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Only the port, and Postgres and the bucket for files, are not what the cluster has."""
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    (deployment,) = [item for item in load([CLUSTER / "mlflow" / "server.yaml"]) if item["kind"] == "Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    auth = (CLUSTER / "mlflow" / "basic_auth.ini").read_text()
    (folder / "basic_auth.ini").write_text(
        auth.replace("postgresql://mlflow@mlflow-db:5432/mlflow", f"sqlite:///{folder}/auth.db")
    )
    replaced = {"--host=0.0.0.0": "--host=127.0.0.1", "--port=5000": f"--port={port}", "--workers=2": "--workers=1"}
    arguments = [replaced.get(argument, argument) for argument in container["args"]]
    settings = (CLUSTER / "mlflow" / "settings.env").read_text().splitlines()
    environment = {
        **os.environ,
        **dict(line.split("=", 1) for line in settings if line and not line.startswith("#")),
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{folder}/mlflow.db",
        "MLFLOW_ARTIFACTS_DESTINATION": str(folder / "artifacts"),
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "basic_auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
    }
    environment["PATH"] = f"{sysconfig.get_path('scripts')}:{environment['PATH']}"
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            arguments, env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    try:
        _wait(port, process, folder / "log", shlex.join(arguments))
        yield port
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait(port: int, process: subprocess.Popen[bytes], log: Path, command: str) -> None:
    deadline = time.monotonic() + 120
    while status(port, "/health") != 200:
        assert process.poll() is None and time.monotonic() < deadline, f"{command}\n{log.read_text()[-2000:]}"
        time.sleep(0.3)


def status(port: int, path: str, *, password: str = "", host: str = "mlflow:5000") -> int:
    headers = {"Host": host}
    if password:
        headers["Authorization"] = "Basic " + base64.b64encode(f"admin:{password}".encode()).decode()
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers), timeout=20
        ) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


SEARCH = "/api/2.0/mlflow/experiments/search?max_results=1"


def test_the_password_decides(server: int) -> None:
    found = {given: status(server, SEARCH, password=given) for given in ("", "wrong password", PASSWORD)}
    assert found == {"": 401, "wrong password": 401, PASSWORD: 200}


def test_the_service_s_names_are_allowed_and_no_others(server: int) -> None:
    """A stranger's name is refused before the password is asked for."""
    found = {
        name: status(server, SEARCH, host=name) for name in ("mlflow:5000", "mlflow.crate.svc:5000", "evil.example")
    }
    assert found == {"mlflow:5000": 401, "mlflow.crate.svc:5000": 401, "evil.example": 403}


def test_the_probes_need_neither(server: int) -> None:
    """The kubelet asks by the pod's address and has no password."""
    assert status(server, "/health", host="10.0.0.17:5000") == 200
