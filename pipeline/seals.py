"""What a run's artifacts were when it made or took them: `runs/<run>/seals.json`, kept by the driver, read by `verify`.

A manifest tells whether its files were changed, and seals itself; this list tells of a manifest that was sealed again, and of an
artifact that is gone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from pydantic import TypeAdapter

from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.manifest import why
from pipeline.artifacts.store import Store
from pipeline.errors import ArtifactError

NOTE = "seals.json"


@dataclass(frozen=True)
class Seal:
    """Of one step's artifact: where it lies in the store, and the digest of its content (`Manifest.seal`)."""

    stage: str
    fingerprint: str
    seal: str


def read_seals(store: Store, run: str) -> dict[str, Seal]:
    """By step; none for a run that is older than the list. Raises ArtifactError when the list is damaged."""
    data = store.read_note(run, NOTE)
    try:
        return TypeAdapter(dict[str, Seal]).validate_json(data or b"{}")
    except ValueError as error:
        raise ArtifactError(
            f"{store.place}/runs/{run}/{NOTE} is damaged ({why(error)})",
            fix="Delete it and run the sweep again, which writes down what is there then.",
        ) from error


def note_seals(store: Store, run: str, artifacts: Mapping[str, Artifact]) -> None:
    """Write down what the artifacts of some steps are."""
    seals = read_seals(store, run)
    new = {
        step: Seal(artifact.manifest.stage, artifact.fingerprint, artifact.manifest.seal)
        for step, artifact in artifacts.items()
    }
    if seals | new != seals:
        noted = {name: asdict(seal) for name, seal in sorted((seals | new).items())}
        store.write_note(run, NOTE, json.dumps(noted, indent=1).encode())


def check_seal(seals: Mapping[str, Seal], step: str, artifact: Artifact, place: str) -> None:
    """Raise ArtifactError when an artifact is not what it was when it was written down; `place` is the store's."""
    noted = seals.get(step)
    if noted and noted.fingerprint == artifact.fingerprint and noted.seal != artifact.manifest.seal:
        raise ArtifactError(
            f"{place}/{artifact.below} is not what it was when this run made or took it: its manifest has another seal",
            fix=f"Bring it back, or delete it and run again. If it was made anew on purpose: delete the run's {NOTE} instead.",
        )


def made_of_another(artifacts: Mapping[str, Artifact]) -> set[tuple[str, str]]:
    """(step, fingerprint of an input) wherever a step read another content of that input than is there now.

    This happens when an input was changed, or was deleted and made again with other bits: on another machine, say.
    """
    seals = {artifact.fingerprint: artifact.manifest.seal for artifact in artifacts.values()}
    return {
        (step, fingerprint)
        for step, artifact in artifacts.items()
        for name, fingerprint in artifact.manifest.inputs.items()
        if fingerprint in seals and artifact.manifest.input_seals.get(name, seals[fingerprint]) != seals[fingerprint]
    }


def check_made_of(artifacts: Mapping[str, Artifact], place: str) -> None:
    """Raise ArtifactError when some were made of another content of their inputs; `place` is the store's."""
    steps = {artifact.fingerprint: step for step, artifact in artifacts.items()}
    stale = {step: steps[fingerprint] for step, fingerprint in sorted(made_of_another(artifacts))}
    if stale:
        folders = dict.fromkeys(f"{place}/{artifacts[step].below}" for step in stale)
        raise ArtifactError(
            "; ".join(f"{step} was made of another {read} than there is now" for step, read in stale.items()),
            fix=f"Bring the input back, or delete what was made of it and run again: {', '.join(folders)}",
        )
