"""The pantry's shelves: `store/<stage>/<fingerprint>/{manifest.json, data}` and browsable names under `store/runs/`.

Publishing is one rename, after the manifest: a crash leaves nothing half-made to be trusted. What is unfinished lives in
`store/.scratch/<fingerprint>` and is found there again by the next attempt.

A store on an object storage works the same: its manifest object, written last, is the commit; a local folder caches what was
read and holds what is being made, and `keep` copies unfinished work out of it, so that a lost node loses none.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.artifacts import manifest as manifests
from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.manifest import FILE_NAME, Manifest
from pipeline.artifacts.storage import Storage
from pipeline.errors import ArtifactError, ResourceError


@dataclass(frozen=True)
class Store:
    """Artifacts in a folder, or on an object storage with `root` as its local cache. Plain data: it travels to workers."""

    root: Path
    storage: Storage | None = None

    @classmethod
    def open(cls, place: str, cache: Path) -> Store:
        """The store at a folder or `scheme://` address; `cache` is the folder under which remote stores are cached here."""
        if "://" not in place:
            return cls(Path(place))
        return cls(cache / hashlib.sha256(place.encode()).hexdigest()[:16], Storage(place.rstrip("/")))

    @property
    def place(self) -> str:
        return self.storage.url if self.storage else str(self.root)

    def find(self, stage: str, fingerprint: str) -> Artifact | None:
        """The artifact, or None when it was never published. Raises ArtifactError when its manifest is damaged."""
        folder, place = self.root / stage / fingerprint, f"{self.place}/{stage}/{fingerprint}"
        text = self._read(f"{stage}/{fingerprint}/{FILE_NAME}")
        if text is None:
            return None
        return Artifact(folder, Manifest.from_json(text.decode("utf-8", "replace"), place), self.storage)

    def get(self, stage: str, fingerprint: str) -> Artifact:
        artifact = self.find(stage, fingerprint)
        if artifact is None:
            raise ArtifactError(
                f"no {stage} artifact {fingerprint} in {self.place}", fix="Run the sweep that makes it."
            )
        return artifact

    def all_of(self, stage: str) -> list[Artifact]:
        """Every published artifact of a stage."""
        if self.storage:
            manifest_names = [name for name in self.storage.names(f"{stage}/") if name.count("/") == 2]
            fingerprints = [name.split("/")[1] for name in manifest_names if name.endswith(FILE_NAME)]
        else:
            fingerprints = sorted(path.name for path in (self.root / stage).glob("*"))
        return [artifact for name in fingerprints if (artifact := self.find(stage, name))]

    def scratch_folder(self, fingerprint: str) -> Path:
        """Where a step keeps what an interrupted attempt can go on from. Removed when the artifact is published."""
        folder = self.root / ".scratch" / fingerprint
        if self.storage and not folder.exists():
            self._download_folder(f".scratch/{fingerprint}/", folder, fingerprint)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def keep(self, fingerprint: str, path: Path) -> None:
        """Copy a finished file or folder of the scratch folder to the storage; in a folder store it is there already."""
        if self.storage:
            folder = self.scratch_folder(fingerprint)
            paths = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
            self.storage.upload(folder, [p.relative_to(folder).as_posix() for p in paths], f".scratch/{fingerprint}")

    def bring(self, fingerprint: str, path: Path) -> None:
        """Have a file or folder here that another node kept; in a folder store it is here already.

        Raises ArtifactError when the storage holds none.
        """
        if self.storage and not path.exists():
            name = f".scratch/{fingerprint}/{path.relative_to(self.root / '.scratch' / fingerprint).as_posix()}"
            if self._download_folder(name + "/", path, fingerprint):
                return
            if not self.storage.holds(name):
                raise ArtifactError(f"{self.place}/{name} was never kept", fix="Run again: it is made anew.")
            self.storage.download(name, path)

    def _download_folder(self, prefix: str, folder: Path, fingerprint: str) -> bool:
        """Have what lies below `prefix` as `folder`, which appears whole or not at all. False: there is nothing."""
        assert self.storage
        names = self.storage.names(prefix)
        if names:
            making = self.making_folder(fingerprint)
            for name in names:
                self.storage.download(name, making / name.removeprefix(prefix))
            _rename(making, folder)
        return bool(names)

    def making_folder(self, fingerprint: str) -> Path:
        """A new empty folder for one attempt, on the store's own file system so that publishing is a rename."""
        folder = self.root / ".making" / f"{fingerprint}-{uuid.uuid4().hex[:8]}"
        folder.mkdir(parents=True)
        return folder

    @contextlib.contextmanager
    def claim(self, fingerprint: str) -> Iterator[None]:
        """Hold the right to make this artifact on this file system; another maker is waited for, a dead one holds nothing.

        Two nodes that share only an object storage may both make it: equal recipe, equal artifact, and one of them stays.
        """
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

    def publish(self, making: Path, recipe: Mapping[str, Any], summary: dict[str, Any], provenance: Any) -> Artifact:
        """Seal `making`: write the manifest last, rename the folder into place, drop the scratch folder.

        `recipe` has the manifest's stage, version, fingerprint, settings, inputs and outside, and the inputs' seals. If somebody
        else published the same fingerprint meanwhile, theirs stays.
        """
        try:
            files = manifests.list_files(making)
            sealed = Manifest(**recipe, files=files, summary=summary, provenance=provenance)
            _write_durably(making / FILE_NAME, sealed.to_json())
        except OSError as error:
            raise disk_error(error, making) from error
        below = f"{sealed.stage}/{sealed.fingerprint}"
        if self.storage and self.find(sealed.stage, sealed.fingerprint):
            shutil.rmtree(making)
        else:
            if self.storage:
                self.storage.upload(making, [entry.name for entry in files], below)
                self.storage.upload(making, [FILE_NAME], below)
            _rename(making, self.root / below)
        if self.storage:
            self.storage.delete(self.storage.names(f".scratch/{sealed.fingerprint}/"))
        shutil.rmtree(self.root / ".scratch" / sealed.fingerprint, ignore_errors=True)
        return self.get(sealed.stage, sealed.fingerprint)

    def run_folder(self, run_name: str) -> Path:
        return self.root / "runs" / run_name

    def write_note(self, run_name: str, name: str, data: bytes) -> None:
        """A small file of a run that other processes and terminals read: progress, plan, the wish to stop."""
        if self.storage:
            self.storage.write(f"runs/{run_name}/{name}", data)
            return
        path = self.run_folder(run_name) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
        temporary.write_bytes(data)
        temporary.replace(path)

    def read_note(self, run_name: str, name: str) -> bytes | None:
        return self._read(f"runs/{run_name}/{name}")

    def notes(self, run_name: str, below: str) -> dict[str, bytes]:
        """All notes in one folder of a run, by name."""
        if self.storage:
            names = [name.rpartition("/")[2] for name in self.storage.names(f"runs/{run_name}/{below}/")]
        else:
            names = [path.name for path in sorted((self.run_folder(run_name) / below).glob("[!.]*")) if path.is_file()]
        found = {name: self.read_note(run_name, f"{below}/{name}") for name in names}
        return {name: data for name, data in found.items() if data is not None}

    def delete_note(self, run_name: str, name: str) -> None:
        if self.storage:
            if self.read_note(run_name, name) is not None:
                self.storage.delete([f"runs/{run_name}/{name}"])
        else:
            (self.run_folder(run_name) / name).unlink(missing_ok=True)

    def link(self, run_name: str, name: str, artifact: Artifact) -> str:
        """Make `runs/<run>/<name>` lead to the artifact, for people who browse: a relative link, or a note on a storage."""
        link = self.run_folder(run_name) / name
        link.parent.mkdir(parents=True, exist_ok=True)
        new = link.with_name(f".{link.name}-{uuid.uuid4().hex[:8]}")
        new.symlink_to(os.path.relpath(artifact.folder, link.parent), target_is_directory=True)
        new.replace(link)
        if not self.storage:
            return str(link)
        self.write_note(run_name, f"{name}.json", json.dumps({"artifact": artifact.below}).encode())
        return f"{self.place}/{artifact.below}"

    def linked(self, run_name: str, name: str) -> str:
        """Where `runs/<run>/<name>` leads, as `<stage>/<fingerprint>`; empty where there is no such link."""
        if self.storage:
            try:
                return str(json.loads(self.read_note(run_name, f"{name}.json") or b"")["artifact"])
            except (ValueError, TypeError, KeyError):  # none, or a damaged one, which leads nowhere either
                return ""
        link = self.run_folder(run_name) / name
        return "/".join(link.readlink().parts[-2:]) if link.is_symlink() else ""

    def leads_to(self, run_name: str, name: str, artifact: Artifact) -> bool:
        """Whether `link` has made `runs/<run>/<name>` lead to the artifact, and it still does."""
        if self.storage:
            return self.linked(run_name, name) == artifact.below
        link = self.run_folder(run_name) / name
        return os.path.realpath(link) == os.path.realpath(artifact.folder)  # of links in a circle, resolve() raises

    def unlink_others(self, run_name: str, planned: Mapping[str, str]) -> None:
        """Take away the links by which an earlier sweep of this name led elsewhere; `planned` are fingerprints by step.

        The report's stays until there is another one.
        """
        for name in self.links(run_name):
            if name != "report" and self.linked(run_name, name).rpartition("/")[2] != planned.get(name):
                (self.run_folder(run_name) / name).unlink(missing_ok=True)
                if self.storage:
                    self.delete_note(run_name, f"{name}.json")

    def links(self, run_name: str) -> list[str]:
        """The names of all links of a run, whatever machine made them."""
        if self.storage:
            below = f"runs/{run_name}/"
            notes = [name.removeprefix(below) for name in self.storage.names(below) if name.endswith(".json")]
            names = [note.removesuffix(".json") for note in notes if note.count("/") <= 1]
            return [name for name in names if self.linked(run_name, name)]
        folder = self.run_folder(run_name)
        paths = [path for path in (*folder.glob("*"), *folder.glob("*/*")) if path.is_symlink()]
        return sorted(path.relative_to(folder).as_posix() for path in paths)

    def _read(self, name: str) -> bytes | None:
        if self.storage:
            return self.storage.read(name)
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ArtifactError(
                f"cannot read {self.root / name}: {error.strerror}",
                fix="Check its owner and rights; what is no file there, delete, and run again.",
            ) from error


def _rename(making: Path, final: Path) -> None:
    final.parent.mkdir(parents=True, exist_ok=True)
    try:
        making.rename(final)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise disk_error(error, final) from error
        shutil.rmtree(making)


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
