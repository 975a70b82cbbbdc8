"""A trainer that is killed at a random moment and started again ends in the very same bits."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from training_world import MODEL, RECIPE, make_tokens

from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.store import Store
from pipeline.pretrain import resume

ROOT = Path(__file__).parents[2]
STEPS = 150


def write_config(folder: Path, **changes: object) -> Path:
    recipe = {**RECIPE.model_dump(), "total_tokens": STEPS * RECIPE.batch_tokens, "eval_every_steps": 50}
    tree = {
        "name": "killed",
        "model": {name: getattr(MODEL, name) for name in ("n_layer", "n_head", "d_model", "n_ctx", "vocab_size")},
        "pretrain": recipe | changes,
        "runtime": {
            "store": str(folder / "store"),
            "optimizer": "torch_fused",
            "checkpoint_every_steps": 5,
            "log_every_steps": 5,
            "threads_per_worker": 1,
        },
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(tree))))
    return path


def start(folder: Path, workers: int = 1) -> subprocess.Popen[str]:
    """`python -m pipeline.pretrain`; on several workers `torchrun -m pipeline.pretrain`."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"] if workers > 1 else []
    command = [sys.executable, "-W", "ignore", *torchrun, "-m", "pipeline.pretrain"]
    command += ["--config", str(folder / "config.yaml")]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def saved_steps(folder: Path) -> int:
    """The newest step of which a state was saved; 0 before the first."""
    found = list((folder / "store" / ".scratch").glob("*/resume"))
    return max([0, *(step for path in found for step in resume.steps(path))])


def wait_for_step(folder: Path, step: int, process: subprocess.Popen[str]) -> None:
    while saved_steps(folder) < step:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


def trained(folder: Path) -> Artifact:
    [artifact] = Store(folder / "store").all_of("pretrain")
    return artifact


def end(process: subprocess.Popen[str]) -> str:
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("uninterrupted")
    make_tokens(Store(folder / "store"))
    write_config(folder)
    end(start(folder))
    return trained(folder)


def test_killed_terminated_and_gone_on_is_bit_equal(tmp_path: Path, uninterrupted: Artifact) -> None:
    """kill -9 at a random step; then SIGTERM, on which it saves and leaves; then to the end."""
    make_tokens(Store(tmp_path / "store"))
    write_config(tmp_path)
    first = start(tmp_path)
    wait_for_step(tmp_path, random.randint(5, 40), first)
    time.sleep(random.random() / 10)
    first.kill()
    first.wait()
    killed_at = saved_steps(tmp_path)
    second = start(tmp_path)
    wait_for_step(tmp_path, killed_at + 5, second)
    second.send_signal(signal.SIGTERM)
    told = second.communicate(timeout=240)[0]
    assert second.returncode != 0 and "stopped as asked" in told
    left_at = saved_steps(tmp_path)
    assert killed_at < left_at < STEPS
    assert f"going on after step {left_at}" in end(start(tmp_path))
    assert_equal(trained(tmp_path), uninterrupted)


def assert_equal(ours: Artifact, theirs: Artifact) -> None:
    """The same recipe, the same files to the bit, the same batches."""
    assert ours.fingerprint == theirs.fingerprint
    assert {entry.name: entry.sha256 for entry in ours.manifest.files} == {
        entry.name: entry.sha256 for entry in theirs.manifest.files
    }
    assert ours.summary == theirs.summary


def test_torchrun_on_two_workers_is_terminated_and_one_goes_on(tmp_path: Path, uninterrupted: Artifact) -> None:
    """`torchrun -m pipeline.pretrain`: the artifact is the one worker's but for rounding, of the very same windows."""
    make_tokens(Store(tmp_path / "store"))
    write_config(tmp_path)
    first = start(tmp_path, workers=2)
    wait_for_step(tmp_path, 5, first)
    first.send_signal(signal.SIGTERM)
    told = first.communicate(timeout=240)[0]
    assert first.returncode != 0 and 5 <= saved_steps(tmp_path) < STEPS
    assert told.count("stopped as asked") == 1  # one of the two speaks
    end(start(tmp_path))
    ours, theirs = trained(tmp_path), uninterrupted
    assert ours.fingerprint == theirs.fingerprint
    assert ours.summary["consumed"] == theirs.summary["consumed"]
    assert ours.summary["val_loss"] == pytest.approx(theirs.summary["val_loss"], abs=0.01)


def test_divergence_is_told_with_its_batch_and_not_tried_again(tmp_path: Path) -> None:
    make_tokens(Store(tmp_path / "store"))
    write_config(tmp_path, learning_rate=1e9, min_learning_rate=0.0, warmup_steps=2)
    process = start(tmp_path)
    told = process.communicate(timeout=240)[0]
    assert process.returncode == 5
    named = f"python -m pipeline inspect-batch --run killed --cell crate-2l --store {tmp_path / 'store'} --step "
    assert "diverged at step" in told and named in told
    assert os.environ.get("RANK") is None
