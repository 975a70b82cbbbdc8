"""Progress is a small whole file; rate and time left count this attempt's work only."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.manifest import Manifest
from pipeline.artifacts.store import Store
from pipeline.execute import Result
from pipeline.progress import Progress, ProgressState, amount, duration, progress_text, read_progress
from pipeline.watch import LOG_EVERY_SECONDS, Watch


def test_what_is_written_is_read(tmp_path: Path) -> None:
    store = Store(tmp_path)
    progress = Progress(store, "run", "crate-1l/pretrain", 100, "tokens")
    progress.start_at(40)
    progress.update(100, loss=5.25)
    state = read_progress(store, "run")["crate-1l/pretrain"]
    assert (state.done, state.total, state.facts) == (100, 100, {"loss": 5.25})
    assert read_progress(store, "absent") == {}


def test_a_sentence_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store, out = Store(tmp_path), io.StringIO()
    caplog.set_level(logging.INFO)
    with Watch(store, "run", Console(file=out, width=200)) as watch:
        progress = Progress(store, "run", "crate-1l/pretrain", 100, "tokens")
        progress.start_at(0, ["the checkpoint [5] is torn"])
        for _ in range(2):
            watch._logged = -LOG_EVERY_SECONDS
            watch.tick()
        watch.ended(Result("crate-1l/pretrain"))
    assert out.getvalue().count("crate-1l/pretrain: the checkpoint [5] is torn") == 1
    assert caplog.text.count("torn") == 1


def test_an_earlier_sweep_s_numbers_stand_at_no_step_of_this_one(tmp_path: Path) -> None:
    store, out = Store(tmp_path), io.StringIO()
    Progress(store, "run", "crate-1l/pretrain", 100, "tokens").update(100, loss=5.25)
    with Watch(store, "run", Console(file=out, width=200)) as watch:
        watch.ended(Result("crate-1l/pretrain", Artifact(tmp_path, Manifest("pretrain", 1, "0", {}, {}, (), {}))))
    assert "made crate-1l/pretrain" in out.getvalue() and "5.25" not in out.getvalue()


def test_the_rate_leaves_out_what_an_earlier_attempt_did() -> None:
    state = ProgressState("s", done=60, total=100, unit="tokens", started=10, done_at_start=40, updated=20)
    assert state.rate == 2
    assert state.seconds_left == 20
    assert progress_text(state) == "60 of 100 tokens  2 tokens/s  20 s left"


def test_a_rate_that_the_step_measures_itself_is_the_one_that_is_told() -> None:
    facts = {"loss": 5.25, "tokens/s": 1850}
    state = ProgressState("s", 60, 100, "tokens", started=10, done_at_start=40, updated=20, facts=facts)
    assert progress_text(state) == "60 of 100 tokens  1.85k tokens/s  20 s left  loss 5.25"


def test_numbers_as_people_say_them() -> None:
    assert [amount(x) for x in (0, 950, 12_300, 4.56e6, 157.29e9)] == ["0", "950", "12.3k", "4.56M", "157B"]
    assert [duration(x) for x in (None, 5, 65, 3700, 200_000)] == ["?", "5 s", "1 min 05 s", "1 h 01 min", "2.3 d"]
