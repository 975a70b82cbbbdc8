"""The training loop against a bare one, and its checkpoints. On a CPU: what a GPU does is gpu_evidence.py's.

    python benchmarks/bench_pretrain.py [--quick]

Yardstick: a bare torch loop over the same windows with the same model, precision, threads and AdamW, without DeepSpeed, Ray,
metrics or checkpoints. Ours is the stage as the sweep runs it: DeepSpeed under Ray Train, metrics every 10 steps, a state
written in the background every 50. The two take turns; clocks run over steps alone, from the tenth to the last, and
held-out losses are taken at the end, outside of them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from verdicts import ROOT, Verdicts, in_new_process

sys.path.insert(0, str(ROOT / "tests"))
WARM = 10  # steps before the clock starts
CHECKPOINT_EVERY = 50
SAME_LOSS = 0.01  # at the last step: both sides must have trained the same model on the same windows
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def make_job(folder: Path, name: str, steps: int, **runtime: Any) -> Any:
    """The paper's one-layer CRATE on made-up tokens, with a context and batch that a CPU can do in half a second."""
    import training_world as world

    from crate_model.config import ModelConfig
    from pipeline.artifacts.store import Store

    store = Store(folder / "store")
    tokens = store.find("tokens", "7" * 32) or world.make_tokens(store, n_train=400_000)
    model = ModelConfig(n_layer=1, n_head=4, d_model=128, n_ctx=256)
    batch = 2 * model.n_ctx
    recipe = {"batch_tokens": batch, "total_tokens": steps * batch, "eval_every_steps": 0, "warmup_steps": 10}
    job = world.make_job(folder, tokens, name, model, **recipe)
    settings = {"optimizer": "torch_fused", "micro_batch": 2, "log_every_steps": 10}
    return world.with_runtime(job, checkpoint_every_steps=CHECKPOINT_EVERY, **settings, **runtime)


def bare(folder: Path, steps: int) -> dict[str, float]:
    """Forward, backward, clip, AdamW over the job's own windows; nothing else."""
    import torch

    from crate_model.model import LanguageModel
    from pipeline.artifacts.tokens import TokenSplit
    from pipeline.pretrain.batches import Batches, plan_batches
    from pipeline.pretrain.optimizers import build, parameter_groups
    from pipeline.pretrain.schedule import learning_rate

    torch.set_num_threads(1)
    job = make_job(folder, "bare", steps)
    config, shape = job.settings.pretrain, job.settings.model
    batches = Batches(TokenSplit(job.tokens, "train"), 0, shape.n_ctx, 0, plan_batches(config, shape.n_ctx, 1, fits=2))
    torch.manual_seed(0)
    model = LanguageModel(shape)
    optimizer = build("torch_fused", parameter_groups(model, config.weight_decay), config)
    for step in range(steps):
        if step == WARM:
            started = time.perf_counter()
        windows = torch.from_numpy(batches.split.windows(batches.window_ids(step), shape.n_ctx))
        loss = model(windows[:, :-1], windows[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step, steps)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    seconds = time.perf_counter() - started
    speed = (steps - WARM) * config.batch_tokens / seconds
    return {"tokens_per_second": speed, "last_loss": loss.item(), "peak_mib": peak_mib()}


def ours(folder: Path, steps: int) -> dict[str, float]:
    """The stage under Ray Train on a private cluster; speed from the times that the worker gave its metrics."""
    import dataclasses

    import pyarrow.parquet as pq

    from pipeline import runtime
    from pipeline.config import RuntimeConfig
    from pipeline.tracking import TrackerSpec

    runtime.connect_ray(RuntimeConfig(cpus=2))
    import ray

    job = make_job(folder, "ours", steps)
    spec = TrackerSpec("spooled", "bench", "ours", str(folder / "spool"))
    job = dataclasses.replace(job, context=dataclasses.replace(job.context, tracker=spec))

    def task() -> Any:
        from pipeline.pretrain.stage import run

        return run(job.settings, {"tokens": job.tokens}, job.out_folder, job.context)

    started = time.perf_counter()
    ray.get(ray.remote(num_cpus=0)(task).remote())
    total = time.perf_counter() - started
    ray.shutdown()
    times = logged_times(folder / "spool")
    (first, then), (last, now) = min(times.items()), max(times.items())
    loss = pq.read_table(job.out_folder / "curve.parquet")["loss"][-1].as_py()
    return {"tokens_per_second": (last - first) / (now - then), "last_loss": loss, "seconds_with_start": total}


def logged_times(spool: Path) -> dict[int, float]:
    """Tokens seen -> when the worker logged its loss there, in seconds."""
    times = {}
    for path in spool.rglob("*.jsonl"):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            if "pretrain/loss" in entry.get("metrics", {}):
                times[entry["step"]] = entry["t"] / 1000
    return times


def checkpoints(folder: Path, steps: int) -> dict[str, float]:
    """Step times of the loop in this process, of those during a background write and of the others."""
    import torch

    from pipeline.pretrain import worker
    from pipeline.pretrain.__main__ import process_group
    from pipeline.pretrain.logbook import Logbook, Wishes

    marks: list[tuple[float, bool]] = []

    class TimedLogbook(Logbook):
        def after_step(self, run: Any) -> None:
            writing = self.writer._thread is not None and self.writer._thread.is_alive()
            marks.append((time.perf_counter(), writing))
            super().after_step(run)

    worker.Logbook = TimedLogbook  # type: ignore[misc]
    job = make_job(folder, "checkpoints", steps)
    with process_group(300):
        torch.set_num_threads(1)
        worker.work(job, torch.device("cpu"), Wishes())
    # The time between two marks holds a save of the first one's step, if any, and the whole step after it.
    seconds, during = [], []
    for step, ((sooner, was_writing), (later, is_writing)) in enumerate(itertools.pairwise(marks), start=1):
        seconds.append(later - sooner)
        if step > WARM and (was_writing or is_writing or step % CHECKPOINT_EVERY == 0):
            during.append(later - sooner)
    return {
        "median_step": median(seconds[WARM:]),
        "step_during_write": median(during),
        "worst_step_during_write": max(during),
        "n_during": len(during),
        "peak_mib": peak_mib(),
    }


def peak_mib() -> float:
    """The most memory this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def on_cpu(folder: Path, steps: int, rounds: int, verdicts: Verdicts) -> dict[str, Any]:
    runs: dict[str, list[dict[str, float]]] = {"bare": [], "ours": []}
    for number in range(rounds):
        for side, done in runs.items():
            place = folder / f"{side}{number}"
            place.mkdir()
            done.append(in_new_process("--side", side, place, steps, **ONE_THREAD))
            print(f"  {side}: {done[-1]['tokens_per_second']:.0f} tokens/s, last loss {done[-1]['last_loss']:.4f}")
    losses = [run["last_loss"] for done in runs.values() for run in done]
    assert max(losses) - min(losses) < SAME_LOSS, f"the two sides did not train the same model: {losses}"
    ratios = [a["tokens_per_second"] / b["tokens_per_second"] for a, b in zip(runs["ours"], runs["bare"], strict=True)]
    verdicts.at_least("loop_vs_bare", median(ratios), "x", 0.95)
    written = in_new_process("--side", "checkpoints", folder, max(steps, 110), **ONE_THREAD)
    verdicts.at_most("step_during_write", written["step_during_write"] / written["median_step"], "x", 1.1)
    return {"runs": runs, "checkpoints": written}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="60 steps a side instead of 310, one round")
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        side, folder, steps = arguments.side
        measure = {"bare": bare, "ours": ours, "checkpoints": checkpoints}[side]
        print(json.dumps(measure(Path(folder), int(steps))))
        return 0
    steps, rounds = (60, 1) if arguments.quick else (310, 3)
    verdicts = Verdicts("pretrain", "torch", "deepspeed", "ray")
    with tempfile.TemporaryDirectory() as temporary:
        figures = {"steps": steps} | on_cpu(Path(temporary), steps, rounds, verdicts)
    return verdicts.write(figures)


if __name__ == "__main__":
    sys.exit(main())
