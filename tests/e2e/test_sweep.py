"""The main job, run as a person runs it: text to report, kept when run again, honest when something fails."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from pathlib import Path

import pytest

from pipeline.artifacts.manifest import Manifest
from pipeline.cli import main
from tests.browser import complaints, needs_browser, open_neurons, opened_browser
from tests.e2e.sweeps import planned, sweep


def test_every_step_left_its_artifact_under_a_name(swept: Path) -> None:
    run = swept.parent / "store" / "runs" / "tiny"
    for cell in ("crate-1l", "gpt2-1l"):
        for stage in ("pretrain", "evaluate", "activations", "interpret", "steer"):
            assert (run / cell / stage / "manifest.json").is_file()
    page = (run / "report" / "index.html").read_text("utf-8")
    assert "crate-1l" in page and "gpt2-1l" in page


@needs_browser
def test_its_page_opens_without_a_complaint_and_shows_its_neurons(swept: Path) -> None:
    page = swept.parent / "store" / "runs" / "tiny" / "report" / "index.html"
    with opened_browser() as browser:
        browser.get(page.resolve().as_uri())
        open_neurons(browser)
        assert browser.execute_script("return document.querySelector('.count').textContent") == "128 of 128 neurons"
        assert browser.execute_script("return document.querySelectorAll('.detail .excerpt').length") > 0
        assert complaints(browser) == []


def test_the_models_learned(swept: Path) -> None:
    run = swept.parent / "store" / "runs" / "tiny"
    for cell in ("crate-1l", "gpt2-1l"):
        trained = json.loads((run / cell / "pretrain" / "manifest.json").read_text())["summary"]
        evaluation = json.loads((run / cell / "evaluate" / "manifest.json").read_text())["summary"]
        assert evaluation["val_loss"] < 10.0  # it began at ln 50304, 10.83
        assert trained["train_tokens"] == 6_400


def test_running_again_makes_nothing_and_is_quick(swept: Path) -> None:
    run = swept.parent / "store" / "runs" / "tiny"
    before = {path: path.stat().st_mtime_ns for path in run.glob("*/*/manifest.json")}
    assert len(before) == 10
    started = time.monotonic()
    result = sweep(swept)
    assert result.returncode == 0, result.stderr
    assert time.monotonic() - started < 20
    assert "0 to make" in result.stdout
    assert {path: path.stat().st_mtime_ns for path in run.glob("*/*/manifest.json")} == before


def test_runtime_knobs_rebuild_nothing(swept: Path) -> None:
    knobs = ("runtime.workers_per_cell=2", "runtime.zero_stage=3", "runtime.micro_batch=1", "runtime.log_every_steps=3")
    statuses = planned(swept, *(argument for knob in knobs for argument in ("--set", knob)))
    assert set(statuses.values()) == {"kept"}


def test_a_larger_grid_makes_only_its_new_cells(swept: Path) -> None:
    statuses = planned(swept, "--set", "grid={model.architecture: [crate, gpt2], model.n_layer: [1, 2]}")
    assert {name.partition("/")[0] for name, status in statuses.items() if status == "make"} == {"crate-2l", "gpt2-2l"}
    assert statuses["tokens"] == "kept"


def test_the_plan_is_json_with_every_cell_and_makes_nothing(swept: Path, tmp_path: Path) -> None:
    store = tmp_path / "untouched"
    result = sweep(swept, "--plan", "--json", "--set", f"runtime.store={store}")
    plan = json.loads(result.stdout)
    keys = {"name", "architecture", "n_layer", "d_model", "n_params", "n_params_non_embedding"}
    keys |= {"train_flops_per_token", "train_tokens", "status"}
    assert [cell["status"] for cell in plan["cells"]] == ["make", "make"]
    assert all(keys <= cell.keys() for cell in plan["cells"])
    assert not store.exists()


def test_a_flipped_byte_is_told_and_nothing_is_built_on_it(swept: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(swept.parent / "store", store, symlinks=True, ignore=shutil.ignore_patterns(".*", "mlflow*"))
    shard = next((store / "tokens").glob("*/train/*.arrow"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])
    result = sweep(swept, "--set", f"runtime.store={store}")
    assert result.returncode == 3
    assert "is damaged" in result.stderr and str(shard.name) in result.stderr
    assert len(result.stderr.strip().splitlines()) == 2


def test_verify_knows_all_that_the_sweep_made_and_so_does_the_sweep(
    swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    shutil.copytree(swept.parent / "store", store, symlinks=True, ignore=shutil.ignore_patterns("mlflow*"))
    of_run = ("verify", "--run", "tiny", "--store", str(store))
    assert main([*of_run]) == 0
    assert "whole    report " in capsys.readouterr().out
    run = store / "runs" / "tiny"  # the store has reports of other tests' runs, too
    path = run / "crate-1l" / "evaluate" / "manifest.json"
    manifest = Manifest.from_json(path.read_text(), "")
    path.write_text(dataclasses.replace(manifest, summary=manifest.summary | {"val_loss": 1.5}).to_json())
    (run / "report" / "tables" / "cells.csv").write_text("cell")
    assert main([*of_run]) == 3
    told = capsys.readouterr().out
    assert told.count("DAMAGED") == 3 and "cells.csv is damaged" in told and "is not what report was made of" in told
    result = sweep(swept, "--set", f"runtime.store={store}")
    assert result.returncode == 3 and "another seal" in result.stderr


def test_a_neuron_of_the_sweep_is_shown(swept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of_run = ("--run", "tiny", "--store", str(swept.parent / "store"), "--cell", "gpt2-1l")
    assert main(["neuron", *of_run, "--layer", "0", "--index", "17"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("code-l0, neuron 17  fires on ") and "kurtosis" in told
    assert "Anthropic: " in told and "top, 64 tokens" in told


def test_a_batch_of_the_sweep_is_shown_without_a_cell(swept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of_run = ("--run", "tiny", "--store", str(swept.parent / "store"))
    assert main(["inspect-batch", *of_run, "--step", "49", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 2 and all(sum(d["tokens"] for d in row["documents"]) == 64 for row in rows)
    assert main(["inspect-batch", *of_run, "--step", "50"]) == 2
    assert "steps 0 to 49" in capsys.readouterr().err


def test_a_failed_cell_fails_its_own_descendants_and_the_rest_is_reported(swept: Path) -> None:
    """A learning rate that blows up one model: its cell is named, the exit code says so. The other model is trained once and
    read at two of its steps; both stand in the report."""
    healthy = "{model.architecture: [crate], checkpoint_step: [4, last]}"
    ill = "{model.architecture: [gpt2], pretrain.learning_rate: [1.0e+30]}"
    recipe = ("model.n_layer=1", "pretrain.total_tokens=3200", "pretrain.keep_log_spaced=true", "steer.neurons=0")
    changes = (f"grid=[{healthy}, {ill}]", "name=broken", *recipe)
    result = sweep(swept, *(argument for change in changes for argument in ("--set", change)))
    assert result.returncode == 10, result.stdout + result.stderr
    assert "failed gpt2-1l" in result.stdout
    assert "pretrain failed" in result.stdout and "diverged at step" in result.stdout + result.stderr
    run = swept.parent / "store" / "runs" / "broken"
    cells = [run / f"crate-1l-checkpoint_step{step}" for step in ("4", "last")]
    assert len({(cell / "pretrain").resolve() for cell in cells}) == 1
    losses = [json.loads((cell / "evaluate" / "manifest.json").read_text())["summary"]["val_loss"] for cell in cells]
    assert losses[0] > losses[1] + 0.1
    page = (run / "report" / "index.html").read_text("utf-8")
    assert all(name in page for name in ("gpt2-1l", "crate-1l-checkpoint_step4", "crate-1l-checkpoint_steplast"))
    assert (run / "report" / "figures" / "scores_against_tokens.svg").is_file()


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("pretrain.batch_tokens=100", "batch_tokens"),
        ("activations.layers=[12]", "activations.layers names layer 12, but the model has 12"),
    ],
)
def test_bad_input_ends_in_two_lines(swept: Path, tmp_path: Path, override: str, what: str) -> None:
    result = sweep(swept, "--set", override, "--set", f"runtime.store={tmp_path / 'store'}", "--set", "grid={}")
    assert result.returncode != 0
    assert what in result.stderr + result.stdout
    assert "Traceback" not in result.stderr + result.stdout
