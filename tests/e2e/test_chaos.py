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
from tests.corpus import write_corpus
from tests.e2e.sweeps import ROOT, command, environment, sweep, tiny_config, write_config


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
    (files,) = files_of(store, "report").values()
    return {file["name"]: file["sha256"] for file in files if file["name"] != "index.html"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    corpus = write_corpus(folder)
    grid = {"model.architecture": ["crate"], "model.n_layer": [1]}
    config = write_config(
        folder / "tiny.yaml", tiny_config(corpus, folder / "store", grid=grid, pretrain__total_tokens=19_200)
    )
    result = sweep(config)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def test_a_killed_driver_loses_nothing_and_the_report_is_the_same(undisturbed: Path, tmp_path: Path) -> None:
    text = (undisturbed / "tiny.yaml").read_text().replace(str(undisturbed / "store"), str(tmp_path / "store"))
    config = tmp_path / "tiny.yaml"
    config.write_text(text)
    process = start(config)
    wait_for_training(process, tmp_path / "store", tokens=3_000)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not list((tmp_path / "store").glob("pretrain/*"))
    result = sweep(config)
    assert result.returncode == 0, result.stdout + result.stderr
    for stage in ("tokens", "pretrain", "evaluate", "activations", "interpret", "steer"):
        assert files_of(tmp_path / "store", stage) == files_of(undisturbed / "store", stage), stage
    assert told(tmp_path / "store") == told(undisturbed / "store")


def test_a_stopped_sweep_saves_leaves_and_goes_on(undisturbed: Path, tmp_path: Path) -> None:
    text = (undisturbed / "tiny.yaml").read_text().replace(str(undisturbed / "store"), str(tmp_path / "store"))
    config = tmp_path / "tiny.yaml"
    config.write_text(text)
    process = start(config)
    wait_for_training(process, tmp_path / "store", tokens=3_000)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 128 + signal.SIGTERM, output.decode()
    assert b"Run the same command to go on" in output
    psutil.wait_procs(children, timeout=20)
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    result = sweep(config)
    assert result.returncode == 0, result.stdout + result.stderr
    assert files_of(tmp_path / "store", "pretrain") == files_of(undisturbed / "store", "pretrain")


def test_a_failed_cell_fails_its_own_descendants_and_the_rest_is_reported(undisturbed: Path, tmp_path: Path) -> None:
    """A learning rate that blows up one model: its cell is named, the kept one stands in the report, the exit code says so."""
    healthy = "{model.architecture: [crate], model.n_layer: [1]}"
    ill = "{model.architecture: [gpt2], pretrain.learning_rate: [1.0e+30]}"
    grid = f"grid=[{healthy}, {ill}]"
    result = sweep(undisturbed / "tiny.yaml", "--set", grid, "--set", "name=broken", "--set", "model.n_layer=1")
    assert result.returncode == 10, result.stdout + result.stderr
    assert "failed gpt2-1l" in result.stdout
    assert "pretrain failed" in result.stdout
    page = (undisturbed / "store/runs/broken/report/index.html").read_text("utf-8")
    assert "gpt2-1l" in page and "crate-1l" in page
    assert (undisturbed / "store/runs/broken/crate-1l").exists()
