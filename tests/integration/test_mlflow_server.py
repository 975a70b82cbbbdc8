"""Tracking through a real server: Postgres behind it, passwords and allowed hosts in front of it, and its being down."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.tracking_driver import TrackedSweep
from tests.ports import free_port

PASSWORD = "a password of at least twelve letters"
NEEDED = ("initdb", "postgres", "pg_isready", "createdb")
FOLDERS = (
    *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True),
    Path(shutil.which("postgres") or "/").parent,
)
POSTGRES = next((folder for folder in FOLDERS if all((folder / name).exists() for name in NEEDED)), None)


def user_of_postgres() -> str | None:
    """Postgres refuses to run as root; its package brings a user. None: this very user will do."""
    return "postgres" if os.getuid() == 0 else None


def postgres_possible() -> bool:
    if POSTGRES is None:
        return False
    with contextlib.suppress(KeyError):
        return user_of_postgres() is None or bool(pwd.getpwnam("postgres"))
    return False


pytestmark = pytest.mark.skipif(not postgres_possible(), reason="no PostgreSQL server installed")


@dataclass
class Server:
    """An MLflow server that can be stopped and started again on the same database."""

    folder: Path
    database: str
    port: int
    process: subprocess.Popen | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--workers", "1"]
        command += ["--backend-store-uri", self.database, "--artifacts-destination", str(self.folder / "artifacts")]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--allowed-hosts", f"127.0.0.1:{self.port}"]
        (self.folder / "auth.ini").write_text(
            f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{self.folder}/auth.db\n"
            "admin_username = admin\nauthorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        )
        environment = (
            os.environ
            | {
                "MLFLOW_AUTH_CONFIG_PATH": str(self.folder / "auth.ini"),
                "MLFLOW_AUTH_ADMIN_USERNAME": "admin",
                "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
                "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight processes for jobs of language-model work, none of ours
            }
        )
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                command, env=environment, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 150
        while status(f"{self.uri}/health") != 200:
            assert self.process.poll() is None and time.monotonic() < deadline, (
                self.folder / "server.log"
            ).read_text()[-3000:]
            time.sleep(0.3)

    def stop(self) -> None:
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


def status(url: str, host: str | None = None) -> int:
    request = urllib.request.Request(url, headers={"Host": host} if host else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """A private cluster of its own on a free port; gives the database's address."""
    assert POSTGRES
    with tempfile.TemporaryDirectory() as name:  # not pytest's own folder, which is closed to Postgres' user
        folder, port, user = Path(name), free_port(), user_of_postgres()
        if user:
            shutil.chown(folder, user)
        with (folder / "log").open("w") as log:
            run: dict[str, Any] = {"user": user, "cwd": "/", "stdout": log, "stderr": log}
            made = subprocess.run(
                [POSTGRES / "initdb", "-D", folder / "data", "-U", "mlflow", "-A", "trust", "-N"], check=False, **run
            )
            assert made.returncode == 0, (folder / "log").read_text()
            where = ["-p", str(port), "-k", name, "-h", "127.0.0.1"]
            server = subprocess.Popen([POSTGRES / "postgres", "-D", folder / "data", *where, "-c", "fsync=off"], **run)
        try:
            client = ["-h", "127.0.0.1", "-p", str(port), "-U", "mlflow"]
            deadline = time.monotonic() + 60
            while subprocess.run([POSTGRES / "pg_isready", "-q", *client], check=False).returncode:
                assert server.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.1)
            subprocess.run([POSTGRES / "createdb", *client, "mlflow"], check=True)
            yield f"postgresql+psycopg://mlflow@127.0.0.1:{port}/mlflow"
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(30)


@pytest.fixture(scope="module")
def server(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    found = Server(tmp_path_factory.mktemp("server"), postgres, free_port())
    try:
        found.start()
        yield found
    finally:
        found.stop()


def test_a_sweep_is_tracked_with_a_password_while_the_server_comes_and_goes(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    assert status(f"{server.uri}/api/2.0/mlflow/experiments/search?max_results=1") == 401
    assert status(f"{server.uri}/", host="evil.example") == 403

    def told(step: int) -> TrackedSweep:
        sweep = TrackedSweep(server.uri, "study", tmp_path / "runs" / "study" / "mlflow-spool")
        parent = sweep.start_parent("study", {}, {})
        child = sweep.start_child(parent, "crate-1l", "f" * 32, {"model": {"n_layer": 1}})
        tracker = child.open()
        tracker.metrics({"pretrain/loss": 10.0 - step}, step=step)
        (tmp_path / "picture.png").write_bytes(b"\x89PNG")
        tracker.file(tmp_path / "picture.png", "figures")
        tracker.close()
        sweep.finish(child, "FINISHED")
        sweep.finish(parent, "FINISHED")
        return sweep

    told(1).close()
    server.stop()
    started = time.monotonic()
    away = told(2)
    assert time.monotonic() - started < 30  # telling waits for nobody
    away.close()
    waiting = [path for path in away.spool.glob("*/*.jsonl") if "pretrain/loss" in path.read_text()]
    assert len(waiting) == 1
    server.start()
    told(3).close()
    assert not list(away.spool.glob("*/*.jsonl"))

    import mlflow

    client = mlflow.MlflowClient(tracking_uri=server.uri)
    experiment = client.get_experiment_by_name("study")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert {name: run.info.status for name, run in runs.items()} == {"study": "FINISHED", "crate-1l": "FINISHED"}
    history = client.get_metric_history(runs["crate-1l"].info.run_id, "pretrain/loss")
    assert sorted((m.step, m.value) for m in history) == [(1, 9.0), (2, 8.0), (3, 7.0)]
    (file,) = client.list_artifacts(runs["crate-1l"].info.run_id, "figures")
    assert file.file_size == 4
    assert PASSWORD not in "".join(p.read_text("utf-8", "replace") for p in tmp_path.rglob("*") if p.is_file())


def test_a_wrong_password_is_told_in_the_log_and_loses_nothing(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    sweep = TrackedSweep(server.uri, "refused", tmp_path / "runs" / "refused" / "mlflow-spool")
    parent = sweep.start_parent("refused", {}, {})
    sweep.finish(parent, "FINISHED")
    sweep.close()
    assert "has not everything yet" in caplog.text
    assert "401" in (sweep.spool / "delivery.log").read_text()
    assert list(sweep.spool.glob("*/run.json"))
