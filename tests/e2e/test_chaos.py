"""Kill it anywhere: the rerun goes on, and its artifacts equal those of a run that was never disturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from pipeline.artifacts.store import Store
from pipeline.progress import read_progress
from tests.e2e.sweeps import ROOT, command, environment, sweep


def start(config: Path) -> subprocess.Popen:
    return subprocess.Popen(
        command(config),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def wait_for_training(process: subprocess.Popen, store: Path, tokens: float) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        states = read_progress(Store(store), "tiny").values()
        if any(state.step.endswith("pretrain") and tokens <= state.done < state.total for state in states):
            return
        time.sleep(0.05)
    pytest.fail("training was not seen under way")


def files_of(store: Path, stage: str) -> dict[str, list]:
    """Names and hashes of all files of a stage's artifacts, by fingerprint."""
    manifests = [json.loads(path.read_text()) for path in store.glob(f"{stage}/*/manifest.json")]
    return {manifest["fingerprint"]: manifest["files"] for manifest in manifests}


def told(store: Path) -> dict[str, str]:
    """The report's figures and tables by hash; its page also says where and when each artifact was made."""
    report = json.loads((store / "runs/tiny/report/manifest.json").read_text())
    files = report["files"]
    return {file["name"]: file["sha256"] for file in files if file["name"] != "index.html"}


def test_a_sweep_stopped_and_then_killed_ends_in_the_same_report(swept: Path, tmp_path: Path) -> None:
    reference, store = swept.parent / "store", tmp_path / "store"
    config = tmp_path / "tiny.yaml"
    config.write_text(swept.read_text().replace(str(reference), str(store)))

    process = start(config)
    wait_for_training(process, store, tokens=3_000)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 128 + signal.SIGTERM, output.decode()
    assert b"Run the same command to go on" in output
    psutil.wait_procs(children, timeout=20)
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]

    process = start(config)
    wait_for_training(process, store, tokens=6_000)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert len(list(store.glob("pretrain/*"))) < 2

    result = sweep(config)
    assert result.returncode == 0, result.stdout + result.stderr
    for stage in ("tokens", "pretrain", "evaluate", "activations", "interpret", "steer"):
        assert files_of(store, stage) == files_of(reference, stage), stage
    assert told(store) == told(reference)


def test_a_failed_cell_fails_its_own_descendants_and_the_rest_is_reported(swept: Path) -> None:
    """A learning rate that blows up one model: its cell is named, the kept one stands in the report, the exit code says so."""
    healthy = "{model.architecture: [crate], model.n_layer: [1]}"
    ill = "{model.architecture: [gpt2], pretrain.learning_rate: [1.0e+30]}"
    grid = f"grid=[{healthy}, {ill}]"
    result = sweep(swept, "--set", grid, "--set", "name=broken", "--set", "model.n_layer=1")
    assert result.returncode == 10, result.stdout + result.stderr
    assert "failed gpt2-1l" in result.stdout
    assert "pretrain failed" in result.stdout
    page = (swept.parent / "store/runs/broken/report/index.html").read_text("utf-8")
    assert "gpt2-1l" in page and "crate-1l" in page
    assert (swept.parent / "store/runs/broken/crate-1l").exists()
