"""`status` and `compare`: what a person in another terminal is told of a run, from the store alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.artifacts.store import Store
from pipeline.cli import main
from pipeline.progress import Progress
from tests.synthetic_sweep import SyntheticSweep, fresh_store


def made(store: Store, run: str, waiting: tuple[str, ...] = ()) -> SyntheticSweep:
    """A run of one model, all of it made but the steps `waiting`, with the plan that a sweep writes down."""
    sweep = SyntheticSweep(store, name=run, total_tokens=4096, top=1, random=1, d_model=8, n_head=1)
    sweep.add("crate", 1)
    steps = {name: {"stage": name.rpartition("/")[2], "fingerprint": a.fingerprint} for name, a in sweep.inputs.items()}
    steps |= {name: {"stage": name.rpartition("/")[2], "fingerprint": "0" * 32} for name in waiting}
    store.write_note(run, "plan.json", json.dumps({"name": run, "steps": steps}).encode())
    return sweep


def test_status_tells_what_is_made_running_quiet_and_waiting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    store = fresh_store(tmp_path)
    made(store, "study", waiting=("gpt2-1l/pretrain", "gpt2-1l/evaluate", "gpt2-2l/pretrain"))
    progress = Progress(store, "study", "gpt2-1l/pretrain", 2_000_000, "tokens")
    progress.state.started -= 100
    progress.update(1_000_000, loss=5.25)
    quiet = Progress(store, "study", "gpt2-2l/pretrain", 2_000_000, "tokens")
    quiet.state.updated -= 3600
    quiet._write()
    Progress(store, "study", "gpt2-1l/evaluate", 10, "tokens", "1" * 32).update(10, loss=9.25)  # before it was changed
    assert main(["status", "--run", "study", "--store", str(store.root)]) == 0
    rows = {line.split("│")[1].strip(): line for line in capsys.readouterr().out.splitlines() if line.startswith("│")}
    assert "made" in rows["crate-1l/interpret"]
    assert "running" in rows["gpt2-1l/pretrain"]
    assert "1M of 2M tokens  10k tokens/s  1 min 40 s left  loss 5.25" in rows["gpt2-1l/pretrain"]
    assert "quiet for 1 h" in rows["gpt2-2l/pretrain"]
    assert "waiting" in rows["gpt2-1l/evaluate"] and "9.25" not in rows["gpt2-1l/evaluate"]


def test_a_run_that_is_not_there_is_told_in_two_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--run", "absent", "--store", str(fresh_store(tmp_path).root)]) != 0
    assert "holds no run 'absent'\n  Is --store right?" in capsys.readouterr().err


def test_two_runs_are_compared_cell_by_cell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = fresh_store(tmp_path)
    a, b = made(store, "first"), made(store, "second")
    assert main(["compare", "first", "second", "--store", str(store.root), "--json"]) == 0
    rows = {row["measure"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows.keys() >= {"val_loss", "bits_per_byte", "top_and_random", "random_only", "anthropic"}
    losses = [sweep.inputs["crate-1l/evaluate"].summary["val_loss"] for sweep in (a, b)]
    assert rows["val_loss"]["difference"] == pytest.approx(losses[1] - losses[0])
    for metric in ("top_and_random", "random_only", "anthropic"):
        assert rows[metric]["cell"] == "crate-1l" and rows[metric]["low"] <= rows[metric]["high"]
    assert main(["compare", "first", "second", "--store", str(store.root)]) == 0
    assert "second minus first" in capsys.readouterr().out
