"""What a person sees while the sweep runs: one line a step with rate and time left, live on a terminal, sparse in a log."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.table import Table

from pipeline.artifacts.store import Store
from pipeline.progress import ProgressState, read_progress

if TYPE_CHECKING:
    from pipeline.execute import Result

LOG_EVERY_SECONDS = 20


def amount(value: float) -> str:
    """A count as people say it: 950, 12.3k, 4.56M, 157B."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    hours, rest = divmod(int(seconds + 0.5), 3600)
    minutes, seconds = divmod(rest, 60)
    if hours >= 48:
        return f"{hours / 24:.1f} d"
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


def facts_text(facts: dict[str, object]) -> str:
    return "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in facts.items())


def progress_text(state: ProgressState) -> str:
    """`1.02M of 2M tokens  1.6k tokens/s  10 min left  loss 5.31`."""
    parts = [f"{amount(state.done)} of {amount(state.total)} {state.unit}"]
    if state.rate > 0:
        parts += [f"{amount(state.rate)} {state.unit}/s", f"{duration(state.seconds_left)} left"]
    return "  ".join([*parts, facts_text(state.facts)]).rstrip()


class Watch:
    """Follows the progress files of one run. Use as a context manager; `tick` often, `ended` at each step's end."""

    def __init__(self, store: Store, run_name: str, console: Console) -> None:
        self.store, self.run_name, self.console = store, run_name, console
        self.began = time.time()
        self.ended_steps: set[str] = set()
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
            self.live.update(self._table())
        elif time.monotonic() - self._logged >= LOG_EVERY_SECONDS:
            self._logged = time.monotonic()
            for state in self._running():
                self.console.print(f"  {state.step}: {progress_text(state)}", highlight=False, soft_wrap=True)

    def ended(self, result: Result) -> None:
        self.ended_steps.add(result.step)
        state = read_progress(self.store, self.run_name).get(result.step)
        if result.artifact:
            facts = facts_text(state.facts) if state else ""
            mark, text = "[green]made[/]", f"{duration(result.seconds)}  {facts}"
        elif result.skipped_for:
            mark, text = "[yellow]not run[/]", f"{result.skipped_for} failed"
        else:
            mark, text = "[red]failed[/]", result.error.what if result.error else ""
        self.console.print(f"{mark} [bold]{result.step}[/]  {text}", highlight=False, soft_wrap=True)

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
