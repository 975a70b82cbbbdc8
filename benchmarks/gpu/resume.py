"""`python -m pipeline.pretrain` itself: killed, stopped and gone on with, beside an uninterrupted run and one under torchrun."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verdicts import ROOT

from gpu.exactness import relative
from gpu.session import Evidence
from gpu.world import text_store
from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.store import Store
from pipeline.pretrain import resume

SAVE_EVERY = 10  # steps
SAME_LOSS = 0.02  # nats; kernels that add up in another order each time move a loss by much less


def run(evidence: Evidence) -> None:
    evidence.attempt("resume", killed_and_gone_on, needs=40)


@dataclass(frozen=True)
class Training:
    """A training with a store of its own, run by the command line."""

    folder: Path

    @classmethod
    def prepared(cls, evidence: Evidence, name: str, n_steps: int, **runtime: Any) -> Training:
        folder = evidence.work / name
        text, tokens = text_store(evidence)
        shutil.copytree(text, folder / "store")
        n_layer, n_head, d_model, n_ctx = evidence.pick((3, 4, 128, 1024), (2, 2, 32, 64))
        batch_tokens, micro_batch = evidence.pick((262_144, 32), (64, 1))
        tree = {
            "name": name,
            "tokens": tokens,
            "model": {"n_layer": n_layer, "n_head": n_head, "d_model": d_model, "n_ctx": n_ctx},
            "pretrain": {
                "batch_tokens": batch_tokens,
                "total_tokens": n_steps * batch_tokens,
                "learning_rate": 1e-3,
                "min_learning_rate": 1e-4,
                "warmup_steps": 20,
                "eval_every_steps": 50,
                "eval_tokens": evidence.pick(131_072, 256),
            },
            "runtime": {
                "store": str(folder / "store"),
                "micro_batch": micro_batch,
                "checkpoint_every_steps": SAVE_EVERY,
                "log_every_steps": 5,
                "threads_per_worker": evidence.pick(0, 1),
                "compile": False,  # three trainings that start five times would mostly compile
                **runtime,
            },
        }
        (folder / "config.yaml").write_text(json.dumps(tree), encoding="utf-8")  # JSON is YAML
        return cls(folder)

    def start(self, torchrun: bool = False) -> subprocess.Popen[bytes]:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"] if torchrun else []
        command = [sys.executable, "-W", "ignore", *launcher, "-m", "pipeline.pretrain"]
        with (self.folder / "log.txt").open("ab") as log:
            command += ["--config", str(self.folder / "config.yaml")]
            return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)

    def saved(self) -> int:
        """The newest step of which a state was saved; 0 before the first."""
        found = list((self.folder / "store" / ".scratch").glob("*/resume"))
        return max([0, *(step for path in found for step in resume.steps(path))])

    def log(self) -> list[str]:
        path = self.folder / "log.txt"
        return path.read_text("utf-8", errors="replace").splitlines() if path.is_file() else []

    def artifact(self) -> Artifact:
        [artifact] = Store(self.folder / "store").all_of("pretrain")
        return artifact


def killed_and_gone_on(evidence: Evidence) -> None:
    n_steps = evidence.pick(160, 120)
    whole, broken = (Training.prepared(evidence, name, n_steps) for name in ("whole", "broken"))
    beside = {whole: False}  # training -> whether under torchrun; one start less in tiny sizes, where it costs the most
    if not evidence.tiny:
        beside[Training.prepared(evidence, "under-torchrun", n_steps // 4, zero_stage=2)] = True
    try:
        running = {training.folder.name: training.start(torchrun) for training, torchrun in beside.items()}
        evidence.row("interrupted", **interrupt(evidence, broken))
        running["gone on"] = broken.start()
        statuses = {name: wait(evidence, process) for name, process in running.items()}
        evidence.row("ended", ok=set(statuses.values()) == {0}, statuses=statuses)
        evidence.row("gone on with", **compared(whole.artifact(), broken.artifact()))
        evidence.row("told", **{training.folder.name: told(training) for training in beside})
    finally:
        logs = ["\n".join([f"==== {each.folder.name}", *each.log()]) for each in (broken, *beside)]
        (evidence.out / "resume.txt").write_text("\n".join(logs) + "\n", encoding="utf-8")


def interrupt(evidence: Evidence, training: Training) -> dict[str, Any]:
    """Kill it once a state was saved, begin anew, and ask it to end by SIGTERM: it saves and leaves."""
    first = training.start()
    wait_for_step(evidence, training, SAVE_EVERY, first)
    first.kill()
    first.wait()
    killed_at = training.saved()
    second = training.start()
    wait_for_step(evidence, training, killed_at + SAVE_EVERY, second)
    second.send_signal(signal.SIGTERM)
    status = wait(evidence, second)
    said = any("stopped as asked" in line for line in training.log())
    stopped_at = training.saved()
    ok = 0 < killed_at < stopped_at and said and status != 0
    return {"ok": ok, "killed_after_step": killed_at, "stopped_after_step": stopped_at, "status_on_sigterm": status}


def wait_for_step(evidence: Evidence, training: Training, step: int, process: subprocess.Popen[bytes]) -> None:
    while training.saved() < step:
        if process.poll() is not None:
            raise RuntimeError(f"it ended before step {step}: " + " / ".join(training.log()[-6:]))
        if evidence.left() < 15:
            process.kill()
            raise TimeoutError(f"step {step} was not saved in time: " + " / ".join(training.log()[-3:]))
        time.sleep(0.02)


def wait(evidence: Evidence, process: subprocess.Popen[bytes]) -> int | None:
    """Its exit status; None when it was ended because time ran out."""
    try:
        return process.wait(max(1.0, evidence.left() - 5))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return None


def compared(whole: Artifact, broken: Artifact) -> dict[str, Any]:
    """The run that was interrupted twice against the one that was not: same batches, same curve, same weights."""
    import torch
    from safetensors.torch import load_file

    from pipeline.artifacts.checkpoint import read_curve

    weights = [load_file(each.file("model.safetensors")) for each in (whole, broken)]
    losses = [read_curve(each)["loss"].to_pylist() for each in (whole, broken)]
    difference = max(abs(a - b) for a, b in zip(*losses, strict=True))
    same_batches = whole.summary["consumed"] == broken.summary["consumed"]
    return {
        "ok": same_batches and difference < SAME_LOSS,
        "same_batches": same_batches,
        "same_bits": all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0]),
        "weights_distance": max(relative(weights[1][name], weights[0][name]) for name in weights[0]),
        "largest_loss_difference": difference,
        "first_loss": losses[0][0],
        "last_losses": [of_run[-1] for of_run in losses],
        "val_losses": [each.summary["val_loss"] for each in (whole, broken)],
        "optimizer": whole.summary["optimizer"],
    }


def told(training: Training) -> list[str]:
    """Its last speeds, and what it said of optimizer, compiler and memory."""
    lines = training.log()
    steps = [line for line in lines if re.match(r"step \d+ of", line)][-3:]
    return [line[:300] for line in lines if re.search("optimizer|compile|memory|[Tt]riton", line)][:6] + steps
