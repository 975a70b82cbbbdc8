"""Hash an artifact once, and again only when its files have changed since: restarts stay quick on terabytes of tokens."""

from __future__ import annotations

import json

from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.store import Store


def verify_once(store: Store, artifact: Artifact) -> None:
    """Raise ArtifactError when a file differs from the manifest; skip the hashing if sizes and times are as last verified."""
    stamp = store.root / ".verified" / f"{artifact.fingerprint}.json"
    seen = {name: list(_identity(artifact, name)) for name in artifact.names()}
    if stamp.is_file() and stamp.read_bytes() == _stamp(artifact, seen):
        return
    artifact.verify()
    seen = {name: list(_identity(artifact, name)) for name in artifact.names()}  # of a copy that was fetched again, too
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_bytes(_stamp(artifact, seen))


def _stamp(artifact: Artifact, seen: dict[str, list[int]]) -> bytes:
    """What is kept of a hashing: of which manifest, and how its files were. Compared as bytes, so that a torn one is no match."""
    return json.dumps({"seal": artifact.manifest.seal, "files": seen}).encode()


def _identity(artifact: Artifact, name: str) -> tuple[int, int, int]:
    status = artifact.file(name).stat()
    return status.st_size, status.st_mtime_ns, status.st_ino
