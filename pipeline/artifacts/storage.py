"""Bytes by name on an object storage (`s3://bucket/prefix`): the far end of a store that is not a folder.

An object is there whole or not at all. Every call is retried with growing pauses, since storages answer 500 and 503 as a
matter of course; what still fails is a ClientError. Credentials and endpoint come from the environment, as pyarrow reads it
(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, ...).
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import ClientError

ATTEMPTS = 6
FIRST_PAUSE_SECONDS = 0.3
PARALLEL_TRANSFERS = 8
COPY_BYTES = 2**23

T = TypeVar("T")


@dataclass(frozen=True)
class Storage:
    """A prefix of an object storage. Names are relative to it, with forward slashes. Plain data: travels to workers."""

    url: str  # e.g. s3://bucket/crate-store

    def read(self, name: str) -> bytes | None:
        """The object's bytes, or None when there is none of this name.

        pyarrow asks for the size first and for the bytes then: an object that was replaced by a shorter one in between is
        filled up with whatever lies in memory, and a longer one is cut off.
        """

        def attempt() -> bytes | None:
            try:
                with self._files.open_input_file(self._path(name)) as file:
                    data = file.readall()
            except FileNotFoundError:
                return None
            if self._files.get_file_info(self._path(name)).size != len(data):
                raise OSError("it was replaced while it was read")
            return data

        return self._retried(f"read {name}", attempt)

    def write(self, name: str, data: bytes) -> None:
        def attempt() -> None:
            with self._files.open_output_stream(self._path(name)) as stream:
                stream.write(data)

        self._retried(f"write {name}", attempt)

    def names(self, prefix: str = "") -> list[str]:
        """Names of all objects below a prefix that ends in `/` (or of all)."""
        from pyarrow.fs import FileSelector, FileType

        base = self._path("")

        def attempt() -> list[str]:
            selector = FileSelector(self._path(prefix).rstrip("/"), recursive=True, allow_not_found=True)
            return [
                info.path[len(base) :] for info in self._files.get_file_info(selector) if info.type == FileType.File
            ]

        return sorted(self._retried(f"list {prefix}", attempt))

    def holds(self, name: str) -> bool:
        """Whether there is an object of exactly this name."""
        return self._retried(f"look for {name}", lambda: self._files.get_file_info(self._path(name)).is_file)

    def delete(self, names: list[str]) -> None:
        """Have no objects of these names. One that is gone already, by another node or a retry, is no fault."""

        def attempt(name: str) -> None:
            with contextlib.suppress(FileNotFoundError):
                self._files.delete_file(self._path(name))

        for name in names:
            self._retried(f"delete {name}", lambda name=name: attempt(name))  # type: ignore[misc]

    def upload(self, folder: Path, names: list[str], below: str) -> None:
        """Copy `folder/<name>` to `<below>/<name>` for all names, several at a time."""

        def one(name: str) -> None:
            self._retried(f"write {below}/{name}", lambda: self._copy_up(folder / name, f"{below}/{name}"))

        with ThreadPoolExecutor(PARALLEL_TRANSFERS) as pool:
            list(pool.map(one, names))

    def download(self, name: str, path: Path) -> None:
        """Copy an object to a local file, which appears whole or not at all."""
        self._retried(f"read {name}", lambda: self._copy_down(name, path))

    def _copy_up(self, path: Path, name: str) -> None:
        with path.open("rb") as source, self._files.open_output_stream(self._path(name)) as target:
            while block := source.read(COPY_BYTES):
                target.write(block)

    def _copy_down(self, name: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{random.getrandbits(32):08x}")
        try:
            with self._files.open_input_file(self._path(name)) as source, temporary.open("wb") as target:
                while block := source.read(COPY_BYTES):
                    target.write(block)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    @property
    def _files(self) -> Any:
        return _file_system(self.url)[0]

    def _path(self, name: str) -> str:
        return f"{_file_system(self.url)[1].rstrip('/')}/{name}"

    def _retried(self, what: str, call: Callable[[], T]) -> T:
        for attempt in range(ATTEMPTS):
            try:
                return call()
            except OSError as error:
                if attempt == ATTEMPTS - 1:
                    raise ClientError(
                        f"cannot {what} in {self.url}: {str(error).partition(chr(10))[0]}",
                        fix="Check the address, the credentials in the environment and that the bucket exists; then run again.",
                        retryable=True,
                    ) from error
                time.sleep(FIRST_PAUSE_SECONDS * 2**attempt * (0.5 + random.random()))
        raise AssertionError("unreachable")


_OPENED: dict[str, tuple[Any, str]] = {}


def _file_system(url: str) -> tuple[Any, str]:
    """pyarrow's file system and the path in it; one a process and address."""
    if url not in _OPENED:
        from pyarrow.fs import FileSystem

        try:
            _OPENED[url] = FileSystem.from_uri(url)
        except (ValueError, OSError) as error:
            raise ClientError(
                f"{url} is no storage that can be reached: {str(error).partition(chr(10))[0]}",
                fix="Write runtime.store as a folder or as s3://bucket/prefix.",
            ) from error
    return _OPENED[url]
