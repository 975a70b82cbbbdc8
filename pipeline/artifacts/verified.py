"""Hash an artifact once, and again only when its files have changed since: restarts stay quick on terabytes of tokens."""

from __future__ import annotations

import json

from pipeline.artifacts.store import Artifact, Store


def verify_once(store: Store, artifact: Artifact) -> None:
    """Raise ArtifactError when a file differs from the manifest; skip the hashing if sizes and times are as last verified."""
    stamp = store.root / ".verified" / f"{artifact.fingerprint}.json"
    seen = {name: list(_identity(artifact, name)) for name in artifact.names()}
    if stamp.is_file() and json.loads(stamp.read_text("utf-8")) == seen:
        return
    artifact.verify()
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(json.dumps(seen), encoding="utf-8")


def _identity(artifact: Artifact, name: str) -> tuple[int, int, int]:
    status = artifact.file(name).stat()
    return status.st_size, status.st_mtime_ns, status.st_ino
