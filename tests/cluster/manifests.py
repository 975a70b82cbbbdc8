"""The deployment's manifests for tests: raw, rendered, and altered."""

from __future__ import annotations

import copy
import functools
import subprocess
from pathlib import Path
from typing import Any

import yaml

from cluster.check.objects import load, parse

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
OVERLAYS = tuple(sorted(path.name for path in (CLUSTER / "overlays").iterdir()))
AROUND = tuple(CLUSTER / "setup" / name for name in ("service-account.yaml", "priority-class.yaml", "runs-claim"))
Step = tuple[str, str, Any]  # add, replace or remove; a JSON pointer; the value


@functools.cache
def rendered(folder: Path) -> str:
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{folder}: {done.stderr}"
    return done.stdout


def sound_sweep() -> dict[str, Any]:
    """The RayJob of base with the GPU patch, put together as kustomize would, so that no kubectl is needed."""
    (job,) = load([CLUSTER / "base" / "sweep.yaml"])
    steps = yaml.safe_load((CLUSTER / "components" / "gpu-8" / "workers.yaml").read_text())
    return altered(job, [(step["op"], step["path"], step.get("value")) for step in steps])


def settings() -> dict[str, Any]:
    (settings,) = parse(
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: crate-settings}, data: {CRATE_STORE: /mnt/runs}}"
    )
    return settings


def altered(item: dict[str, Any], steps: list[Step]) -> dict[str, Any]:
    """A copy after JSON-patch steps."""
    result = copy.deepcopy(item)
    for operation, pointer, value in steps:
        *path, last = [part.replace("~1", "/") for part in pointer.lstrip("/").split("/")]
        parent: Any = result
        for part in path:
            parent = parent[int(part)] if isinstance(parent, list) else parent[part]
        key: Any = int(last) if isinstance(parent, list) and last != "-" else last
        if operation == "remove":
            del parent[key]
        elif isinstance(parent, list) and operation == "add":
            parent.insert(len(parent) if key == "-" else key, copy.deepcopy(value))
        else:
            parent[key] = copy.deepcopy(value)
    return result
