"""The manifest: one JSON file, written last, that makes a folder an artifact.

It says what the artifact is (stage, version, settings, inputs, outside: its recipe), what lies in it (every file with bytes and
sha256), a few small facts about it (`summary`), and where it came from (`provenance`: git, versions, host, times), which
never enters identity.

It seals itself: `sha256` is of all else that stands in it, so that a change by hand is told wherever it is read. Its `seal` is
of the content alone (recipe, files, summary): an artifact that is made anew and comes out equal has the same. What is made of an
artifact keeps its seal (`input_seals`), which finds a manifest that was changed and sealed again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from pipeline.errors import ArtifactError

FILE_NAME = "manifest.json"


@dataclass(frozen=True)
class FileEntry:
    name: str  # relative to the artifact's folder, with forward slashes
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    __pydantic_config__ = ConfigDict(extra="forbid")

    stage: str
    version: int
    fingerprint: str
    settings: Any
    inputs: dict[str, str]  # stage name -> fingerprint
    files: tuple[FileEntry, ...]
    summary: dict[str, Any]
    provenance: dict[str, Any] = field(default_factory=dict)
    outside: dict[str, str] = field(
        default_factory=dict
    )  # of the recipe, too: what was read beside inputs -> its digest
    input_seals: dict[str, str] = field(default_factory=dict)  # as `inputs`: the seals of what was really read
    is_sealed: bool = True  # False: it was written before manifests sealed themselves

    @property
    def total_bytes(self) -> int:
        return sum(entry.bytes for entry in self.files)

    @property
    def seal(self) -> str:
        """The sha256 of recipe, files and summary."""
        fields = asdict(self)
        return _digest(
            {name: fields[name] for name in fields if name not in ("provenance", "input_seals", "is_sealed")}
        )

    def to_json(self) -> str:
        fields = asdict(self)
        del fields["is_sealed"]
        sealed = fields | {"sha256": _digest(fields)}
        return json.dumps(sealed, indent=1, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str) -> Manifest:
        """Parse a manifest; `source` names its folder in the error. Raises ArtifactError for one that was changed."""
        fix = "Delete its folder and run again: the artifact will be made anew."
        try:
            fields = json.loads(text)
            sha256 = fields.pop("sha256", "")
            expected = _digest(fields)
            found = TypeAdapter(cls).validate_python(fields | {"is_sealed": bool(sha256)})
        except (ValueError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{source} is not a manifest ({why(error)})", fix=fix) from error
        if sha256 and sha256 != expected:
            raise ArtifactError(f"{source}: its manifest was changed after it was sealed", fix=fix)
        return found


def fingerprint_of(recipe: Mapping[str, Any]) -> str:
    """The first 32 hex digits of the sha256 of what decides an artifact's bits: stage, version, settings, inputs, outside."""
    names = ("stage", "version", "settings", "inputs", *(["outside"] if recipe.get("outside") else []))
    return _digest({name: recipe[name] for name in names})[:32]


def why(error: Exception) -> str:
    """What is wrong with a JSON file that cannot be used, in one line: its first fault, and where in it that is."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
    return f"{type(error).__name__}: {error}"


def _digest(value: Any) -> str:
    """The sha256 of a value as it will be read back from JSON, whose keys are texts."""
    as_read = json.loads(json.dumps(value))
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_files(folder: Path) -> tuple[FileEntry, ...]:
    """Every file below `folder` (without the manifest itself), sorted by name."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / FILE_NAME)
    return tuple(FileEntry(p.relative_to(folder).as_posix(), p.stat().st_size, sha256_of(p)) for p in paths)
