"""The manifest: one JSON file, written last, that makes a folder an artifact.

It says what the artifact is (stage, version, settings, inputs, outside: its recipe), what lies in it (every file with bytes and
sha256), a few small facts about it (`summary`), and where it came from (`provenance`: git, versions, host, times), which
never enters identity.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import ArtifactError

FILE_NAME = "manifest.json"


@dataclass(frozen=True)
class FileEntry:
    name: str  # relative to the artifact's folder, with forward slashes
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
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

    @property
    def total_bytes(self) -> int:
        return sum(entry.bytes for entry in self.files)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str) -> Manifest:
        """Parse a manifest; `source` names the file in the error."""
        try:
            fields = json.loads(text)
            files = tuple(FileEntry(**entry) for entry in fields.pop("files"))
            return cls(files=files, **fields)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ArtifactError(
                f"{source} is not a manifest ({type(error).__name__}: {error})",
                fix="Delete its folder and run again: the artifact will be made anew.",
            ) from error


def fingerprint_of(recipe: Mapping[str, Any]) -> str:
    """The first 32 hex digits of the sha256 of what decides an artifact's bits: stage, version, settings, inputs, outside."""
    names = ("stage", "version", "settings", "inputs", *(["outside"] if recipe.get("outside") else []))
    return hashlib.sha256(json.dumps({name: recipe[name] for name in names}, sort_keys=True).encode()).hexdigest()[:32]


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_files(folder: Path) -> tuple[FileEntry, ...]:
    """Every file below `folder` (without the manifest itself), sorted by name."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != FILE_NAME)
    return tuple(FileEntry(p.relative_to(folder).as_posix(), p.stat().st_size, sha256_of(p)) for p in paths)
