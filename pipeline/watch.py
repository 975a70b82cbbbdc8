"""What a person sees while the sweep runs: one line a step with rate and time left, live on a terminal, sparse in a log."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.table import Table

from pipeline.artifacts.store import Store
from pipeline.progress import ProgressState, duration, facts_text, progress_of, progress_text, read_progress

if TYPE_CHECKING:
    from pipeline.execute import Result

logger = logging.getLogger(__name__)
LOG_EVERY_SECONDS = 20


class Watch:
    """Follows the progress files of one run. Use as a context manager; `tick` often, `ended` at each step's end."""

    def __init__(self, store: Store, run_name: str, console: Console) -> None:
        self.store, self.run_name, self.console = store, run_name, console
        self.began = time.time()
        self.ended_steps: set[str] = set()
        self._told: set[tuple[str, str]] = set()
        self.live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        self._logged = time.monotonic()

    def __enter__(self) -> Watch:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def tick(self) -> None:
        if self.live:
            self._tell(self._running())
            self.live.update(self._table())
        elif time.monotonic() - self._logged >= LOG_EVERY_SECONDS:
            self._logged = time.monotonic()
            self._tell(self._running())
            for state in self._running():
                self.console.print(f"  {state.step}: {progress_text(state)}", highlight=False, soft_wrap=True)

    def ended(self, result: Result) -> None:
        self.ended_steps.add(result.step)
        state = progress_of(self.store, self.run_name, result.step)
        if state and state.updated < self.began:  # of an earlier sweep: this one had nothing to tell
            state = None
        self._tell([state] if state else [])
        if result.artifact:
            facts = facts_text(state.facts) if state else ""
            mark, text = "[green]made[/]", f"{duration(result.seconds)}  {facts}"
        elif result.skipped_for:
            mark, text = "[yellow]not run[/]", f"{result.skipped_for} failed"
        else:
            mark, text = "[red]failed[/]", result.error.what if result.error else ""
        self.console.print(f"{mark} [bold]{result.step}[/]  {text}", highlight=False, soft_wrap=True)

    def _tell(self, states: Iterable[ProgressState]) -> None:
        """Each sentence once, on the screen and in the driver's log."""
        for state in states:
            for sentence in state.told:
                if (state.step, sentence) not in self._told:
                    self._told.add((state.step, sentence))
                    self.console.print(f"  {state.step}: {sentence}", highlight=False, soft_wrap=True, markup=False)
                    logger.info("%s: %s", state.step, sentence)

    def _running(self) -> list[ProgressState]:
        states = read_progress(self.store, self.run_name).values()
        return [s for s in states if s.step not in self.ended_steps and s.updated >= self.began]

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for state in self._running():
            share = min(1.0, state.done / state.total) if state.total else 0.0
            bar = "[cyan]" + "━" * round(20 * share) + "[/][dim]" + "━" * (20 - round(20 * share)) + "[/]"
            table.add_row(f"[bold]{state.step}[/]", bar, progress_text(state))
        return table
