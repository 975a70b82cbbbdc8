"""What this machine is and holds: processor, GPUs, libraries, source tree, room; and what of it an artifact was made with."""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import shutil
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any


def provenance() -> dict[str, Any]:
    """Where and with what an artifact was made; kept in its manifest, never part of its identity."""
    packages = ("torch", "deepspeed", "ray", "pyarrow", "tiktoken", "transformers")
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor_name(),
        "gpu": gpu_names(),
        "cuda": sys.modules["torch"].version.cuda if "torch" in sys.modules else None,
        "git": git_revision(),
        "versions": {name: package_version(name) for name in packages},
    }


def package_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def git_revision() -> str | None:
    """The commit of this source tree, with `+` when it has changes; in an image what CRATE_GIT_SHA says; else None."""
    root = Path(__file__).parents[1]
    if not shutil.which("git") or not (root / ".git").exists():
        return os.environ.get("CRATE_GIT_SHA") or None
    commands = (["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain", "--untracked-files=no"])
    results = [subprocess.run(c, cwd=root, capture_output=True, text=True, check=False) for c in commands]
    if any(result.returncode for result in results):
        return None
    return results[0].stdout.strip() + ("+" if results[1].stdout.strip() else "")


def processor_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@functools.cache
def gpu_names() -> str | None:
    """This machine's GPUs as their driver names them; asking it takes no memory on them, as asking torch would."""
    if not shutil.which("nvidia-smi"):
        return None
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    names = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split("\n")
    counts = {name.strip(): names.count(name) for name in names if name.strip()}
    return ", ".join(f"{count} x {name}" for name, count in counts.items()) or None


def has_module(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def free_disk_bytes(path: Path) -> int:
    """Free bytes where `path` will be, whether or not it is there yet."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def peak_rss_bytes() -> int:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
