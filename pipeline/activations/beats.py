"""How far the shards under way are: small notes of the run, that workers write and the driver adds up."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from pipeline.progress import Progress
from pipeline.stage import Context

NEAR_PAUSE_SECONDS, FAR_PAUSE_SECONDS = 1.0, 15.0  # between beats, on a folder and on an object storage


class Beat:
    """The worker's end: called with a shard's tokens read so far, as often as it likes."""

    def __init__(self, context: Context, shard: int) -> None:
        self.context, self.note = context, f"{_folder(context)}/{shard}"
        self._told = time.monotonic()

    def __call__(self, tokens: int) -> None:
        if time.monotonic() - self._told >= _pause(self.context):
            self.context.store.write_note(self.context.run_name, self.note, str(tokens).encode())
            self._told = time.monotonic()


@contextlib.contextmanager
def watched(context: Context, progress: Progress) -> Iterator[dict[int, int]]:
    """Gives an empty dict, to be filled with the tokens of finished shards; a thread tells the progress of those and of the
    shards under way. Nobody else may, meanwhile."""
    store, run, start = context.store, context.run_name, progress.state.done
    finished: dict[int, int] = {}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_pause(context)):
            beats = store.notes(run, _folder(context))
            known = {int(shard): int(tokens) for shard, tokens in beats.items()} | finished
            progress.update(start + sum(known.values()))

    def forget() -> None:
        for name in store.notes(run, _folder(context)):
            store.delete_note(run, f"{_folder(context)}/{name}")

    forget()  # what an attempt left that was killed
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield finished
    finally:
        ended.set()
        thread.join()
        forget()
    progress.update(start + sum(finished.values()))


def _folder(context: Context) -> str:
    return f"beats/{context.step_name.replace('/', '--')}"


def _pause(context: Context) -> float:
    return FAR_PAUSE_SECONDS if context.store.storage else NEAR_PAUSE_SECONDS
