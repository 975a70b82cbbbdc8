"""Every judge call by its content, with what it cost: a call is made once, in whatever run, and survives a kill.

A key is the sha256 of everything that decides the reply: model, revision, dtype, parameters and the prompt's bytes. Each step
writes a file of its own, `<store>/judge/<fingerprint>.sqlite`, and reads those of all others: no two processes write to one file,
on whatever file system. A reply is on disk before the next one is asked for. The same rows are the ledger.

Beside the calls, `neurons` holds what they gave for a neuron as a whole (`whole.py`).
"""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import astuple
from pathlib import Path
from typing import Any

from pipeline.artifacts.store import Store
from pipeline.errors import ArtifactError
from pipeline.interpret.backends import Usage

SCHEMA = (
    """CREATE TABLE IF NOT EXISTS calls (
        key BLOB PRIMARY KEY, value BLOB NOT NULL, tokens_in INTEGER, tokens_out INTEGER, seconds REAL
    ) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS neurons (
        key BLOB PRIMARY KEY, value BLOB NOT NULL, tokens_in INTEGER, tokens_out INTEGER, seconds REAL, calls INTEGER
    )""",
)
FOLDER = "judge"
UPLOAD_EVERY_SECONDS = 60
ASKED_TOGETHER = 500  # below sqlite's limit on parameters
Row = tuple[bytes, Usage]  # the reply, and what it cost
WholeRow = tuple[bytes, Usage, int]  # what so many calls gave and cost


def key_of(*parts: str | bytes) -> bytes:
    """The key of a call; parts are kept apart, so that no two lists of parts have one key."""
    return hasher_of(*parts).digest()


def hasher_of(*parts: str | bytes):
    """A hash that is open for more parts: prompts of a neuron share their beginning."""
    hasher = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        hasher.update(len(data).to_bytes(8, "little") + data)
    return hasher


class JudgeCache:
    """Open one a step; `close` it. Not shared between threads."""

    def __init__(self, store: Store, fingerprint: str) -> None:
        self.store, self.name = store, f"{fingerprint}.sqlite"
        folder = store.root / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        if store.storage:
            for name in store.storage.names(f"{FOLDER}/"):
                if not (folder / Path(name).name).exists():
                    store.storage.download(name, folder / Path(name).name)
        self.path = folder / self.name
        self.uploaded = time.monotonic()
        self.own = _opened(self.path, "rwc")
        others = [_opened(path, "ro") for path in sorted(folder.glob("*.sqlite")) if path.name != self.name]
        self.others = [(connection, _tables(connection)) for connection in others]

    def find(self, keys: Iterable[bytes]) -> dict[bytes, Row]:
        """The calls of those keys that are known."""
        return {key: (value, Usage(*cost)) for key, value, *cost in self._rows("calls", keys)}

    def keep(self, rows: Mapping[bytes, Row]) -> None:
        """Write calls durably, all or none."""
        self._write("calls", [(key, value, *astuple(usage)) for key, (value, usage) in rows.items()])

    def find_whole(self, keys: Iterable[bytes]) -> dict[bytes, WholeRow]:
        """The neurons of those keys that are known as a whole."""
        return {key: (value, Usage(*cost), calls) for key, value, *cost, calls in self._rows("neurons", keys)}

    def keep_whole(self, rows: Mapping[bytes, WholeRow]) -> None:
        self._write("neurons", [(key, value, *astuple(usage), calls) for key, (value, usage, calls) in rows.items()])

    def _rows(self, table: str, keys: Iterable[bytes]) -> Iterator[tuple[Any, ...]]:
        missing = dict.fromkeys(keys)
        for connection in (self.own, *(connection for connection, tables in self.others if table in tables)):
            asked = list(missing)
            for first in range(0, len(asked), ASKED_TOGETHER):
                some = asked[first : first + ASKED_TOGETHER]
                marks = ",".join("?" * len(some))
                for row in connection.execute(f"SELECT * FROM {table} WHERE key IN ({marks})", some):
                    del missing[row[0]]
                    yield row

    def _write(self, table: str, rows: list[tuple[Any, ...]]) -> None:
        if rows:
            self.own.execute("BEGIN")
            self.own.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({','.join('?' * len(rows[0]))})", rows)
            self.own.execute("COMMIT")

    def upload(self, at_once: bool = False) -> None:
        """Copy this step's calls to the object storage, where the store is one, every now and then."""
        if self.store.storage and (at_once or time.monotonic() - self.uploaded > UPLOAD_EVERY_SECONDS):
            self.uploaded = time.monotonic()
            copied = self.path.with_suffix(".upload")
            with closing(sqlite3.connect(copied)) as copy:
                self.own.backup(copy)
            self.store.storage.write(f"{FOLDER}/{self.name}", copied.read_bytes())
            copied.unlink()

    def close(self) -> None:
        self.upload(at_once=True)
        for connection in (self.own, *(connection for connection, _ in self.others)):
            connection.close()


def _opened(path: Path, mode: str) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode={mode}", uri=True, timeout=30, isolation_level=None)
    try:
        if mode == "rwc":
            connection.execute("PRAGMA synchronous = NORMAL")
            for statement in SCHEMA:
                connection.execute(statement)
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.DatabaseError as error:
        fix = "Delete it and run again. The calls that only it remembered will be made again."
        raise ArtifactError(f"{path} is damaged: {error}", fix=fix) from error
    return connection


def _tables(connection: sqlite3.Connection) -> set[str]:
    """Empty for a file that another step has just begun."""
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
