"""A run of three steps and its report, in a store: what `verify` and the list of seals are tried on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.manifest import Manifest, fingerprint_of
from pipeline.artifacts.store import Store
from pipeline.errors import ArtifactError
from pipeline.seals import note_seals
from pipeline.verify import verify

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


STEPS = [*INPUTS, "report"]


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
