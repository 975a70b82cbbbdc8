"""Stages in processes and time boxes of their own: whatever one does to itself, the next one runs, and the limit is kept."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Thread
from typing import TextIO

from gpu.session import STAGE, Session

PROGRAM = Path(__file__).parents[1] / "gpu_evidence.py"
GRACE = 3  # seconds between asking a stage to end and killing it; it is told to be done that much earlier
LEAST = 8  # seconds under which no stage is begun
AT_ONCE = 2  # stages in tiny sizes


@dataclass(frozen=True)
class Stage:
    """A part of the evidence: a function in a process of its own, with a box of `seconds`.

    One that runs `beside` others is not waited for until a stage that `waits_for` it; None waits for all of them.
    """

    name: str
    function: str  # module:function
    seconds: int
    beside: bool = False
    waits_for: tuple[str, ...] | None = None
    fills_cache: bool = False  # of the compiler, for stages that are timed
    needs_deepspeed: bool = False


@dataclass
class Running:
    """A stage's process, and where it prints."""

    stage: Stage
    process: subprocess.Popen[bytes]
    began: float
    box: float
    log: TextIO
    ended: float = 0.0

    def watch(self) -> None:
        """Note when it ends by itself, which may be long before somebody waits for it."""
        self.process.wait()
        self.ended = time.time()

    @property
    def over(self) -> bool:
        return bool(self.ended) or time.time() > self.began + self.box - GRACE


def run_stages(stages: Sequence[Stage], session: Session, limit: float) -> None:
    """Run them in order, all within `limit` seconds. How each ended is a row of its own."""
    end = time.time() + limit
    under_way: dict[str, Running] = {}
    try:
        for stage in stages:
            _make_way(stage, under_way, session)
            if why := why_not(stage, session, end - time.time()):
                session.write(stage.name, STAGE, left_out=why)
                continue
            under_way[stage.name] = start(stage, session, end)
            if not stage.beside and not session.tiny:
                _finish(under_way, [stage.name], session)
        _finish(under_way, list(under_way), session)
    finally:  # of an interruption: a stage would go on without its program
        for running in under_way.values():
            _end_group(running.process)


def _make_way(stage: Stage, under_way: dict[str, Running], session: Session) -> None:
    """Finish what has to be done before `stage` begins."""
    alone = stage.waits_for is None and not stage.beside and not session.tiny
    _finish(under_way, list(under_way) if alone else [n for n in stage.waits_for or () if n in under_way], session)
    while session.tiny and len(under_way) >= AT_ONCE:  # nothing is timed then, so they may disturb each other
        _finish(under_way, [name for name, running in under_way.items() if running.over], session)
        time.sleep(0.05)


def _finish(under_way: dict[str, Running], names: list[str], session: Session) -> None:
    for name in names:
        finish(under_way[name], session)
        del under_way[name]


def why_not(stage: Stage, session: Session, left: float) -> str:
    """Why a stage cannot run; empty when it can."""
    if stage.fills_cache and session.tiny:
        return "no code is generated in tiny sizes: there is no cache to fill"
    if left < LEAST:
        return f"{left:.0f} s were left"
    if stage.needs_deepspeed and not importlib.util.find_spec("deepspeed"):
        return "DeepSpeed is not installed"
    return ""


def start(stage: Stage, session: Session, end: float) -> Running:
    left = end - time.time()
    box = left if session.tiny else min(stage.seconds, left)  # tiny sizes try the code, not the time
    task = {"session": asdict(session), "stage": stage.name, "function": stage.function}
    task["deadline"] = time.time() + box - GRACE
    environment = dict(os.environ) | {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    if session.tiny:  # threads that wait for a core that others have would take the longest part
        environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    log = (Path(session.work) / f"{stage.name}.log").open("w+", encoding="utf-8", errors="replace")
    print(f"{stage.name}: at most {box:.0f} s of the {left:.0f} s left", flush=True)
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", str(PROGRAM), "--task", json.dumps(task)],
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,  # what it starts can be ended with it
    )
    running = Running(stage, process, time.time(), box, log)
    Thread(target=running.watch, daemon=True).start()
    return running


def finish(running: Running, session: Session) -> None:
    """Wait for a stage until its box is over, then end it; write how it ended, and its output to the log."""
    process, stage = running.process, running.stage
    in_time = True
    try:
        process.wait(max(0.0, running.began + running.box - GRACE - time.time()))
    except subprocess.TimeoutExpired:
        in_time = False
    _end_group(process)
    seconds = (running.ended or time.time()) - running.began
    running.log.seek(0)
    said = running.log.read()
    running.log.close()
    with (Path(session.out) / "log.txt").open("a", encoding="utf-8") as log:
        log.write(f"==== {stage.name}, {seconds:.0f} s, exit status {process.returncode}\n{said}\n")
    values = {"seconds": seconds, "box": running.box, "exit_status": process.returncode}
    if in_time and process.returncode == 0:
        return session.write(stage.name, STAGE, values=values)
    why = f"ended with status {process.returncode}" if in_time else f"ran over its box of {running.box:.0f} s"
    session.write(stage.name, STAGE, error=why, values=values, trace=said.splitlines()[-12:])


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Whatever is left of a stage's processes is asked to end, and killed after `GRACE` seconds."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:  # all have ended
            break
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            continue
        time.sleep(0.2)  # for what the stage had started to follow it
    process.wait()
