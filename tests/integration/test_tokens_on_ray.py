"""On a Ray cluster the artifact is the same as without one, also when workers and drivers are killed on the way."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from pipeline.artifacts.artifact import Artifact
from pipeline.errors import StageError
from pipeline.stage import STOP_NOTE
from pipeline.tokens import stage
from tests.processes import kill_with_all_below, named_below
from tests.tokens_lab import contents, context, jsonl, make, record, write_lines

FILES = 6
ROOT = Path(__file__).parents[2]
DRIVER = """
import sys
from pipeline import runtime
from pipeline.config import RuntimeConfig, TokensConfig
from pipeline.tokens import stage
from tests.tokens_lab import make
from pathlib import Path
if sys.argv[3] == "ray":
    runtime.connect_ray(RuntimeConfig(cpus=2))
    stage.LARGE_BYTES = 0
make(Path(sys.argv[1]), TokensConfig.model_validate_json(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Six files of 6 MB and some val documents, all with a few faults; enough to be caught in the middle of."""
    folder = tmp_path_factory.mktemp("corpus")
    text = " ".join(f"{i * i} squared roots, and {i}" for i in range(12_000))
    for number in range(FILES):
        lines = [record(f"{number}.{i} {text[i * 300 : i * 300 + 12_000]}", f"domain {i % 3}") for i in range(500)]
        write_lines(folder / f"train/{number}.jsonl.zst", [*lines, b"broken", lines[7]])
    write_lines(folder / "val.jsonl.zst", [*lines[:20], record("only in val")])
    return jsonl(train=(f"{folder}/train/*.zst",), val=(f"{folder}/val.jsonl.zst",), max_bad_fraction=0.01)


@pytest.fixture(scope="module")
def expected(config, tmp_path_factory):
    artifact = make(tmp_path_factory.mktemp("plain"), config)
    assert artifact.summary["duplicates_dropped"] == 21 and artifact.summary["bad"] == {"malformed_json": FILES}
    return contents(artifact)


def shards_folder(root: Path, config) -> Path:
    return context(root, config).scratch / "shards"


def half_made(root: Path, config) -> list[Path]:
    return list(shards_folder(root, config).glob(".train-*"))


def finished(root: Path, config) -> int:
    return len(list(shards_folder(root, config).glob("train-*/facts.json")))


def kill_when(condition, victims) -> threading.Thread:
    """Watch, in a thread, until `condition()` holds; then kill what `victims()` gives, without warning."""

    def watch() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not condition():
            time.sleep(0.002)
        for process in victims():
            process.send_signal(signal.SIGKILL)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def busy_workers() -> list[psutil.Process]:
    """Workers of this process's own cluster that are making a shard."""
    return named_below("_make")


def test_ray_makes_what_the_plain_loop_makes(ray_cluster, config, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "LARGE_BYTES", 0)
    assert contents(make(tmp_path, config)) == expected


def test_a_killed_worker_costs_only_its_shard(ray_cluster, config, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "LARGE_BYTES", 0)
    left: list[Path] = []

    def caught_in_the_act() -> bool:
        left[:] = [folder for folder in half_made(tmp_path, config) if (folder / "train.arrow").exists()]
        return bool(left) and finished(tmp_path, config) >= 1

    killer = kill_when(caught_in_the_act, lambda: busy_workers()[:1])
    artifact = make(tmp_path, config)
    killer.join()
    assert left, "no worker was caught while it made a shard"
    assert contents(artifact) == expected


def test_workers_killed_at_random_moments_change_nothing(ray_cluster, config, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "LARGE_BYTES", 0)
    draw, killed, ended = random.Random(11), [], threading.Event()

    def kill_now_and_then() -> None:
        while len(killed) < 2 and not ended.wait(draw.uniform(0.1, 0.5)):
            for process in busy_workers()[:1]:
                killed.append(process.pid)
                process.send_signal(signal.SIGKILL)

    killer = threading.Thread(target=kill_now_and_then)
    killer.start()
    try:
        artifact = make(tmp_path, config)
    finally:
        ended.set()
        killer.join()
    assert killed and contents(artifact) == expected


def run_driver(root: Path, config, how: str) -> subprocess.Popen:
    command = [sys.executable, "-c", DRIVER, str(root), config.model_dump_json(), how]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)


def go_on(root: Path, config, shards_before: dict[str, int]) -> Artifact:
    """Make the rest, here and without Ray; what was finished must not be made again."""
    artifact = make(root, config)
    for name, inode in shards_before.items():
        number = int(name.split("-")[1])
        assert artifact.file(f"train/{number:05d}.arrow").stat().st_ino == inode
    return artifact


@pytest.mark.parametrize(("how", "shards"), [("ray", 2), ("plain", 0), ("plain", 1), ("plain", 4)])
def test_a_killed_driver_loses_only_the_shards_under_way(config, expected, tmp_path, how, shards):
    process = run_driver(tmp_path, config, how)
    try:
        deadline = time.monotonic() + 300  # under other tests, Ray alone may take minutes to start
        while not (finished(tmp_path, config) >= shards and half_made(tmp_path, config)):
            assert process.poll() is None and time.monotonic() < deadline, "the driver ended before it was killed"
            time.sleep(0.002)
    finally:
        kill_with_all_below(process)
    assert not list((tmp_path / "tokens").glob("*"))
    done = {
        path.parent.name: path.stat().st_ino
        for path in shards_folder(tmp_path, config).glob("train-*/train.arrow")
        if (path.parent / "facts.json").exists()
    }
    assert len(done) >= shards
    assert contents(go_on(tmp_path, config, done)) == expected


def test_a_driver_killed_at_random_moments_is_gone_on_from(config, expected, tmp_path):
    draw = random.Random(7)
    for _ in range(2):
        process = run_driver(tmp_path, config, "plain")
        try:
            while not shards_folder(tmp_path, config).exists() and process.poll() is None:  # Python is starting
                time.sleep(0.002)
            time.sleep(draw.uniform(0, 2))
        finally:
            kill_with_all_below(process)
    assert contents(make(tmp_path, config)) == expected


def test_asked_to_stop_it_leaves_and_goes_on_later(ray_cluster, config, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "LARGE_BYTES", 0)
    lab = context(tmp_path, config)
    lab.store.write_note(lab.run_name, STOP_NOTE, b"")
    with pytest.raises(StageError, match="stopped as asked"):
        make(tmp_path, config)
    assert finished(tmp_path, config) == 0
    lab.store.delete_note(lab.run_name, STOP_NOTE)
    time.sleep(1.1)  # the answer is remembered for a second
    assert contents(make(tmp_path, config)) == expected


def test_an_error_in_a_worker_arrives_as_itself(ray_cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "LARGE_BYTES", 0)
    path = write_lines(tmp_path / "a.jsonl", [b"bad"] * 20)
    with pytest.raises(StageError, match=r"20 of 20 documents are unreadable; the worst file is .*a\.jsonl"):
        make(tmp_path / "store", jsonl(train=(str(path),)))
