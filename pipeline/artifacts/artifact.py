"""One published folder: where its files are, that they are what its manifest says, and how they come from an object storage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.artifacts import manifest as manifests
from pipeline.artifacts.manifest import FileEntry, Manifest
from pipeline.artifacts.storage import Storage
from pipeline.errors import ArtifactError


@dataclass(frozen=True)
class Artifact:
    """A published folder. Readers take its files through `file`, which knows what should be there."""

    folder: Path
    manifest: Manifest
    storage: Storage | None = None  # where files come from that are not in the folder yet

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    @property
    def summary(self) -> dict[str, Any]:
        return self.manifest.summary

    def file(self, name: str) -> Path:
        """The path of one of its files, after a look at its size. Raises ArtifactError when it is missing or torn."""
        expected = {entry.name: entry for entry in self.manifest.files}.get(name)
        path = self.folder / name
        if expected is None:
            raise ArtifactError(f"{self.folder} holds no file {name!r}", fix="It has: " + ", ".join(self.names()))
        if path.is_file() and path.stat().st_size == expected.bytes:
            return path
        if self.storage is None:
            raise self._torn(name, f"has not the {expected.bytes} bytes that its manifest says")
        return self._download(expected, path)

    def _download(self, expected: FileEntry, path: Path) -> Path:
        """Have a file of the storage here, in the place of a damaged copy if there is one."""
        assert self.storage
        if not self.storage.holds(f"{self.below}/{expected.name}"):
            raise self._torn(expected.name, "is gone")
        self.storage.download(f"{self.below}/{expected.name}", path)
        if manifests.sha256_of(path) != expected.sha256:
            path.unlink()
            raise self._torn(expected.name, "does not have the sha256 that its manifest says")
        return path

    @property
    def below(self) -> str:
        """Its folder, from the store's root."""
        return f"{self.manifest.stage}/{self.fingerprint}"

    def names(self, prefix: str = "", suffix: str = "") -> list[str]:
        names = [entry.name for entry in self.manifest.files]
        return [name for name in names if name.startswith(prefix) and name.endswith(suffix)]

    def verify(self) -> None:
        """Hash every file. Raises ArtifactError at the first that differs from the manifest.

        Of a storage's artifact that is the copy here, which is fetched again where it differs.
        """
        for entry in self.manifest.files:
            self.verify_file(entry)

    def verify_file(self, entry: FileEntry) -> None:
        path = self.file(entry.name)
        if manifests.sha256_of(path) != entry.sha256:
            if self.storage is None:
                raise self._torn(entry.name, "does not have the sha256 that its manifest says")
            self._download(entry, path)

    def _torn(self, name: str, why: str) -> ArtifactError:
        place = f"{self.storage.url}/{self.below}" if self.storage else str(self.folder)
        return ArtifactError(
            f"{place}/{name} is damaged: it {why}", fix=f"Delete {place} and run again: it is made anew."
        )
