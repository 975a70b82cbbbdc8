"""The GPU's evidence, in tiny sizes on a CPU: every stage runs, and neither a failure nor a time box costs more than a stage."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from crate_model.config import ModelConfig
from crate_model.model import LanguageModel

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PROGRAM = BENCHMARKS / "gpu_evidence.py"
BLOCKED = """
from pathlib import Path
Path(__file__).with_name("tried").write_text(__name__)
raise ImportError(f"{__name__} is not for the evidence of a GPU")
"""


@dataclass(frozen=True)
class Run:
    """A run of the program: what it left and printed."""

    folder: Path
    rows: list[dict[str, Any]]
    printed: str
    status: int

    def named(self, name: str) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["name"] == name]


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The program as a module; it and its stages are found by their folder."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("gpu_evidence")


def run(out: Path, *options: str, **environment: str) -> Run:
    command = [sys.executable, "-W", "ignore", str(PROGRAM), "--out", str(out), *options]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=590)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    sys.path.insert(0, str(BENCHMARKS))
    try:
        rows = importlib.import_module("gpu.session").read_rows(out)
    finally:
        sys.path.remove(str(BENCHMARKS))
    return Run(out, rows, done.stdout, done.returncode)


# ---- all stages, once ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Everything that a CPU can run of it, with Ray and MLflow not to be had."""
    blocked = tmp_path_factory.mktemp("blocked")
    for name in ("ray", "mlflow"):
        (blocked / f"{name}.py").write_text(BLOCKED)
    found = run(tmp_path_factory.mktemp("evidence"), "--tiny", "--limit", "570", PYTHONPATH=str(blocked))
    assert not (blocked / "tried").exists(), "Ray or MLflow was asked for"
    return found


def test_every_stage_runs_and_no_row_is_an_error(tiny: Run, program: Any) -> None:
    assert [row for row in tiny.rows if "error" in row] == []
    assert [row for row in tiny.rows if row.get("values", {}).get("ok") is False] == []
    assert tiny.status == 0
    ended = {row["stage"]: row for row in tiny.named("stage")}
    assert set(ended) == {stage.name for stage in program.STAGES}
    left_out = {name for name, row in ended.items() if "left_out" in row}
    assert left_out == {stage.name for stage in program.STAGES if stage.fills_cache}
    told = {row["stage"] for row in tiny.rows if "values" in row and row["name"] != "stage"}
    assert set(ended) - told == left_out


def test_rows_carry_what_they_were_found_on(tiny: Run) -> None:
    for row in tiny.rows:
        assert {"run", "time", "stage", "name", "card", "torch", "cuda", "git", "tiny"} <= set(row)
        assert ("values" in row) + ("left_out" in row) == 1
        assert row["tiny"] is True and row["card"] is None and row["torch"] == torch.__version__
    for step in [*tiny.named("step"), *tiny.named("engine"), *tiny.named("loop")]:
        assert step["values"]["tokens_per_second"] > 0 and step["values"]["ms"] > 0 and step["values"]["peak_gib"] > 0
        assert step["values"]["rows"] > 0 and step["values"]["tflops"] > 0


def test_both_sides_and_both_models_are_timed(tiny: Run) -> None:
    steps = [row["values"] for row in tiny.rows if row["stage"] == "train" and row["name"] == "step"]
    timed = {(step["side"], step["architecture"], step["how"]) for step in steps}
    assert timed == {
        (side, a, how) for side in ("ours", "plain") for a in ("crate", "gpt2") for how in ("eager", "compiled")
    }
    losses = {
        tuple(row["values"]["losses"]) for row in tiny.named("engine") if row["values"]["architecture"] == "crate"
    }
    firsts = [of_plan[0] for of_plan in losses]
    assert max(firsts) - min(firsts) < 0.01, "every plan begins with the same weights and windows"


def test_a_training_is_killed_and_gone_on_with(tiny: Run) -> None:
    [interrupted], [gone_on] = tiny.named("interrupted"), tiny.named("gone on with")
    assert 0 < interrupted["values"]["killed_after_step"] < interrupted["values"]["stopped_after_step"] < 120
    assert gone_on["values"]["same_bits"] and gone_on["values"]["same_batches"]
    assert "going on after step" in (tiny.folder / "resume.txt").read_text()


def test_targets_are_read_from_the_rows_and_not_judged(tiny: Run, program: Any) -> None:
    """Each finds its rows; only shares of a peak are not known without a card."""
    targets = importlib.import_module("gpu.targets").TARGETS
    said = {row["name"]: row["values"] for row in tiny.rows if row["stage"] == "targets"}
    assert list(said) == [target.name for target in targets]
    assert {name for name in said if "not run" in said[name]} == {name for name in said if name.endswith("mfu")} | {
        "paper_ladder"  # tiny sizes leave out some models
    }
    assert all(values.get("met") is None for values in said.values())
    assert all(f"RESULT {name} " in tiny.printed for name in said)


def test_the_page_is_printed_and_can_be_printed_again(tiny: Run) -> None:
    page = (tiny.folder / "summary.txt").read_text()
    assert page in tiny.printed and "tiny sizes: no measurement" in page and "gpt2_b_step" in page
    assert run(tiny.folder, "--summary", str(tiny.folder)).printed == page + "\n"
    table = run(tiny.folder, "--summary", str(tiny.folder), "--markdown").printed
    assert "| `gpt2_b_step` |" in table
    assert "compiled" in (tiny.folder / "profile.txt").read_text()


# ---- what goes wrong ----------------------------------------------------------------------------------------------------


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of stages that do what stages should not; their processes find it."""
    (tmp_path / "fakes.py").write_text("""
import os, signal, subprocess, sys, time

def raises(evidence):
    evidence.attempt("case", lambda evidence: 1 / 0)
    evidence.attempt("next case", lambda evidence: evidence.row("next case", value=1.0))
    evidence.attempt("a long case", lambda evidence: evidence.row("a long case"), needs=10_000)

def fails(evidence):
    raise ValueError("this stage fails")

def crashes(evidence):
    evidence.row("before", value=float("nan"))
    os.kill(os.getpid(), signal.SIGSEGV)

def hangs(evidence):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    evidence.row("hanging", child=child.pid)
    time.sleep(600)

def works(evidence):
    evidence.row("worked", left=evidence.left())
""")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def session(program: Any, folder: Path, **changes: Any) -> Any:
    """As on a card, but for what the fakes do not need."""
    told = {"card": "NVIDIA H100 80GB HBM3", "torch": "2.11.0", "cuda": "13.0", "git": "0"} | changes
    return program.Session("now", str(folder), str(folder), "", False, **told)


def ended(program: Any, folder: Path, *names: str, limit: float = 100) -> dict[str, list[dict[str, Any]]]:
    """Runs fakes of these names as stages; the rows by stage."""
    stages = [program.Stage(name, f"fakes:{name}", 11 if name == "hangs" else 60) for name in names]
    program.run_stages(stages, session(program, folder), limit)
    rows = importlib.import_module("gpu.session").read_rows(folder)
    return {name: [row for row in rows if row["stage"] == name] for name in names}


def test_a_stage_that_fails_is_a_row_and_the_next_one_runs(program: Any, fakes: Path) -> None:
    rows = ended(program, fakes, "fails", "crashes", "works")
    [failed] = rows["fails"]
    assert failed["error"] == "ended with status 1" and "ValueError: this stage fails" in failed["trace"]
    before, crashed = rows["crashes"]
    assert before["values"] == {"value": "nan"} and crashed["error"] == "ended with status -11"
    worked, well = rows["works"]
    assert 40 < worked["values"]["left"] < 60 and well["values"]["exit_status"] == 0
    assert worked["card"] == "NVIDIA H100 80GB HBM3"


def test_a_case_that_fails_is_a_row_and_the_next_one_runs(program: Any, fakes: Path) -> None:
    case, following, left_out, well = ended(program, fakes, "raises")["raises"]
    assert case["error"].startswith("ZeroDivisionError") and case["trace"]
    assert following["values"] == {"value": 1.0} and "were left" in left_out["left_out"]
    assert well["values"]["exit_status"] == 0


def test_a_time_box_is_kept_and_what_the_stage_had_started_ends_with_it(program: Any, fakes: Path) -> None:
    started = time.time()
    rows = ended(program, fakes, "hangs", "works")
    assert time.time() - started < 60
    hanging, over = rows["hangs"]
    assert over["error"] == "ran over its box of 11 s"
    assert not _lives(hanging["values"]["child"])
    assert rows["works"][-1]["values"]["exit_status"] == 0


def _lives(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody asked for its status does not."""
    status = Path(f"/proc/{pid}/stat")
    return status.is_file() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_an_interrupted_run_leaves_no_stage_behind(program: Any, fakes: Path) -> None:
    """As a time limit around the whole program does: the stage under way ends with it."""
    code = f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); import gpu_evidence as p, signal\n"
    code += "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
    code += f"s = p.Session('now', {str(fakes)!r}, {str(fakes)!r}, '', False, 'card', '', '', '')\n"
    code += "p.run_stages([p.Stage('hangs', 'fakes:hangs', 60)], s, 100)"
    driver = subprocess.Popen([sys.executable, "-c", code])
    rows = importlib.import_module("gpu.session")
    while not rows.read_rows(fakes):
        assert driver.poll() is None
        time.sleep(0.05)
    driver.terminate()
    assert driver.wait(30) == 143
    [hanging] = rows.read_rows(fakes)
    assert not _lives(hanging["values"]["child"])


def test_the_limit_leaves_out_what_does_not_fit(program: Any, fakes: Path) -> None:
    [row] = ended(program, fakes, "works", limit=3)["works"]
    assert row["left_out"] == "3 s were left"


def test_without_deepspeed_its_stages_are_told_as_not_run(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = importlib.import_module("gpu.boxes")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    whole = session(program, Path())
    why = {stage.name: boxes.why_not(stage, whole, 100) for stage in program.STAGES}
    without = {name for name, text in why.items() if text == "DeepSpeed is not installed"}
    assert without == {"resume", "out_of_memory", "warm_optimizer", "engine", "loop", "optimizers"}
    assert not any(text for name, text in why.items() if name not in without)


def test_without_a_card_every_target_is_told_as_not_run(tmp_path: Path) -> None:
    found = run(tmp_path, CUDA_VISIBLE_DEVICES="")
    assert found.status == 0 and {row["stage"] for row in found.rows} == {"targets"}
    assert {row["values"]["not run"] for row in found.rows} == {"no CUDA device"}
    assert found.rows[0]["tiny"] is False


def test_an_unknown_stage_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, str(PROGRAM), "--stages", "train,trian", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "no stage trian" in done.stderr


# ---- what is judged -----------------------------------------------------------------------------------------------------


def test_a_target_is_met_missed_or_not_run(program: Any, tmp_path: Path) -> None:
    about = session(program, tmp_path)
    for side, architecture, speed, mfu in (("ours", "gpt2", 530_000, 0.44), ("plain", "gpt2", 500_000, 0.42)):
        values = {"side": side, "architecture": architecture, "how": "compiled", "tokens_per_second": speed, "mfu": mfu}
        about.write("train", "step", values=values)
    verdicts = importlib.import_module("verdicts").Verdicts("gpu")
    importlib.import_module("gpu.targets").judge(
        verdicts, about, importlib.import_module("gpu.session").read_rows(tmp_path)
    )
    said = {one["name"]: one for one in verdicts.said}
    assert said["gpt2_b_step"]["met"] is True and said["gpt2_b_step_mfu"]["met"] is False
    assert said["gpt2_b_over_plain"]["value"] == pytest.approx(1.06) and said["gpt2_b_over_plain"]["met"] is False
    assert said["crate_b_step_mfu"]["not run"] == "no row step of the stage train"
    assert said["crate_b_step_mfu"]["target"] == ">= 45"


def test_a_wrong_result_is_not_ok(program: Any, tmp_path: Path) -> None:
    """As wrong as a kernel that leaves one value unwritten, or that is off by a hundredth."""
    compare = importlib.import_module("gpu.exactness").compare
    evidence = program.Evidence(session(program, tmp_path), "parity", time.time() + 10)
    truth = torch.randn(100, dtype=torch.float64)
    hole = truth.float()
    hole[3] = torch.nan
    for found in (truth.float(), 1.01 * truth.float(), hole):
        compare(evidence, "found", [found], [truth.float()], [truth], torch.float32)
    rows = importlib.import_module("gpu.session").read_rows(tmp_path)
    assert [row["values"]["ok"] for row in rows] == [True, False, False]


def test_a_compiler_that_loses_gradients_is_found_out(program: Any) -> None:
    """As torch 2.11's did: the loss is right, and a part of the gradient is zero."""
    distance = importlib.import_module("gpu.train").gradient_distance
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig("crate", 1, 2, 16, 8, 33))
    ids, targets = torch.randint(33, (2, 2, 8)).unbind()

    def losing(ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = model(ids, targets)
        return loss.detach() + 0 * loss

    assert distance(model, model, (ids, targets)) == 0
    assert distance(model, losing, (ids, targets)) == pytest.approx(1)
