"""Files on a disk or in an object store: finding them, and reading them as a stream of decompressed bytes."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from fsspec.utils import glob_translate
from pyarrow import fs

from pipeline.errors import ResourceError

CHUNK_BYTES = 1 << 18  # decompressed at a time: stays in the processor's cache
BUFFER_BYTES = 4 << 20  # asked of a file or an object storage at a time
STORAGE_FIX = (
    "Check the path, the rights and the network; for s3:// the credentials and AWS_ENDPOINT_URL. Then run again."
)
COMPRESSION = {".zst": "zstd", ".gz": "gzip"}


class Damaged(Exception):
    """A compressed stream ends too early or is corrupt. Everything that could be read was read before."""


@dataclass(frozen=True)
class Found:
    path: str  # where it is opened: s3://..., or an absolute path
    origin: str  # as the configuration writes it, and document tables name it
    bytes: int
    modified: str


def file_system(path: str) -> tuple[fs.FileSystem, str]:
    """The file system that holds `path`, and what the path is called there. Raises ResourceError for an unknown scheme."""
    scheme, separator, name = path.partition("://")
    if not separator:
        return fs.LocalFileSystem(), path
    bucket = f"{scheme}://{name.partition('/')[0]}"  # alone: a pattern is no address
    try:
        return fs.FileSystem.from_uri(bucket)[0], name
    except (ValueError, OSError) as error:
        raise ResourceError(f"cannot reach {bucket}: {_first_line(error)}", fix=STORAGE_FIX) from error


def find(pattern: str) -> list[Found]:
    """The files that a path or glob stands for, sorted; all files below it if it is a folder. Raises ResourceError."""
    system, name = file_system(pattern)
    try:
        infos = _candidates(system, name)
    except OSError as error:
        raise ResourceError(f"cannot list {pattern}: {_first_line(error)}", fix=STORAGE_FIX) from error
    if not infos:
        raise ResourceError(f"no file matches {pattern}", fix="Check tokens.train and tokens.val in the configuration.")
    scheme = pattern.partition("://")[0] + "://" if "://" in pattern else ""
    return [_found(info, scheme) for info in sorted(infos, key=lambda info: info.path)]


def _found(info: fs.FileInfo, scheme: str) -> Found:
    origin = scheme + info.path
    return Found(origin if scheme else str(Path(origin).absolute()), origin, info.size, str(info.mtime_ns))


def _candidates(system: fs.FileSystem, name: str) -> list[fs.FileInfo]:
    infos = _glob(system, name)
    for folder in [info for info in infos if info.type == fs.FileType.Directory]:
        below = system.get_file_info(fs.FileSelector(folder.path, recursive=True))
        infos += [info for info in below if not info.base_name.startswith(".")]
    return list({info.path: info for info in infos if info.is_file}.values())


def _glob(system: fs.FileSystem, name: str) -> list[fs.FileInfo]:
    wild = [place for place, character in enumerate(name) if character in "*?["]
    if not wild:
        return system.get_file_info([name])
    if isinstance(system, fs.LocalFileSystem):
        return system.get_file_info(glob.glob(name, recursive=True))  # noqa: PTH207 (keeps the path as written)
    below = system.get_file_info(fs.FileSelector(name[: wild[0]].rpartition("/")[0], recursive=True))
    pattern = re.compile(glob_translate(name))
    return [info for info in below if pattern.match(info.path)]


class CountedReader:
    """A raw file that knows how far it was read, and keeps apart its own errors from those of a decoder above it.

    A storage that answers 500 or breaks off is asked again by its client, some thirty times, before that is an error.
    """

    closed = False

    def __init__(self, path: str) -> None:
        self.path = path
        self.position = 0
        self.error: OSError | None = None
        self._system, self._name = file_system(path)
        self._file: pa.NativeFile | None = None

    def read(self, n_bytes: int = -1) -> bytes:
        try:
            if self._file is None:
                self._file = self._opened()
            data = self._file.read(n_bytes)
        except OSError as error:
            self.error = error
            raise
        self.position += len(data)
        return data

    def _opened(self) -> pa.NativeFile:
        file = self._system.open_input_file(self._name)
        file.seek(self.position)
        return pa.BufferedInputStream(file, BUFFER_BYTES)

    def reraise(self) -> None:
        """After an error: raise ResourceError if it came from the disk or the network, not from what was read."""
        if self.error is not None:
            raise ResourceError(f"cannot read {self.path}: {_first_line(self.error)}", fix=STORAGE_FIX)

    def seek(self, offset: int, whence: int = 0) -> int:
        self.position = offset + {0: 0, 1: self.position, 2: self.size()}[whence]
        self._file = None
        return self.position

    def tell(self) -> int:
        return self.position

    def size(self) -> int:
        return self._system.get_file_info(self._name).size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self._file = None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


class ByteStream:
    """The decompressed bytes of a file, in chunks; `position` is how many bytes of the file were read for them."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._codec = COMPRESSION.get(Path(path).suffix)
        self._raw, self._stream = self._open()

    @property
    def position(self) -> int:
        return self._raw.position

    def _open(self) -> tuple[CountedReader, Any]:
        raw = CountedReader(self.path)
        if not self._codec:
            return raw, raw
        return raw, pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), self._codec)

    def chunks(self) -> Iterator[bytes]:
        """All bytes that can be decoded; then raises Damaged if that was not all."""
        decoded = 0
        while True:
            try:
                chunk = self._stream.read(CHUNK_BYTES)
            except OSError as error:
                self._raw.reraise()
                yield from self._rest(decoded)
                raise Damaged(str(error)) from error
            if not chunk:
                if self._codec and not self.position:
                    raise Damaged("the file is empty: not even the compressed form of nothing")
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
            self._raw.reraise()
        yield bytes(rest)
