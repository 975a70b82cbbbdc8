"""Ray Train only carries the loop: its artifact is the loop's own to the bit, whoever is killed on the way."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from pretrain_driver import STEPS, train_one
from pretrain_ranks import Order, Ranks
from training_world import make_job, make_tokens, with_runtime

from pipeline.artifacts.manifest import sha256_of
from pipeline.artifacts.store import Store
from pipeline.errors import StageError
from pipeline.pretrain import resume
from tests.processes import kill_with_all_below, named_below

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ray")
    make_tokens(Store(folder / "store"))
    return folder


@pytest.fixture(scope="module")
def core(root: Path) -> dict[str, str]:
    """Hashes of what the loop makes without Ray, in a process of its own."""
    code = (
        "import sys, torch; sys.path[:0] = sys.argv[3:]\n"
        "from pathlib import Path\n"
        "from training_world import make_job, with_runtime\n"
        "from pipeline.artifacts.store import Store\n"
        "from pipeline.pretrain.__main__ import process_group\n"
        "from pipeline.pretrain.logbook import Wishes\n"
        "from pipeline.pretrain.worker import work\n"
        "root = Path(sys.argv[1])\n"
        "job = make_job(root, Store(root / 'store').get('tokens', '7' * 32), 'core', total_tokens=int(sys.argv[2]) * 256)\n"
        "with process_group(60): work(with_runtime(job, optimizer='torch_fused'), torch.device('cpu'), Wishes())\n"
    )
    arguments = [sys.executable, "-W", "ignore", "-c", code, str(root), str(STEPS)]
    arguments += [str(HERE.parent), str(HERE.parents[1])]
    subprocess.run(arguments, check=True)
    return hashes(root / "core")


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in sorted(folder.iterdir())}


def resume_folder(root: Path, name: str) -> Path:
    return root / "store" / ".scratch" / name / "resume"


def wait_for_step(root: Path, name: str, step: int) -> None:
    deadline = time.monotonic() + 240
    while max([0, *resume.steps(resume_folder(root, name))]) < step:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_killed_cluster_ends_in_the_same_bits(root: Path, core: dict[str, str]) -> None:
    """The driver and all of its cluster die by kill -9 at once. A driver alone is killed in tests/e2e/test_bucket.py."""
    driver = start_driver(root)
    wait_for_step(root, "driver", random.randint(5, 40))
    kill_with_all_below(driver)
    assert 5 <= resume.steps(resume_folder(root, "driver"))[-1] < STEPS
    driver = start_driver(root)
    output = driver.communicate(timeout=280)[0]
    assert "trained" in output, output
    assert hashes(root / "driver") == core
    outcome = json.loads((root / "store" / ".scratch" / "driver" / "outcome.json").read_text())
    assert outcome["summary"]["train_tokens"] == STEPS * 256


@pytest.fixture(scope="module")
def core_of_two(root: Path) -> dict[str, str]:
    """Hashes of what two ranks of the loop make without Ray."""
    pair = Ranks(2)
    pair.train(Order(str(root), "core-of-two", {"total_tokens": STEPS * 256}))
    pair.close()
    return hashes(root / "core-of-two")


def test_of_two_workers_one_is_killed_and_the_bits_are_two_ranks_own(
    ray_cluster: dict[str, float], root: Path, core_of_two: dict[str, str]
) -> None:
    killed: list[int] = []

    def kill_a_trainer() -> None:
        wait_for_step(root, "pair", random.randint(5, 40))
        victim = random.choice(named_below("RayTrainWorker"))
        killed.append(victim.pid)
        victim.kill()

    killer = threading.Thread(target=kill_a_trainer)
    killer.start()
    out = train_one(str(root), "pair", workers_per_cell=2)
    killer.join()
    assert killed
    assert hashes(out) == core_of_two


def test_elastic_workers_begin_with_as_many_as_there_is_room_for(
    ray_cluster: dict[str, float], root: Path, core_of_two: dict[str, str]
) -> None:
    """One to four are asked for on two cores: two train, and the batch is the batch."""
    out = train_one(str(root), "elastic", workers_per_cell=4, min_workers_per_cell=1)
    assert hashes(out) == core_of_two


def test_divergence_is_raised_as_it_was_and_is_not_retried(ray_cluster: dict[str, float], root: Path) -> None:
    from pipeline.pretrain.stage import run

    tokens = Store(root / "store").get("tokens", "7" * 32)
    job = make_job(root, tokens, "diverging", learning_rate=1e9, warmup_steps=1)
    job = with_runtime(job, optimizer="torch_fused")
    with pytest.raises(StageError) as told:
        run(job.settings, {"tokens": tokens}, job.out_folder, job.context)
    assert "diverged at step" in told.value.what and told.value.fingerprint == "diverging"


def start_driver(root: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", str(HERE / "pretrain_driver.py"), str(root), "driver"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
