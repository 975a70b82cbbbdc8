"""The cluster way of a sweep: `ray job submit` with a token, on several nodes; stopped, submitted again, and its nodes go."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.artifacts.store import Store
from pipeline.progress import read_progress
from tests.corpus import write_corpus
from tests.e2e.ray_nodes import running_nodes, trainers, wait_until
from tests.e2e.sweeps import ROOT, tiny_config, write_config

JOB = "tiny"  # the sweep's own name: whoever submits it twice is told
UPLOAD_BYTES = 10 * 2**20


def trained(store: Path) -> tuple[float, float]:
    """Tokens that both cells' trainings have seen at least, and those of them that an earlier attempt had done."""
    states = [state for state in read_progress(Store(store), "tiny").values() if state.step.endswith("/pretrain")]
    if len(states) < 2:
        return 0, 0
    return min(state.done for state in states), min(state.done_at_start for state in states)


@pytest.mark.timeout(1800)  # other tests run beside it
def test_a_job_is_stopped_goes_on_and_outlives_a_node_that_dies_and_one_that_is_taken_away(tmp_path: Path) -> None:
    store = tmp_path / "store"
    changes = {"pretrain__total_tokens": 51_200, "pretrain__eval_every_steps": 200, "runtime__parallel_cells": 2}
    config = write_config(tmp_path / "tiny.yaml", tiny_config(write_corpus(tmp_path), store, **changes))
    with running_nodes(3) as nodes:
        assert nodes.ask(token="")[0] == 401
        assert nodes.ask(token="wrong" * 8)[0] in (401, 403)

        first = nodes.submit(JOB, config)
        assert first.returncode == 0, first.stdout + first.stderr
        twice = nodes.submit(JOB, config)
        assert twice.returncode != 0 and "already" in twice.stdout + twice.stderr

        wait_until(lambda: trained(store)[0] >= 2_500)
        sent = list(nodes.folder.glob("*/session_2*/runtime_resources/working_dir_files/*/**/*"))
        assert sum(path.stat().st_size for path in sent if path.is_file()) < 4 * UPLOAD_BYTES  # a copy a node
        names = {path.name for path in sent}
        assert "sweep.py" in names and not names & {".venv", ".git", "store", "build"}

        assert nodes.ask(f"{JOB}/stop", "POST")[0] == 200  # what `ray job stop` sends, and at once
        wait_until(lambda: nodes.job_status(JOB) == "STOPPED")
        assert "Run the same command to go on" in nodes.job_log(JOB)
        assert list(store.glob(".scratch/*/resume/0*")) and not list(store.glob("pretrain/*"))

        def goes_on() -> bool:  # the id is free again; the store forgets nothing
            forgotten = nodes.job("delete", JOB)
            assert forgotten.returncode == 0, forgotten.stdout + forgotten.stderr
            again = nodes.submit(JOB, config)
            # Ray's watch of the job, which looks once a second, may have written it down once more
            late = f"submission_id {JOB} already exists" in again.stdout + again.stderr
            assert late or again.returncode == 0, again.stdout + again.stderr
            return not late

        wait_until(goes_on)
        wait_until(lambda: trained(store)[1] >= 2_500 and trained(store)[0] >= trained(store)[1] + 1_000)

        dying, leaving = [node for node in nodes.workers if trainers(node)]  # two models, on two nodes
        os.killpg(dying.pid, signal.SIGKILL)
        spare = next(node for node in nodes.workers if node not in (dying, leaving))
        wait_until(lambda: trainers(spare))
        leave = [sys.executable, "-m", "cluster.leave", "--root", str(leaving.pid), "--seconds", "120"]
        variables = nodes.variables | {"RAY_ADDRESS": nodes.gcs}
        subprocess.run(leave, cwd=ROOT, env=variables, check=True, timeout=200)
        assert leaving.wait(60) is not None and not trainers(leaving)
        nodes.add_worker()  # the node comes back

        wait_until(lambda: nodes.job_status(JOB) not in ("PENDING", "RUNNING"))
        assert nodes.job_status(JOB) == "SUCCEEDED", nodes.job_log(JOB)[-3000:]
    assert (store / "runs/tiny/report/index.html").is_file()
    assert len(list(store.glob("pretrain/*/manifest.json"))) == 2
