"""Files on a disk or in an object store: finding them, and reading them as a stream of decompressed bytes."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from fsspec.utils import glob_translate
from pyarrow import fs

from pipeline.errors import ResourceError

CHUNK_BYTES = 1 << 18  # decompressed at a time: stays in the processor's cache
BUFFER_BYTES = 4 << 20  # a file, or an object store, is asked for this much at a time
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
    """The file system that holds `path`, and what the path is called there."""
    if path.startswith("s3://"):
        retry = fs.AwsStandardS3RetryStrategy(max_attempts=10)  # a shard is hours of reading
        return fs.S3FileSystem(retry_strategy=retry), path.removeprefix("s3://")
    return fs.LocalFileSystem(), path


def find(pattern: str) -> list[Found]:
    """The files that a path or glob stands for, sorted; all files below it if it is a folder. Raises ResourceError."""
    system, name = file_system(pattern)
    try:
        infos = _candidates(system, name)
    except OSError as error:
        raise ResourceError(
            f"cannot list {pattern}: {error}", fix="Check the path, the credentials and AWS_ENDPOINT_URL."
        ) from error
    if not infos:
        raise ResourceError(f"no file matches {pattern}", fix="Check tokens.train and tokens.val in the configuration.")
    return [_found(info, pattern.startswith("s3://")) for info in sorted(infos, key=lambda info: info.path)]


def _found(info: fs.FileInfo, remote: bool) -> Found:
    origin = f"s3://{info.path}" if remote else info.path
    return Found(origin if remote else str(Path(origin).absolute()), origin, info.size, str(info.mtime_ns))


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
    """A raw file that knows how far it was read, and keeps apart its own errors from those of a decoder above it."""

    closed = False

    def __init__(self, file: pa.NativeFile) -> None:
        self._file = file
        self.position = 0
        self.error: OSError | None = None

    @classmethod
    def stream(cls, path: str) -> CountedReader:
        system, name = file_system(path)
        return cls(_opened(path, system.open_input_stream, name, compression=None, buffer_size=BUFFER_BYTES))

    @classmethod
    def random_access(cls, path: str) -> CountedReader:
        system, name = file_system(path)
        return cls(_opened(path, system.open_input_file, name))

    def read(self, n_bytes: int = -1) -> bytes:
        try:
            data = self._file.read(n_bytes)
        except OSError as error:
            self.error = error
            raise
        self.position += len(data)
        return data

    def reraise(self, path: str) -> None:
        """After an error: raise ResourceError if it came from the disk or the network, not from what was read."""
        if self.error is not None:
            raise ResourceError(f"cannot read {path}: {self.error}", fix="Check the disk or the network; run again.")

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def size(self) -> int:
        return self._file.size()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._file.seekable()

    def close(self) -> None:
        self._file.close()


def _opened(path: str, open_file: Callable[..., pa.NativeFile], *arguments: Any, **options: Any) -> pa.NativeFile:
    try:
        return open_file(*arguments, **options)
    except OSError as error:
        raise ResourceError(
            f"cannot open {path}: {error}", fix="Check the file, its rights and the network."
        ) from error


class ByteStream:
    """The decompressed bytes of a file, in chunks; `position` is how many bytes of the file were read for them."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._raw, self._stream = self._open()

    @property
    def position(self) -> int:
        return self._raw.position

    def _open(self) -> tuple[CountedReader, Any]:
        raw = CountedReader.stream(self.path)
        codec = COMPRESSION.get(Path(self.path).suffix)
        return raw, pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), codec) if codec else raw

    def chunks(self) -> Iterator[bytes]:
        """All bytes that can be decoded; then raises Damaged if that was not all."""
        decoded = 0
        while True:
            try:
                chunk = self._stream.read(CHUNK_BYTES)
            except OSError as error:
                self._raw.reraise(self.path)
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
            self._raw.reraise(self.path)
        yield bytes(rest)
