"""`verify` finds whatever is not what the run made, the report too, and names all of it; what is not made yet is no damage."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts.manifest import Manifest
from pipeline.artifacts.store import Store
from pipeline.cli import main
from pipeline.errors import ArtifactError
from pipeline.verify import verify
from tests.verify_world import INPUTS, STEPS, Run, damaged


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(Store(tmp_path / "store"))


def test_a_whole_run_is_whole_with_its_report(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(run.store, "c") == 0
    told = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in told] == [["whole", step] for step in (*INPUTS, "report")]


def test_an_artifact_made_anew_and_equal_is_whole(run: Run) -> None:
    """Other times and another host are no other content."""
    shutil.rmtree(run.folder("m/evaluate"))
    remade = run.recipe("m/evaluate", INPUTS["m/evaluate"])
    making = run.store.making_folder("x")
    (making / "tables").mkdir()
    (making / "tables" / "a.csv").write_text("m/evaluate 1")
    (making / "b.txt").write_text("b")
    summary = {"loss": 2.5, "by_layer": {"0": 1.5, "10": 2.5, "9": 3.5}}
    run.store.publish(making, remade, summary, {"host": "elsewhere", "seconds": 9.0})
    assert verify(run.store, "c") == 0


def circle(run: Run, step: str) -> None:
    """Make the run's link to a step lead to itself."""
    link = run.store.run_folder("c") / step
    link.unlink()
    link.symlink_to(link.name)


CHANGES: dict[str, tuple[Callable[[Run, str], object], str]] = {
    "a byte": (lambda run, step: (run.folder(step) / "tables/a.csv").write_text(f"{step} 2"), "a.csv is damaged"),
    "a cut": (lambda run, step: (run.folder(step) / "b.txt").write_text(""), "b.txt is damaged"),
    "a file gone": (lambda run, step: (run.folder(step) / "b.txt").unlink(), "b.txt is damaged"),
    "a file more": (
        lambda run, step: (run.folder(step) / "tables/c.csv").write_text("c"),
        "tables/c.csv is no file of it",
    ),
    "a manifest more": (
        lambda run, step: (run.folder(step) / "tables/manifest.json").write_text("{}"),
        "no file of it",
    ),
    "the summary": (lambda run, step: run.edit(step, summary={"loss": 1.5}), "changed after it was sealed"),
    "the provenance": (lambda run, step: run.edit(step, provenance={"host": "x"}), "changed after it was sealed"),
    "the inputs' seals": (lambda run, step: run.edit(step, input_seals={"a": "b"}), "changed after it was sealed"),
    "the settings, sealed again": (
        lambda run, step: run.edit(step, True, settings={"of": "y"}),
        "settings are not those",
    ),
    "the summary, sealed again": (lambda run, step: run.edit(step, True, summary={"loss": 1.5}), "another seal"),
    "a folder for a file": (
        lambda run, step: ((run.folder(step) / "b.txt").unlink(), (run.folder(step) / "b.txt").mkdir()),
        "b.txt is damaged",
    ),
    "a folder for a manifest": (
        lambda run, step: (
            (run.folder(step) / "manifest.json").unlink(),
            (run.folder(step) / "manifest.json").mkdir(),
        ),
        "Is a directory",
    ),
    "a file for a stage's folder": (
        lambda run, step: (
            shutil.rmtree(run.folder(step).parent),
            run.folder(step).parent.write_text(""),
        ),
        "Not a directory",
    ),
    "no manifest": (lambda run, step: (run.folder(step) / "manifest.json").write_text("{"), "not a manifest"),
    "bytes for a manifest": (
        lambda run, step: (run.folder(step) / "manifest.json").write_bytes(b"\xff"),
        "not a manifest",
    ),
    "gone": (lambda run, step: shutil.rmtree(run.folder(step)), "was made and is gone"),
    "another's place": (
        lambda run, step: shutil.copytree(
            run.folder("tokens" if step != "tokens" else "report"), run.folder(step), dirs_exist_ok=True
        ),
        "holds the manifest of",
    ),
    "a link less": (lambda run, step: (run.store.run_folder("c") / step).unlink(), "does not lead to it"),
    "a link in a circle": (circle, "does not lead to it"),
    "a link elsewhere": (
        lambda run, step: run.store.link("c", step, run.made["tokens" if step != "tokens" else "report"]),
        "does not lead to it",
    ),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("change", CHANGES)
def test_whatever_is_changed_is_found(run: Run, capsys: pytest.CaptureFixture[str], step: str, change: str) -> None:
    make, said = CHANGES[change]
    make(run, step)
    found = damaged(run, capsys)
    assert said in found[step]
    assert set(found) - {step} == set()


def test_all_that_is_damaged_is_named(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for step in ("tokens", "report"):
        for name in ("tables/a.csv", "b.txt"):
            (run.folder(step) / name).write_text("other")
    run.edit("m/evaluate", summary={})
    found = damaged(run, capsys)
    assert set(found) == {"tokens", "m/evaluate", "report"}
    assert "a.csv" in found["report"] and "b.txt" in found["report"]
    assert main(["verify", "--run", "c", "--store", str(run.store.root)]) == ArtifactError.exit_code


def test_what_was_made_of_an_artifact_knows_its_seal_without_the_run_s_list(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run.edit("m/pretrain", True, summary={"loss": 1.5})
    run.store.delete_note("c", "seals.json")
    assert "is not what m/evaluate, report were made of" in damaged(run, capsys)["m/pretrain"]


def test_a_file_changed_together_with_its_manifest_is_found(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline.artifacts.manifest import list_files

    folder = run.folder("m/evaluate")
    (folder / "tables" / "a.csv").write_text("m/evaluate 9")
    run.edit("m/evaluate", True, files=list_files(folder))
    assert "another seal" in damaged(run, capsys)["m/evaluate"]


def test_what_is_not_made_yet_is_told_and_is_no_damage(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    plan = json.loads(run.store.read_note("c", "plan.json") or b"")
    plan["steps"]["n/pretrain"] = run.recipe("n/pretrain", ("tokens",))
    run.store.write_note("c", "plan.json", json.dumps(plan).encode())
    assert verify(run.store, "c") == 10
    assert "not made n/pretrain" in capsys.readouterr().out


def test_a_report_of_other_artifacts_is_stale(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """The plan is another since: one step is new and made, and the report does not have it."""
    plan = json.loads(run.store.read_note("c", "plan.json") or b"")
    plan["steps"]["n/pretrain"] = run.recipe("n/pretrain", ("tokens",))
    del plan["steps"]["m/evaluate"]
    run.store.write_note("c", "plan.json", json.dumps(plan).encode())
    run.store.link("c", "n/pretrain", run.make("n/pretrain", ("tokens",)))
    run.store.unlink_others("c", {step: recipe["fingerprint"] for step, recipe in plan["steps"].items()})
    assert verify(run.store, "c") == 10
    assert "stale    report  it was made before, of other artifacts than the run's: m/evaluate, n/pretrain" in (
        capsys.readouterr().out
    )


def test_what_is_linked_and_no_step_of_the_run_is_found(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Another model's artifact put among this run's; a step taken out of the plan, which would be looked at no more."""
    run.store.link("c", "n/pretrain", run.made["m/pretrain"])
    assert set(damaged(run, capsys)) == {"n/pretrain"}
    plan = json.loads(run.store.read_note("c", "plan.json") or b"")
    del plan["steps"]["m/evaluate"]
    run.store.write_note("c", "plan.json", json.dumps(plan).encode())
    assert set(damaged(run, capsys)) == {"m/evaluate", "n/pretrain"}


def test_a_run_without_a_report_has_one_not_made_yet(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    (run.store.run_folder("c") / "report").unlink()
    run.store.delete_note("c", "seals.json")
    assert verify(run.store, "c") == 10
    assert "not made report" in capsys.readouterr().out


FIELDS = [field.name for field in dataclasses.fields(Manifest) if field.name not in ("settings", "is_sealed")]


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", [None, [1], {"a": [1]}], ids=str)
def test_a_manifest_s_field_of_another_type_stops_no_check(
    run: Run, capsys: pytest.CaptureFixture[str], field: str, value: Any
) -> None:
    """Without its own seal, as an old one is."""
    path = run.folder("m/pretrain") / "manifest.json"
    fields = json.loads(path.read_text()) | {field: value}
    del fields["sha256"]
    path.write_text(json.dumps(fields))
    (run.folder("report") / "b.txt").write_text("c")
    found = damaged(run, capsys)
    assert "m/pretrain" in found or (field, value) == ("provenance", {"a": [1]})  # which may be of any content
    assert "b.txt is damaged" in found["report"]
