"""`verify` finds whatever is not what the run made, the report too, and names all of it; what is not made yet is no damage."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.manifest import Manifest, fingerprint_of
from pipeline.artifacts.store import Store
from pipeline.cli import main
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


@dataclasses.dataclass(frozen=True)
class Nothing:
    pass


TOKENS, EVALUATE = (
    Stage(name, 1, "cell", reads, Nothing, lambda settings, inputs, folder, context: {"n": 1})
    for name, reads in (("tokens", ()), ("evaluate", ("tokens",)))
)
INPUTS = {"tokens": (), "m/pretrain": ("tokens",), "m/evaluate": ("tokens", "m/pretrain")}
REPORT = {"report": tuple(INPUTS)}


class Run:
    """A run of three steps and its report, made and noted as the driver does it."""

    def __init__(self, store: Store, of: str = "c") -> None:
        self.store, self.made = store, {}
        for step, reads in (INPUTS | REPORT).items():
            self.make(step, reads)
        plan = {step: self.recipe(step, reads) for step, reads in INPUTS.items()}
        store.write_note(of, "plan.json", json.dumps({"name": of, "steps": plan}).encode())
        for step in self.made:
            note_seals(store, of, {step: self.made[step]})
            store.link(of, step, self.made[step])

    def recipe(self, step: str, reads: tuple[str, ...]) -> dict[str, Any]:
        stage = step.rpartition("/")[2]
        keys = {read: read if step == "report" else read.rpartition("/")[2] for read in reads}
        inputs = {key: self.made[read].fingerprint for read, key in keys.items()}
        found = {"stage": stage, "version": 1, "settings": {"of": step}, "inputs": inputs, "outside": {}}
        return found | {"fingerprint": fingerprint_of(found)}

    def make(self, step: str, reads: tuple[str, ...], loss: float = 2.5) -> Artifact:
        recipe = self.recipe(step, reads)
        making = self.store.making_folder(recipe["fingerprint"])
        (making / "tables").mkdir()
        (making / "tables" / "a.csv").write_text(f"{step} 1")
        (making / "b.txt").write_text("b")
        seals = {key: self.seal_of(fingerprint) for key, fingerprint in recipe["inputs"].items()}
        summary = {"loss": loss, "by_layer": {0: 1.5, 10: 2.5, 9: 3.5}}
        provenance = {"host": "here", "seconds": 1.5}
        self.made[step] = self.store.publish(making, recipe | {"input_seals": seals}, summary, provenance)
        return self.made[step]

    def seal_of(self, fingerprint: str) -> str:
        return next(a.manifest.seal for a in self.made.values() if a.fingerprint == fingerprint)

    def folder(self, step: str) -> Path:
        return self.made[step].folder

    def edit(self, step: str, seals_it_again: bool = False, **changes: Any) -> None:
        """Change fields of a manifest by hand, or as somebody does it who knows how it is sealed."""
        path = self.folder(step) / "manifest.json"
        if seals_it_again:
            manifest = Manifest.from_json(path.read_text(), "")
            path.write_text(dataclasses.replace(manifest, **changes).to_json())
        else:
            path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(Store(tmp_path / "store"))


def damaged(run: Run, capsys: pytest.CaptureFixture[str], of: str = "c") -> dict[str, str]:
    """By step, what verify says is wrong; {} when it finds nothing."""
    capsys.readouterr()
    try:
        verify(run.store, of)
    except ArtifactError as error:
        lines = [line.split(None, 2) for line in capsys.readouterr().out.splitlines() if line.startswith("DAMAGED")]
        found: dict[str, str] = {}
        for _, step, what in lines:
            found[step] = f"{found[step]}; {what}" if step in found else what
        assert all(step in error.what for step in found)
        return found
    return {}


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


STEPS = [*INPUTS, "report"]
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


def test_a_run_without_a_report_has_one_not_made_yet(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    (run.store.run_folder("c") / "report").unlink()
    run.store.delete_note("c", "seals.json")
    assert verify(run.store, "c") == 10
    assert "not made report" in capsys.readouterr().out


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
