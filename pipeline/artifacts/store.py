"""The pantry's shelves: `store/<stage>/<fingerprint>/{manifest.json, data}` and browsable names under `store/runs/`.

Publishing is one rename, after the manifest: a crash leaves nothing half-made to be trusted. What is unfinished lives in
`store/.scratch/<fingerprint>` and is found there again by the next attempt.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.artifacts import manifest as manifests
from pipeline.artifacts.manifest import Manifest
from pipeline.errors import ArtifactError, ResourceError


@dataclass(frozen=True)
class Artifact:
    """A published folder. Readers take its files through `file`, which knows what should be there."""

    folder: Path
    manifest: Manifest

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
        if not path.is_file() or path.stat().st_size != expected.bytes:
            raise _torn(path, f"has not the {expected.bytes} bytes that its manifest says")
        return path

    def names(self, prefix: str = "", suffix: str = "") -> list[str]:
        names = [entry.name for entry in self.manifest.files]
        return [name for name in names if name.startswith(prefix) and name.endswith(suffix)]

    def verify(self) -> None:
        """Hash every file. Raises ArtifactError at the first that differs from the manifest."""
        for entry in self.manifest.files:
            path = self.file(entry.name)
            if manifests.sha256_of(path) != entry.sha256:
                raise _torn(path, "does not have the sha256 that its manifest says")


def _torn(path: Path, why: str) -> ArtifactError:
    return ArtifactError(f"{path} is damaged: it {why}", fix=f"Delete {path.parent} and run again: it is made anew.")


@dataclass(frozen=True)
class Store:
    """A folder that holds artifacts. Holds no open files, so it can be sent to other processes."""

    root: Path

    def find(self, stage: str, fingerprint: str) -> Artifact | None:
        """The artifact, or None when it was never published."""
        folder = self.root / stage / fingerprint
        path = folder / manifests.FILE_NAME
        if not path.is_file():
            return None
        return Artifact(folder, Manifest.from_json(path.read_text("utf-8"), str(path)))

    def get(self, stage: str, fingerprint: str) -> Artifact:
        artifact = self.find(stage, fingerprint)
        if artifact is None:
            raise ArtifactError(f"no {stage} artifact {fingerprint} in {self.root}", fix="Run the sweep that makes it.")
        return artifact

    def scratch_folder(self, fingerprint: str) -> Path:
        """Where a step keeps what an interrupted attempt can go on from. Removed when the artifact is published."""
        folder = self.root / ".scratch" / fingerprint
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def making_folder(self, fingerprint: str) -> Path:
        """A new empty folder for one attempt, on the store's own file system so that publishing is a rename."""
        folder = self.root / ".making" / f"{fingerprint}-{uuid.uuid4().hex[:8]}"
        folder.mkdir(parents=True)
        return folder

    @contextlib.contextmanager
    def claim(self, fingerprint: str) -> Iterator[None]:
        """Hold the right to make this artifact. Another maker, in whatever sweep, is waited for; a dead one holds nothing."""
        path = self.root / ".locks" / fingerprint
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(1)
            yield

    def run_folder(self, run_name: str) -> Path:
        return self.root / "runs" / run_name

    def publish(self, making: Path, recipe: Mapping[str, Any], summary: dict[str, Any], provenance: Any) -> Artifact:
        """Seal `making`: write the manifest last, rename the folder into place, drop the scratch folder.

        `recipe` has the manifest's stage, version, fingerprint, settings and inputs. If somebody else published the same
        fingerprint meanwhile, theirs stays: equal recipe, equal artifact.
        """
        try:
            files = manifests.list_files(making)
            sealed = Manifest(**recipe, files=files, summary=summary, provenance=provenance)
            _write_durably(making / manifests.FILE_NAME, sealed.to_json())
        except OSError as error:
            raise disk_error(error, making) from error
        final = self.root / sealed.stage / sealed.fingerprint
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            making.rename(final)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise disk_error(error, final) from error
            shutil.rmtree(making)
        shutil.rmtree(self.root / ".scratch" / sealed.fingerprint, ignore_errors=True)
        return self.get(sealed.stage, sealed.fingerprint)

    def link(self, run_name: str, name: str, artifact: Artifact) -> Path:
        """Make `runs/<run>/<name>` a relative link to the artifact, for people who browse."""
        link = self.run_folder(run_name) / name
        link.parent.mkdir(parents=True, exist_ok=True)
        new = link.with_name(f".{link.name}-{uuid.uuid4().hex[:8]}")
        new.symlink_to(os.path.relpath(artifact.folder, link.parent), target_is_directory=True)
        new.replace(link)
        return link


def _write_durably(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def disk_error(error: OSError, path: Path) -> ResourceError:
    """An OSError while writing, told with the place and, when the disk is full, with what is free there."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(
            f"no space left on the disk of {path}", fix="Free some space, or set runtime.store elsewhere."
        )
    return ResourceError(f"cannot write {path}: {error.strerror or error}", fix="Check the folder's owner and rights.")
