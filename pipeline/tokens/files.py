"""Files on a disk or in an object store: finding them, and reading them as a stream of decompressed bytes."""

from __future__ import annotations

import fnmatch
import glob
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from pipeline.errors import ResourceError

CHUNK_BYTES = 1 << 20
REMOTE_BUFFER_BYTES = 8 << 20  # an object store is asked for this much at a time
COMPRESSION = {".zst": "zstd", ".gz": "gzip"}


class Damaged(Exception):
    """A compressed stream ends too early or is corrupt. Everything that could be read was read before."""


@dataclass(frozen=True)
class Found:
    path: str  # as the configuration writes it: with s3://, or a path
    bytes: int
    modified: str


def file_system(path: str) -> tuple[fs.FileSystem, str]:
    """The file system that holds `path`, and what the path is called there."""
    if path.startswith("s3://"):
        return fs.S3FileSystem(), path.removeprefix("s3://")
    return fs.LocalFileSystem(), path


def find(pattern: str) -> list[Found]:
    """The files that a path or glob stands for, sorted; all files below it if it is a folder. Raises ResourceError."""
    system, name = file_system(pattern)
    prefix = pattern.removesuffix(name)
    try:
        infos = [info for info in _candidates(system, name) if info.is_file]
    except OSError as error:
        raise ResourceError(
            f"cannot list {pattern}: {error}", fix="Check the path, the credentials and AWS_ENDPOINT_URL."
        ) from error
    if not infos:
        raise ResourceError(f"no file matches {pattern}", fix="Check tokens.train and tokens.val in the configuration.")
    found = [Found(prefix + info.path, info.size, str(info.mtime_ns)) for info in infos]
    return sorted(found, key=lambda file: file.path)


def _candidates(system: fs.FileSystem, name: str) -> list[fs.FileInfo]:
    if isinstance(system, fs.LocalFileSystem):
        infos = system.get_file_info(sorted(glob.glob(name, recursive=True)))  # noqa: PTH207 (keeps the path as written)
    elif any(character in name for character in "*?["):
        folder = name[: min(name.find(character) for character in "*?[" if character in name)].rpartition("/")[0]
        below = system.get_file_info(fs.FileSelector(folder, recursive=True))
        infos = [info for info in below if fnmatch.fnmatchcase(info.path, name)]
    else:
        infos = [system.get_file_info(name)]
    folders = [info.path for info in infos if info.type == fs.FileType.Directory]
    files = [info for info in infos if info.is_file]
    for folder in folders:
        files += system.get_file_info(fs.FileSelector(folder, recursive=True))
    return list({info.path: info for info in files}.values())


class CountedReader:
    """A raw file that knows how far it was read, and keeps apart its own errors from those of a decompressor above it."""

    closed = False

    def __init__(self, path: str) -> None:
        system, name = file_system(path)
        self._file = system.open_input_stream(name, compression=None, buffer_size=REMOTE_BUFFER_BYTES)
        self.position = 0
        self.error: OSError | None = None

    def read(self, n_bytes: int = -1) -> bytes:
        try:
            data = self._file.read(n_bytes)
        except OSError as error:
            self.error = error
            raise
        self.position += len(data)
        return data

    def tell(self) -> int:
        return self.position

    def close(self) -> None:
        self._file.close()


class ByteStream:
    """The decompressed bytes of a file, in chunks; `position` is how many bytes of the file were read for them."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._raw, self._stream = self._open()

    @property
    def position(self) -> int:
        return self._raw.position

    def _open(self) -> tuple[CountedReader, Any]:
        raw = CountedReader(self.path)
        codec = COMPRESSION.get(Path(self.path).suffix)
        return raw, pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), codec) if codec else raw

    def chunks(self) -> Iterator[bytes]:
        """All bytes that can be decoded; then raises Damaged if that was not all. Errors of the disk stay OSError."""
        decoded = 0
        while True:
            try:
                chunk = self._stream.read(CHUNK_BYTES)
            except OSError as error:
                if self._raw.error is not None:
                    raise
                yield from self._rest(decoded)
                raise Damaged(str(error)) from error
            if not chunk:
                return
            decoded += len(chunk)
            yield chunk

    def _rest(self, decoded: int) -> Iterator[bytes]:
        """What a failed read swallowed: the bytes between the last whole chunk and the damage."""
        self._raw, self._stream = self._open()
        while decoded:
            decoded -= len(self._stream.read(min(decoded, CHUNK_BYTES)))
        rest = bytearray()
        try:
            while byte := self._stream.read(1):
                rest += byte
        except OSError:
            if self._raw.error is not None:
                raise
        yield bytes(rest)
