"""The whole sweep with its store in a bucket that answers 500 and late, stopped, and killed: its artifacts are a folder's."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from pipeline.artifacts.manifest import Manifest
from pipeline.artifacts.store import Store
from pipeline.progress import read_progress
from tests.e2e.sweeps import ROOT, command, environment, planned, sweep
from tests.s3 import BUCKET, s3_server

PLACE = f"s3://{BUCKET}/sweep"
STAGES = ("tokens", "pretrain", "evaluate", "activations", "interpret", "steer")


def start(config: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        command(config, *arguments),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def wait_for_training(process: subprocess.Popen, store: Store, tokens: float) -> None:
    deadline = time.monotonic() + 480
    while time.monotonic() < deadline and process.poll() is None:
        states = read_progress(store, "tiny").values()
        if any(state.step.endswith("pretrain") and tokens <= state.done < state.total for state in states):
            return
        time.sleep(0.1)
    process.kill()
    pytest.fail("training was not seen under way:\n" + process.communicate()[0].decode())


def made(store: Store) -> dict[tuple[str, str], tuple]:
    """Names, sizes and hashes of every artifact's files."""
    artifacts = [artifact for stage in STAGES for artifact in store.all_of(stage)]
    return {(a.manifest.stage, a.fingerprint): tuple(a.manifest.files) for a in artifacts}


def told(report: Manifest) -> dict[str, str]:
    """The report's figures and tables by hash; its page also says where and when each artifact was made."""
    return {file.name: file.sha256 for file in report.files if file.name != "index.html"}


@pytest.mark.timeout(1800)  # other tests run beside it
def test_over_a_bucket_in_bad_weather_stopped_and_killed_it_ends_in_the_same_artifacts(
    swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Store(swept.parent / "store")
    config = tmp_path / "tiny.yaml"
    config.write_text(swept.read_text().replace(str(folder.root), PLACE))
    options = ("--set", f"runtime.mlflow_uri=sqlite:///{tmp_path}/mlflow.db")
    with s3_server(fail_every=25, slow_every=400) as weather:
        monkeypatch.setenv("CRATE_CACHE", str(tmp_path / "one machine"))
        bucket = Store.open(PLACE, tmp_path / "reader")

        process = start(config, *options)
        wait_for_training(process, bucket, tokens=1_000)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 128 + signal.SIGTERM, output.decode()
        assert b"Run the same command to go on" in output
        psutil.wait_procs(children, timeout=20)
        assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]

        process = start(config, *options)
        wait_for_training(process, bucket, tokens=3_000)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert len(list(bucket.all_of("pretrain"))) < 2

        monkeypatch.setenv("CRATE_CACHE", str(tmp_path / "another machine"))
        result = sweep(config, *options)
        assert result.returncode == 0, result.stdout + result.stderr
        assert result.stdout.splitlines()[-1].startswith(f"report: {PLACE}/report/")
        assert weather.n_failed > 10
        far = made(bucket)
        assert len(far) == 11 and far.items() <= made(folder).items()  # tokens, and five steps of two models
        report = (folder.root / "runs/tiny/report/manifest.json").read_text()
        (far_report,) = bucket.all_of("report")
        assert told(far_report.manifest) == told(Manifest.from_json(report, "the folder's report"))

        monkeypatch.setenv("CRATE_CACHE", str(tmp_path / "a third machine"))
        assert set(planned(config, *options).values()) == {"kept"}
