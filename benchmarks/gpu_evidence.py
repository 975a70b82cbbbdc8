"""Everything that one GPU can tell about this project, most valuable first, in one command of at most nine minutes.

    python benchmarks/gpu_evidence.py [--limit 525] [--stages train,engine] [--tiny] [--out FOLDER] [--store FOLDER]
    python benchmarks/gpu_evidence.py --summary FOLDER [--markdown]

Stages run one after the other, each in a process and a time box of its own, so that a crash or a poisoned CUDA context costs one
stage. What a stage finds is a row in `gpu.jsonl` at once; a failure and a time box that ran out are rows too. At the end the
targets are judged and a page of summary is printed (`summary.txt`); `profile.txt` and `log.txt` lie beside it. It needs torch 2.8
or later and no network, neither Ray nor MLflow. `--tiny` runs the same code in small sizes on a CPU: nothing of it is a
measurement. `--store` brings tokens of the packaged text along for a machine that cannot make them. See docs/gpu.md.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Thread
from typing import Any, TextIO

from gpu.session import STAGE, Evidence, Session, read_rows, utc_now
from gpu.summary import markdown, page
from gpu.targets import judge
from verdicts import ROOT, Verdicts

RESERVE = 6  # seconds of the limit that are kept for the targets and the summary
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


# What is not timed runs side by side, while compilers fill their caches; then what is timed, alone on the card.
STAGES = (
    Stage("tokens", "gpu.world:read_text", 90, beside=True),
    Stage("environment", "gpu.environment:run", 35, waits_for=()),
    Stage("warm_ours", "gpu.warm:ours", 130, beside=True, fills_cache=True),
    Stage("warm_plain", "gpu.warm:plain", 130, beside=True, fills_cache=True),
    Stage("warm_small_crate", "gpu.warm:small_crate", 130, beside=True, fills_cache=True),
    Stage("warm_small_gpt2", "gpu.warm:small_gpt2", 130, beside=True, fills_cache=True),
    Stage("parity", "gpu.parity:run", 130, beside=True),
    Stage("parity_models", "gpu.parity_models:run", 130, beside=True),
    Stage("resume", "gpu.resume:run", 130, beside=True, waits_for=("tokens",), needs_deepspeed=True),
    Stage("out_of_memory", "gpu.out_of_memory:run", 130, beside=True, needs_deepspeed=True),
    Stage("sanitizer", "gpu.sanitizer:run", 130, beside=True),
    Stage("warm_optimizer", "gpu.warm:optimizer", 130, beside=True, fills_cache=True, needs_deepspeed=True),
    Stage("train", "gpu.train:run", 100),
    Stage("engine", "gpu.engine:run", 100, needs_deepspeed=True),
    Stage("loop", "gpu.loop:run", 60, needs_deepspeed=True),
    Stage("small", "gpu.small:run", 55),
    Stage("activations", "gpu.activations:run", 35),
    Stage("profile", "gpu.profile_steps:run", 35),
    Stage("kernels", "gpu.kernels:run", 35),
    Stage("attention", "gpu.attention:run", 25),
    Stage("optimizers", "gpu.optimizers:run", 25, needs_deepspeed=True),
    Stage("sae", "gpu.sae:run", 30),
)


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
    beside: dict[str, Running] = {}
    for stage in stages:
        make_way(stage, beside, session)
        if why := why_not(stage, session, end - time.time()):
            session.write(stage.name, STAGE, left_out=why)
            continue
        beside[stage.name] = start(stage, session, end)
        if not stage.beside and not session.tiny:
            finish(beside.pop(stage.name), session)
    for running in beside.values():
        finish(running, session)


def make_way(stage: Stage, beside: dict[str, Running], session: Session) -> None:
    """End what has to be done before `stage` begins."""
    alone = stage.waits_for is None and not stage.beside and not session.tiny
    for name in list(beside) if alone else stage.waits_for or ():
        if name in beside:
            finish(beside.pop(name), session)
    while session.tiny and len(beside) >= AT_ONCE:  # nothing is timed then, so they may disturb each other
        for name in [name for name, running in beside.items() if running.over]:
            finish(beside.pop(name), session)
        time.sleep(0.05)


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
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    if session.tiny:  # threads that wait for a core that others have would take the longest part
        environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    log = (Path(session.work) / f"{stage.name}.log").open("w+", encoding="utf-8", errors="replace")
    print(f"{stage.name}: at most {box:.0f} s of the {left:.0f} s left", flush=True)
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", str(Path(__file__)), "--task", json.dumps(task)],
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


def work(task: dict[str, Any]) -> None:
    """A stage's process. The tests' own makers of jobs and cases are found by their folders, since some other package may be
    called `tests` on this machine."""
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "unit")]
    evidence = Evidence(Session(**task["session"]), task["stage"], task["deadline"])
    module, _, function = task["function"].partition(":")
    getattr(importlib.import_module(module), function)(evidence)


@contextmanager
def opened(options: argparse.Namespace) -> Iterator[Session]:
    """The session of this run, with a folder for its work."""
    import torch

    from pipeline.this_machine import git_revision

    card = torch.cuda.get_device_name() if torch.cuda.is_available() and not options.tiny else None
    options.out.mkdir(parents=True, exist_ok=True)
    store = str(options.store.resolve()) if options.store else ""
    with tempfile.TemporaryDirectory(prefix="gpu-evidence-") as work_folder:
        about = {"card": card, "torch": torch.__version__, "cuda": torch.version.cuda, "git": git_revision()}
        yield Session(utc_now(), str(options.out.resolve()), work_folder, store, options.tiny, **about)


def conclude(session: Session) -> int:
    """Judge the targets, write them as rows, print the page. Returns the exit status: 1 for a missed target or an error."""
    folder = Path(session.out)
    verdicts = Verdicts("gpu", "torch")
    judge(verdicts, session, read_rows(folder))
    for said in verdicts.said:
        session.write("targets", said["name"], values=said)
    rows = read_rows(folder)
    (folder / "summary.txt").write_text(page(rows), encoding="utf-8")
    print(page(rows))
    return int(any("error" in row or row.get("values", {}).get("met") is False for row in rows))


def stages_named(text: str) -> list[Stage]:
    names = text.split(",") if text else [stage.name for stage in STAGES]
    unknown = set(names) - {stage.name for stage in STAGES}
    if unknown:
        raise argparse.ArgumentTypeError(
            f"no stage {', '.join(unknown)}; there are {', '.join(s.name for s in STAGES)}"
        )
    return [stage for stage in STAGES if stage.name in names]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--limit", type=float, default=525, help="seconds for everything")
    parser.add_argument(
        "--stages", type=stages_named, default="", help="some alone: " + ", ".join(s.name for s in STAGES)
    )
    parser.add_argument("--tiny", action="store_true", help="small sizes on a CPU: tries the code, measures nothing")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--store", type=Path, help="a store with tokens of the packaged text")
    parser.add_argument("--summary", type=Path, metavar="FOLDER", help="print the page of the last run in FOLDER")
    parser.add_argument("--markdown", action="store_true", help="with --summary: its table for docs/gpu.md")
    parser.add_argument("--task", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        work(options.task)
        return 0
    if options.summary:
        rows = read_rows(options.summary)
        print(markdown(rows) if options.markdown else page(rows))
        return 0
    began = time.time()
    with opened(options) as session:
        if session.card or session.tiny:
            run_stages(options.stages, session, options.limit - RESERVE - (time.time() - began))
        return conclude(session)


if __name__ == "__main__":
    sys.exit(main())
