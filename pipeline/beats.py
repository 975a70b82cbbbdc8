"""How far the shards under way are: small notes of the run, that workers write and the driver adds up."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from pipeline.stage import Context

NEAR_PAUSE_SECONDS, FAR_PAUSE_SECONDS = 1.0, 15.0  # between beats, on a folder and on an object storage


class Beat:
    """The worker's end: called with how far a shard has been read, as often as it likes."""

    def __init__(self, context: Context, shard: object) -> None:
        self.context, self.note = context, f"{_folder(context)}/{shard}"
        self._told = time.monotonic()

    def __call__(self, position: int) -> None:
        if time.monotonic() - self._told >= pause_seconds(self.context):
            self.context.store.write_note(self.context.run_name, self.note, str(position).encode())
            self._told = time.monotonic()


@contextlib.contextmanager
def watched(context: Context, tell: Callable[[Mapping[str, int]], None]) -> Iterator[None]:
    """A thread hands `tell` the last beat of every shard by its name, time and again. Nobody else may write these meanwhile."""
    store, run = context.store, context.run_name
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(pause_seconds(context)):
            tell({shard: int(position) for shard, position in store.notes(run, _folder(context)).items()})

    def forget() -> None:
        for name in store.notes(run, _folder(context)):
            store.delete_note(run, f"{_folder(context)}/{name}")

    forget()  # what an attempt left that was killed
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        forget()


def pause_seconds(context: Context) -> float:
    return FAR_PAUSE_SECONDS if context.store.storage else NEAR_PAUSE_SECONDS


def _folder(context: Context) -> str:
    return f"beats/{context.step_name.replace('/', '--')}"  # beside the links to artifacts, never in the place of one
