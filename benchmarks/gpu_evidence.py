"""Everything that one GPU can tell about this project, most valuable first, in one command of at most nine minutes.

    python benchmarks/gpu_evidence.py [--limit 525] [--stages train,engine] [--tiny] [--out FOLDER] [--store FOLDER]
    python benchmarks/gpu_evidence.py --summary FOLDER [--markdown]

Each stage has a process and a time box of its own, so that a crash or a poisoned CUDA context costs one stage. What it finds is
a row in `gpu.jsonl` at once; a failure and a time box that ran out are rows too. At the end the targets are judged and a page of
summary is printed (`summary.txt`); `profile.txt`, `log.txt` and others lie beside it. It needs torch 2.8 or later and no network,
neither Ray nor MLflow. `--tiny` runs the same code in small sizes on a CPU: nothing of it is a measurement. `--store` brings
tokens of the packaged text along for a machine that cannot make them. See docs/gpu.md.
"""

from __future__ import annotations

import argparse
import importlib
import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpu.boxes import Stage, run_stages
from gpu.session import Evidence, Session, read_rows, utc_now
from gpu.summary import markdown, page
from gpu.targets import judge
from verdicts import ROOT, Verdicts

RESERVE = 6  # seconds of the limit that are kept for the targets and the summary

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
    Stage("variants", "gpu.variants:run", 30),
    Stage("profile", "gpu.profile_steps:run", 35),
    Stage("kernels", "gpu.kernels:run", 35),
    Stage("attention", "gpu.attention:run", 25),
    Stage("optimizers", "gpu.optimizers:run", 25, needs_deepspeed=True),
    Stage("sae", "gpu.sae:run", 30),
)


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
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the stages under way are ended too
    with opened(options) as session:
        if session.card or session.tiny:
            run_stages(options.stages, session, options.limit - RESERVE - (time.time() - began))
        return conclude(session)


if __name__ == "__main__":
    sys.exit(main())
