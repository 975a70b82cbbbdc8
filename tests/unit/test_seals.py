"""The run's list of what its artifacts were, the seals of manifests and of their inputs, and the sweep that goes by them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts.store import Store
from pipeline.config import Config, RuntimeConfig
from pipeline.config_load import LoadedConfig
from pipeline.dag import Step, plan, report_step
from pipeline.errors import ArtifactError
from pipeline.execute import run_step
from pipeline.seals import check_made_of, check_seal, note_seals, read_seals
from pipeline.stage import Context, Stage
from pipeline.sweep import Sweep
from pipeline.tracking import TrackerSpec
from pipeline.verify import verify
from tests.verify_world import INPUTS, STEPS, Run, damaged


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(Store(tmp_path / "store"))


@dataclasses.dataclass(frozen=True)
class Nothing:
    pass


TOKENS, EVALUATE = (
    Stage(name, 1, "cell", reads, Nothing, lambda settings, inputs, folder, context: {"n": 1})
    for name, reads in (("tokens", ()), ("evaluate", ("tokens",)))
)


def test_an_emptied_list_of_seals_is_told(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """What only that list can find is not found then, so nobody may think that it was looked at."""
    run.store.write_note("c", "seals.json", b"{}")
    assert verify(run.store, "c") == 0
    assert capsys.readouterr().out.count("the run's seals.json does not name it") == len(STEPS)


@pytest.mark.parametrize("field", ["fingerprint", "stage"])
def test_a_list_that_names_another_artifact_of_a_step_is_told(
    run: Run, capsys: pytest.CaptureFixture[str], field: str
) -> None:
    """Changed by hand; or of an earlier configuration, when the driver died before it took the step: its link is not there."""
    seals = json.loads(run.store.read_note("c", "seals.json") or b"")
    seals["m/evaluate"][field] = "0" * 32
    run.store.write_note("c", "seals.json", json.dumps(seals).encode())
    (run.store.run_folder("c") / "m/evaluate").unlink()
    assert verify(run.store, "c") == 0
    told = [line for line in capsys.readouterr().out.splitlines() if "does not name it" in line]
    assert len(told) == 1 and "m/evaluate" in told[0]


def test_a_store_from_before_the_seals_is_checked_as_far_as_it_goes(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run.store.delete_note("c", "seals.json")
    for step in STEPS:
        path = run.folder(step) / "manifest.json"
        fields = json.loads(path.read_text())
        path.write_text(json.dumps({key: fields[key] for key in fields if key not in ("sha256", "input_seals")}))
    assert verify(run.store, "c") == 0
    assert capsys.readouterr().out.count("no seal") == len(STEPS)
    (run.folder("report") / "b.txt").write_text("c")
    assert set(damaged(run, capsys)) == {"report"}
    run.edit("m/pretrain", settings={"of": "z"})
    assert set(damaged(run, capsys)) == {"report", "m/pretrain"}


def test_a_changed_manifest_is_told_wherever_it_is_read(run: Run) -> None:
    run.edit("m/evaluate", summary={"loss": 1.5})
    with pytest.raises(ArtifactError, match="changed after it was sealed"):
        run.store.get("evaluate", run.made["m/evaluate"].fingerprint)
    with pytest.raises(ArtifactError, match="changed after it was sealed"):
        run.store.all_of("evaluate")


def test_a_sweep_goes_not_on_beside_an_input_that_came_out_otherwise(run: Run) -> None:
    """Deleted and made anew by other workers, say: of a run's own list it is as good as the old one."""
    check_made_of(run.made, run.store.place)
    shutil.rmtree(run.folder("m/pretrain"))
    run.make("m/pretrain", INPUTS["m/pretrain"], loss=1.5)
    with pytest.raises(
        ArtifactError, match=r"m/evaluate was made of another m/pretrain .*; report was made of"
    ) as told:
        check_made_of(run.made, run.store.place)
    assert str(run.folder("m/evaluate")) in told.value.fix and str(run.folder("report")) in told.value.fix
    check_made_of({name: run.made[name] for name in ("tokens", "m/pretrain")}, run.store.place)


def test_a_report_that_is_there_already_is_checked(tmp_path: Path) -> None:
    """As it is when a deleted step came out equal, or the same step failed once more."""
    store, loaded = Store(tmp_path), LoadedConfig(Config(), {}, {})
    sweep = Sweep(loaded, None)
    sweep.store, sweep.plan = store, plan(loaded)
    step = report_step(sweep.plan, {}, {})
    making = store.making_folder(step.fingerprint)
    (making / "index.html").write_text("a")
    made = store.publish(making, step.recipe, {}, {})
    context = Context(store, RuntimeConfig(), "sweep", "", "", TrackerSpec())
    assert sweep.make_report({}, {}, context).artifact == made
    (made.folder / "index.html").write_text("b")
    with pytest.raises(ArtifactError, match=r"report: .*index.html is damaged"):
        sweep.make_report({}, {}, context)


STEP_DAMAGES: list[Any] = [3, [], {}, {"stage": "tokens"}, {"stage": 1, "fingerprint": 2, "seal": 3}]


@pytest.mark.parametrize("note", ["seals.json", "plan.json"])
@pytest.mark.parametrize("step", ["tokens", "report"])
@pytest.mark.parametrize("damage", STEP_DAMAGES, ids=str)
def test_a_step_of_another_type_in_a_note_is_one_clear_error(run: Run, note: str, step: str, damage: Any) -> None:
    whole = json.loads(run.store.read_note("c", note) or b"")
    changed = {**whole, "steps": whole["steps"] | {step: damage}} if note == "plan.json" else whole | {step: damage}
    run.store.write_note("c", note, json.dumps(changed).encode())
    with pytest.raises(ArtifactError, match=rf"{note} is damaged \([^\n]*{step}"):
        verify(run.store, "c")


@pytest.mark.parametrize("note", ["seals.json", "plan.json"])
@pytest.mark.parametrize(
    "damage", [b'{"tokens": 3}', b'{"steps": []}', b'{"steps": 3}', b"null", b"{", b"[1]", b"\xff"]
)
def test_a_damaged_note_of_the_run_is_one_clear_error(run: Run, note: str, damage: bytes) -> None:
    run.store.write_note("c", note, damage)
    with pytest.raises(ArtifactError, match=rf"{note} is damaged"):
        verify(run.store, "c")


def test_a_step_keeps_the_seals_of_what_it_read(tmp_path: Path) -> None:
    """The DAG's own door, and what the sweep asks before it builds on an artifact."""
    store = Store(tmp_path)
    first = Step("tokens", TOKENS, "", Nothing(), {}, "1" * 32, {})
    second = Step("m/evaluate", EVALUATE, "m", Nothing(), {"tokens": "tokens"}, "2" * 32, {"tokens": "1" * 32})
    context = Context(store, RuntimeConfig(), "c", "", "", TrackerSpec())
    read = run_step(first, context)
    made = run_step(second, context, read)
    assert read.artifact and made.artifact
    assert made.artifact.manifest.input_seals == {"tokens": read.artifact.manifest.seal}
    note_seals(store, "c", {"tokens": read.artifact})
    check_seal(read_seals(store, "c"), "tokens", read.artifact, store.place)
    sealed_again = dataclasses.replace(read.artifact.manifest, summary={"n": 2})
    with pytest.raises(ArtifactError, match="another seal"):
        check_seal(read_seals(store, "c"), "tokens", dataclasses.replace(read.artifact, manifest=sealed_again), "")
