"""DeepSpeed's compiled operations: which are there without a compiler, and locks that a killed build left behind.

torch builds extensions under `<root>/<operation>/lock`. Whoever dies while holding it leaves it, and everybody after waits
for ever. Our builds hold a lock of the operating system, which dies with its holder, so a leftover can be told from a build.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)
QUIET_SECONDS = 180.0  # a build of somebody else that wrote nothing for so long is dead


def import_deepspeed() -> Any:
    """DeepSpeed without what it does on import and initialisation that training has no use for.

    Its autotuner imports mlflow (seconds), and every initialisation on a CPU probes the C++ compiler and builds an
    inference collective. An empty table of compatible operations skips that; operations asked for by name still build.
    """
    import torch

    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    absent = "mlflow" not in sys.modules
    if absent:
        sys.modules["mlflow"] = None  # type: ignore[assignment]
    try:
        import deepspeed
        import deepspeed.ops
    finally:
        if absent:
            del sys.modules["mlflow"]
    deepspeed.ops.__compatible_ops__ = {}
    deepspeed.utils.logger.setLevel("ERROR")
    return deepspeed


def prebuilt_operations() -> list[str]:
    """What the installed DeepSpeed loads without a compiler: the question that its own `OpBuilder.load` asks.

    A wheel is built for one accelerator; on any other its operations are compiled anew, those for the processor too. Offloading
    on a GPU machine keeps the accelerator cuda, so there `cpu_adam` of a CUDA wheel counts.
    """
    import_deepspeed()
    from deepspeed.accelerator import get_accelerator
    from deepspeed.git_version_info import accelerator_name, installed_ops

    if accelerator_name != get_accelerator()._name:
        return []
    return sorted(operation for operation, there in installed_ops.items() if there)


def build_root() -> Path:
    """Where torch builds extensions on this machine."""
    from torch.utils.cpp_extension import get_default_build_root

    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())


@contextlib.contextmanager
def building(
    operation: str,
    tell: Callable[[str], None] = logger.warning,
    root: Path | None = None,
    quiet_seconds: float = QUIET_SECONDS,
) -> Iterator[None]:
    """Hold the right to build an operation; a lock that a dead build left is told of and removed, never waited for."""
    root = root or build_root()
    root.mkdir(parents=True, exist_ok=True)
    with (root / f".{operation}.crate-lock").open("w") as ours:
        fcntl.flock(ours, fcntl.LOCK_EX)
        _remove_stale(root, operation, quiet_seconds, tell)
        yield


def stale_locks(root: Path, quiet_seconds: float = QUIET_SECONDS) -> list[Path]:
    """Lock files in whose folders nothing has been written for a while."""
    return [lock for lock in root.rglob("lock") if _quiet_for(lock) > quiet_seconds]


def _remove_stale(root: Path, operation: str, quiet_seconds: float, tell: Callable[[str], None]) -> None:
    for lock in root.rglob(f"{operation}/lock"):
        if _quiet_for(lock) <= quiet_seconds:
            tell(
                f"waiting for whoever builds {operation}: {lock}; it counts as left over after {quiet_seconds:.0f} s of quiet"
            )
        while lock.exists() and _quiet_for(lock) <= quiet_seconds:
            time.sleep(1.0)  # somebody else may be building; it shows in the folder
        if lock.exists():
            tell(f"removing {lock}: a build that was killed left it")
            lock.unlink(missing_ok=True)


def _quiet_for(lock: Path) -> float:
    """Seconds since anything in the lock's folder was written."""
    newest = 0.0
    for path in lock.parent.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            newest = max(newest, path.stat().st_mtime)
    return time.time() - newest
