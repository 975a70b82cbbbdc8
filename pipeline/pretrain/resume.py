"""The resume format: what a run needs to go on, free of world size, ZeRO stage and micro-batch. No pickle.

A folder `<step>` holds the float32 master weights and both Adam moments as safetensors under the parameters' names, the
curve, and `state.json`. It is written under another name, hashed, flushed and renamed, so a folder with a right name is
whole unless the disk lost something; reading verifies every hash, and a damaged folder is passed over for the one before.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import manifest
from pipeline.artifacts.checkpoint import CURVE_SCHEMA, write_curve
from pipeline.artifacts.store import disk_error
from pipeline.errors import CrateError
from pipeline.pretrain.cores import use_any_core

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)
FORMAT = 1
PARTS = ("weights", "exp_avg", "exp_avg_sq")
STATE, CURVE, FILES = "state.json", "curve.parquet", "files.json"
Tensors = dict[str, "torch.Tensor"]


@dataclass
class Counters:
    """Where a run stands, beside its tensors. The data order's whole state is `step`."""

    step: int = 0  # optimizer steps done
    tokens: int = 0  # seen
    consumed: str = ""  # rolling hash of all window ids so far
    skipped_steps: list[int] = field(default_factory=list)  # left out for a spike
    norms: list[float] = field(default_factory=list)  # the last gradient norms, for the spike rule
    optimizer: str = ""  # the one in use, so that `auto` stays with it
    loss_scale: float = 0.0  # fp16's dynamic one; 0: none
    overflows: int = 0  # steps that fp16 left out because a gradient was not finite
    losses: list[float] = field(default_factory=list)  # the last losses, for the spike rule; empty where it is off

    @property
    def updates(self) -> int:
        """Steps that changed the weights."""
        return self.step - len(self.skipped_steps) - self.overflows


@dataclass
class Snapshot:
    """A run at one step. `tensors` has the PARTS, each full and float32 on the CPU; empty on workers other than rank 0."""

    counters: Counters
    tensors: dict[str, Tensors]
    curve: dict[str, list]
    rng: torch.Tensor | None = None  # of torch's CPU generator; training draws nothing from it, and this shows it


def write(folder: Path, snapshot: Snapshot, keep: int) -> Path:
    """Write a snapshot durably to `folder/<step>`, then drop all but the newest `keep`. Raises ResourceError."""
    from safetensors.torch import save_file

    final = folder / f"{snapshot.counters.step:010d}"
    making = folder / f".{final.name}-{os.getpid()}"
    try:
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        for part, tensors in snapshot.tensors.items():
            extra = {"rng": snapshot.rng} if part == "weights" and snapshot.rng is not None else {}
            save_file(
                {**{f"p.{name}": tensor for name, tensor in tensors.items()}, **extra}, making / f"{part}.safetensors"
            )
        write_curve(making / CURVE, snapshot.curve)
        (making / STATE).write_text(json.dumps({"format": FORMAT, **asdict(snapshot.counters)}), encoding="utf-8")
        files = {entry.name: entry.sha256 for entry in manifest.list_files(making)}
        (making / FILES).write_text(json.dumps(files), encoding="utf-8")
        for path in making.iterdir():
            _flush(path)
        shutil.rmtree(final, ignore_errors=True)
        making.rename(final)
        _flush(folder)
    except OSError as error:
        raise disk_error(error, folder) from error
    for old in steps(folder)[:-keep]:
        shutil.rmtree(folder / f"{old:010d}", ignore_errors=True)
    for torn in folder.glob(".[0-9]*-*"):  # what a killed writer left; one that is further on may still live
        if torn.name[1:11] <= final.name:
            shutil.rmtree(torn, ignore_errors=True)
    return final


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def steps(folder: Path) -> list[int]:
    """Steps of which there is a folder, ascending."""
    return sorted(int(path.name) for path in folder.glob("[0-9]*") if path.is_dir()) if folder.is_dir() else []


def newest(folder: Path, tell: Callable[[str], None] = logger.warning) -> Path | None:
    """The newest whole snapshot; damaged ones are told and passed over. None: there is none."""
    for step in reversed(steps(folder)):
        path = folder / f"{step:010d}"
        if not (why := damage(path)):
            return path
        tell(f"passing over the checkpoint {path}: {why}; going on from the one before")
    return None


def damage(path: Path) -> str:
    """What is wrong with a snapshot's folder; empty when it is whole."""
    try:
        files = json.loads((path / FILES).read_text("utf-8"))
        for name, sha256 in files.items():
            if manifest.sha256_of(path / name) != sha256:
                return f"{name} does not have its sha256"
        state = json.loads((path / STATE).read_text("utf-8"))
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "" if state.get("format") == FORMAT else f"its format is {state.get('format')}, not {FORMAT}"


def read_counters(path: Path) -> Counters:
    state: dict[str, Any] = json.loads((path / STATE).read_text("utf-8"))
    state.pop("format")
    return Counters(**state)


def read(path: Path) -> Snapshot:
    """A snapshot that `newest` found whole."""
    import pyarrow.parquet as pq
    from safetensors.torch import load_file

    tensors: dict[str, Tensors] = {}
    rng = None
    for part in PARTS:
        stored = load_file(path / f"{part}.safetensors")
        tensors[part] = {name.removeprefix("p."): tensor for name, tensor in stored.items() if name != "rng"}
        rng = stored.get("rng", rng)
    curve = pq.read_table(path / CURVE, schema=CURVE_SCHEMA).to_pydict()
    return Snapshot(read_counters(path), tensors, curve, rng)


class BackgroundWriter:
    """Writes snapshots in a thread, one at a time and in order; `keep_copy` gets each finished folder, for stores that are
    not on this disk. A failure is raised by the next call."""

    def __init__(self, folder: Path, keep: int, keep_copy: Callable[[Path], None] = lambda path: None) -> None:
        self.folder, self.keep, self.keep_copy = folder, keep, keep_copy
        self._thread: threading.Thread | None = None
        self._error: CrateError | None = None

    def submit(self, snapshot: Snapshot) -> None:
        """Begin to write; waits only while the one before is not done."""
        self.wait()
        self._thread = threading.Thread(target=self._write, args=(snapshot,), name="checkpoint-writer", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until all is on the disk. Raises what went wrong."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write(self, snapshot: Snapshot) -> None:
        use_any_core()
        try:
            self.keep_copy(write(self.folder, snapshot, self.keep))
        except CrateError as error:
            self._error = error


def same_shapes(tensors: Mapping[str, Tensors], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a snapshot's tensors are those of the model with these parameter shapes."""
    return all({name: tuple(t.shape) for name, t in part.items()} == dict(shapes) for part in tensors.values())
