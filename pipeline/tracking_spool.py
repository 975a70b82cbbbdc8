"""The spool: what a sweep's processes have to tell the experiment tracker, as lines in files, until it is delivered.

    <spool>/<run>/run.json         how the run is opened: name, parent, tags, parameters, data sets
    <spool>/<run>/<writer>.jsonl   one file a writer: metrics, tags, files, the end, each line with its time
    <spool>/<run>/<writer>.sent    how many of its bytes the server has
    <spool>/<run>/files/           copies of the files to be kept with the run

A file has one writer and one reader, and only grows, so nobody waits for anybody; every line carries its own time, so a
line that is delivered twice (a crash between sending and noting) is one and the same metric to the server. Where workers do
not share a disk with the driver (a store on an object storage), they write every batch of lines as an object of its own,
which the delivery brings into the driver's folder.
"""

from __future__ import annotations

import collections
import contextlib
import json
import logging
import os
import re
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from pipeline.artifacts.storage import Storage
from pipeline.errors import ClientError
from pipeline.naming import flat

logger = logging.getLogger(__name__)
FLUSH_SECONDS = 1.0
REMOTE_FLUSH_SECONDS = 10.0
MOST_KEPT = 100_000  # lines kept in memory while they cannot be written
SYSTEM_SECONDS = 10.0  # between two samples of the machine


class Spool(Protocol):
    """Where one writer's lines and files of a run go."""

    flush_seconds: float

    def append(self, writer: str, text: str) -> None: ...

    def add_file(self, name: str, path: Path) -> None: ...


class LocalSpool:
    """A run's folder on a disk that the driver sees."""

    flush_seconds = FLUSH_SECONDS

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def append(self, writer: str, text: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{writer}.jsonl").open("a", encoding="utf-8") as file:
            file.write(text)

    def add_file(self, name: str, path: Path) -> None:
        copy = self.folder / "files" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


class RemoteSpool:
    """A run's prefix on an object storage."""

    flush_seconds = REMOTE_FLUSH_SECONDS

    def __init__(self, url: str, run_id: str) -> None:
        self.storage, self.run_id, self._parts = Storage(url), run_id, 0

    def append(self, writer: str, text: str) -> None:
        self.storage.write(f"{self.run_id}/{writer}-{self._parts:06d}.jsonl", text.encode())
        self._parts += 1

    def add_file(self, name: str, path: Path) -> None:
        self.storage.write(f"{self.run_id}/files/{name}", path.read_bytes())


def open_spool(place: str, run_id: str) -> Spool:
    return RemoteSpool(place, run_id) if "://" in place else LocalSpool(Path(place) / run_id)


class SpoolTracker:
    """The writing end, a `Tracker`. Calls put a line into memory; a thread writes the lines and samples the machine.
    Without `background` each call writes at once, and nothing is sampled.

    A disk or storage that fails keeps the lines in memory for the next attempt, is told once in the log, and never stops
    the run.
    """

    def __init__(self, spool: Spool, background: bool = True) -> None:
        self.spool = spool
        self.writer = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._lines: collections.deque[dict[str, Any]] = collections.deque()
        self._complained = False
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        if background:
            self._thread = threading.Thread(target=self._write_until_closed, name="tracking", daemon=True)
            self._thread.start()

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self._put({"metrics": {key: float(value) for key, value in values.items()}, "step": int(step)})

    def params(self, values: Mapping[str, Any]) -> None:
        self._put({"params": {key: shown(value) for key, value in flat(values).items()}})

    def tags(self, values: Mapping[str, str]) -> None:
        self._put({"tags": {key: str(value) for key, value in values.items()}})

    def file(self, path: Path, folder: str = "") -> None:
        # A copy: the artifact's folder is renamed when it is published, and the store may be cleaned before delivery.
        name = f"{uuid.uuid4().hex[:8]}/{path.name}"
        try:
            self.spool.add_file(name, path)
        except (OSError, ClientError) as error:
            self._complain(error)
            return
        self._put({"file": name, "folder": folder})

    def unique_metrics(self, values: Mapping[str, float], step: int) -> None:
        """As `metrics`, but a value that the run has at this step already is not logged again."""
        self._put({"metrics": {key: float(value) for key, value in values.items()}, "step": int(step), "unique": True})

    def checkpoint(self, name: str, folder: Path, fingerprint: str, params: Mapping[str, Any]) -> None:
        """Register a checkpoint by where it lies; nothing is copied."""
        facts = {key: shown(value) for key, value in params.items()}
        self._put({"model": {"name": name, "folder": str(folder), "fingerprint": fingerprint, "params": facts}})

    def end(self, status: str) -> None:
        """Say how the run ended: FINISHED, FAILED or KILLED."""
        self._put({"end": status})

    def close(self) -> None:
        self._closing.set()
        if self._thread:
            self._thread.join()

    def _put(self, line: dict[str, Any]) -> None:
        self._lines.append(line | {"t": int(time.time() * 1000)})
        if not self._thread:
            self._flush()

    def _write_until_closed(self) -> None:
        next_sample = time.monotonic() + SYSTEM_SECONDS
        while not self._closing.wait(self.spool.flush_seconds):
            if time.monotonic() >= next_sample:
                self.metrics(system_metrics(), step=int(time.time()))
                next_sample += SYSTEM_SECONDS
            self._flush()
        self._flush()

    def _flush(self) -> None:
        lines = [self._lines.popleft() for _ in range(len(self._lines))]
        if not lines:
            return
        try:
            self.spool.append(self.writer, "".join(json.dumps(line) + "\n" for line in lines))
        except (OSError, ClientError) as error:
            self._lines.extendleft(reversed(lines[-MOST_KEPT:]))
            self._complain(error)

    def _complain(self, error: Exception) -> None:
        if not self._complained:
            logger.warning("tracking cannot be written: %s", str(error).partition("\n")[0])
        self._complained = True


def read_lines(path: Path, limit_bytes: int = 1 << 22) -> tuple[list[dict[str, Any]], int]:
    """The whole lines of a spool file that are not sent yet, at most about `limit_bytes`, and the offset behind them."""
    start = sent_bytes(path)
    with path.open("rb") as file:
        file.seek(start)
        data = file.read(limit_bytes)
    whole = data[: data.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.splitlines()], start + len(whole)


def sent_bytes(path: Path) -> int:
    """How much of a spool file the server has."""
    sent = path.with_suffix(".sent")
    return int(sent.read_text()) if sent.is_file() else 0


def note_sent(path: Path, offset: int) -> None:
    write_whole(path.with_suffix(".sent"), str(offset))


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old text or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def shown(value: Any) -> str:
    """A value as a parameter's text, without the user's name and password where it holds a URL with them."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return re.sub(r"://[^/@\s]+@", "://", text)


def system_metrics() -> dict[str, float]:
    """This machine now, under MLflow's own names, which its "System metrics" page shows."""
    import psutil

    memory = psutil.virtual_memory()
    found = {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_megabytes": (memory.total - memory.available) / 1e6,
        "system/system_memory_usage_percentage": memory.percent,
    }
    return found | _gpu_metrics()


def _gpu_metrics() -> dict[str, float]:
    try:
        import pynvml
    except ImportError:
        return {}
    found: dict[str, float] = {}
    with contextlib.suppress(pynvml.NVMLError):  # no driver, or a card that does not tell this
        pynvml.nvmlInit()
        for index in range(pynvml.nvmlDeviceGetCount()):
            card, name = pynvml.nvmlDeviceGetHandleByIndex(index), f"system/gpu_{index}"
            memory = pynvml.nvmlDeviceGetMemoryInfo(card)
            found[f"{name}_memory_usage_megabytes"] = memory.used / 1e6
            found[f"{name}_memory_usage_percentage"] = 100 * memory.used / memory.total
            found[f"{name}_utilization_percentage"] = float(pynvml.nvmlDeviceGetUtilizationRates(card).gpu)
            found[f"{name}_power_usage_watts"] = pynvml.nvmlDeviceGetPowerUsage(card) / 1000
    return found
