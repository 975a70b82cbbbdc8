"""Neurons' records against the plain way; against a forward pass alone; memory; workers.

    python benchmarks/bench_activations.py [--quick]

A three-layer CRATE of the paper's width (d=128, context 1024, vocabulary 50,304) with untrained weights, on text of random ids
with natural frequencies, cut into documents. Yardstick: `plain_activations.py`. Every side runs in a process of its own, in turn.

- records_speed: the whole stage on Ray Data with as many workers as there are cores, start of the actors included, against the
  yardstick with as many threads, which makes one layer and is counted for three. records_size: bytes on disk. Both in float32;
  where the processor multiplies bfloat16, ours once more with `activations.precision: bf16`, over the same yardstick.
- extraction_over_forward: tokens a second of reading all layers' neurons, on one thread, over those of the model's own forward
  pass (logits of every position); beside it, over a pass that stops at the last neurons. The quantiles' measuring pass counts.
- peak_memory: of one worker that then writes the records too, at ten times the tokens (quick: four times). The model has one
  layer here: what grew with the tokens would grow in each layer alike, and five million tokens of three take a core long.
- scan_over_plain_torch: the compiled kernels that look at every activation, against the same in plain torch, on one thread.
- finish: the rate at which one process puts the workers' parts together. The estimate in `docs/activations.md` rests on it.
- one_neuron_open, one_neuron_read: of 12 layers x 3,072 neurons, made up (`synthetic_records.py`): milliseconds to open the files
  and read a neuron, and to read another.
- speed_of_2_workers: over one worker's, in turn with it, where there are two cores. Beside it speed_of_2_cores: of two passes to
  the last neurons at once over one, since hyperthreads of one core are counted as two.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

from activation_world import N_CTX, short_tokens, stage_arguments, world
from verdicts import Verdicts, in_new_process


def plain(folder: Path, n_tokens: int) -> dict[str, float]:
    """The yardstick on the first layer, counted for all: every layer costs it a pass of its own, as many sorts and files."""
    import torch
    from plain_activations import make_records

    from pipeline.artifacts.checkpoint import load_model
    from pipeline.artifacts.tokens import TokenSplit
    from pipeline.artifacts.vocabulary import token_strings

    torch.set_num_threads(os.cpu_count() or 1)
    inputs, _ = world(folder, n_tokens)
    model, split, strings = load_model(inputs["pretrain"]), TokenSplit(inputs["tokens"], "val"), token_strings()
    with tempfile.TemporaryDirectory(dir=folder) as out:
        started = time.perf_counter()
        make_records(model, split, range(1), n_tokens // N_CTX, short_tokens(n_tokens) // N_CTX, strings, Path(out))
        seconds = time.perf_counter() - started
        size = sum(path.stat().st_size for path in Path(out).rglob("*.json"))
    n_layer = model.config.n_layer
    return {"seconds": n_layer * seconds, "bytes": n_layer * size, "peak_bytes": peak()}


def stage(folder: Path, n_tokens: int, workers: int = 0, precision: str = "fp32") -> dict[str, float]:
    """The whole stage on a private Ray cluster that is up already."""
    from pipeline import runtime
    from pipeline.activations.stage import run
    from pipeline.config import RuntimeConfig

    cores = os.cpu_count() or 1
    settings, inputs, context = stage_arguments(folder, n_tokens, workers or cores, precision=precision)
    runtime.connect_ray(RuntimeConfig(cpus=cores))
    with tempfile.TemporaryDirectory(dir=folder) as out:
        started = time.perf_counter()
        run(settings, inputs, Path(out), context)
        seconds = time.perf_counter() - started
        size = sum(path.stat().st_size for path in Path(out).iterdir())
    return {"seconds": seconds, "bytes": size}


def stage_bf16(folder: Path, n_tokens: int) -> dict[str, float]:
    return stage(folder, n_tokens, precision="bf16")


def one_worker(folder: Path, n_tokens: int) -> dict[str, float]:
    return stage(folder, n_tokens, 1)


def memory(folder: Path, n_tokens: int) -> dict[str, float]:
    """`core` with a model of one layer."""
    return core(folder, n_tokens, n_layer=1)


def core(folder: Path, n_tokens: int, n_layer: int = 3) -> dict[str, float]:
    """One worker's reading and the writing of the records, without Ray and without its start; only the reading is timed."""
    from pipeline.activations.extract import Extractor
    from pipeline.activations.finish import write_records
    from pipeline.activations.job import plan_job

    job = plan_job(*stage_arguments(folder, n_tokens, 1, n_layer))
    extractor = Extractor(job)
    wait_for_device()
    started = time.perf_counter()
    tokens = sum(extractor.read_shard(shard) for shard in range(len(job.shards)))
    wait_for_device()
    read = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=folder) as out:
        write_records(job, extractor.corpus, Path(out))
    written = time.perf_counter()
    parts = sum(job.shard_file(shard).stat().st_size for shard in range(len(job.shards)))
    rates = {"tokens_per_second": tokens / (read - started), "finish_bytes_per_second": parts / (written - read)}
    return rates | {"parts_bytes": parts, "peak_bytes": peak()}


def scan(_folder: Path, _n_tokens: int) -> dict[str, float]:
    """Nanoseconds an activation of what gathering looks for in every one, on one thread: plain torch, and the kernels."""
    import numpy as np
    import torch

    from pipeline.activations import scan
    from pipeline.activations.priority import name_hashes, token_hashes
    from pipeline.activations.quantiles import bin_bounds, edge_keys, level_counts

    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows, n_neurons = 8, 512
    values = torch.randn(rows, N_CTX, n_neurons).relu()
    edges = edge_keys(level_counts(values.flatten(0, 1), False).numpy(), (0.5, 0.9, 0.99, 0.999), False)
    hashes = token_hashes(0, np.arange(rows * N_CTX)).reshape(rows, N_CTX), name_hashes(0, "site", n_neurons)
    told = (
        torch.ones(rows, N_CTX, dtype=torch.bool),
        *map(torch.from_numpy, hashes),
        bin_bounds(torch.from_numpy(edges), 5),
    )
    ways = {
        "plain": lambda: (scan.plain_extremes(values, *told), scan.plain_statistics(values)),
        "kernels": lambda: (scan.extremes(values, *told), scan.statistics(values)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(6):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    return {name: median(times[1:]) / values.numel() * 1e9 for name, times in seconds.items()}  # the first one compiles


def forward(folder: Path, n_tokens: int) -> dict[str, float]:
    """The model's forward pass alone: logits of every position."""
    return _forward(folder, n_tokens, lambda reader, ids: reader.model(ids.to(reader.device)))


def body(folder: Path, n_tokens: int) -> dict[str, float]:
    """A pass that stops where the last neurons are."""
    return _forward(folder, n_tokens, lambda reader, ids: list(reader.read(ids)))


def _forward(folder: Path, n_tokens: int, go: Any) -> dict[str, float]:
    import torch

    from pipeline.activations.extract import Extractor
    from pipeline.activations.job import plan_job

    extractor = Extractor(plan_job(*stage_arguments(folder, n_tokens, 1)))
    batches = min(extractor.corpus.n_batches, 16)  # a steady rate needs no more
    ids = [torch.from_numpy(extractor.corpus.ids(batch)) for batch in range(batches)]
    with torch.no_grad():
        go(extractor.reader, ids[0])
        wait_for_device()
        started = time.perf_counter()
        for of_batch in ids:
            go(extractor.reader, of_batch)
        wait_for_device()
    return {"tokens_per_second": sum(i.numel() for i in ids) / (time.perf_counter() - started)}


def wait_for_device() -> None:
    """A GPU, where there is one, answers before it is done: no clock is read without waiting for it."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def one_neuron(folder: Path, n_tokens: int) -> dict[str, float]:
    """Finding one neuron of 36,864 again, with as many excerpts each as the published protocol keeps, or a tenth."""
    from synthetic_records import time_one_neuron

    with tempfile.TemporaryDirectory(dir=folder) as out:
        return time_one_neuron(Path(out) / "records", 200 if n_tokens >= 2**20 else 20)


def peak() -> int:
    from pipeline.this_machine import peak_rss_bytes

    return peak_rss_bytes()


SIDES = {f.__name__: f for f in (plain, stage, stage_bf16, one_worker, core, memory, scan, forward, body, one_neuron)}


def side_by_side(side: str, folder: Path, n_tokens: int) -> dict[str, float]:
    figures = in_new_process("--side", side, folder, n_tokens)
    print(f"  {side}, {n_tokens} tokens: " + ", ".join(f"{k} {v:.4g}" for k, v in figures.items()), flush=True)
    return figures


def at_once(side: str, folder: Path, n_tokens: int, count: int) -> list[dict[str, float]]:
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda _: side_by_side(side, folder, n_tokens), range(count)))


def measure(folder: Path, quick: bool, verdicts: Verdicts) -> dict[str, Any]:
    from crate_model.ops.precision import fast_bf16

    n_tokens, rounds = (2**17, 1) if quick else (2**20, 2)
    few, many = (110_000, 440_000) if quick else (500_000, 5_000_000)
    runs: dict[str, Any] = {side: [] for side in ("forward", "body", "stage")}
    for _ in range(rounds):
        for side in ("forward", "body"):
            runs[side].append(side_by_side(side, folder, n_tokens))
    runs["core"] = [side_by_side("core", folder, n_tokens)]  # minutes long, which is a mean by itself
    runs["plain"] = [side_by_side("plain", folder, n_tokens)]
    cores = os.cpu_count() or 1
    runs["one_worker"] = []
    for _ in range(rounds):
        if cores >= 2:
            runs["one_worker"].append(side_by_side("one_worker", folder, n_tokens))
        runs["stage"].append(side_by_side("stage", folder, n_tokens))
    runs["stage_bf16"] = [side_by_side("stage_bf16", folder, n_tokens)] if fast_bf16() else []
    runs["memory"] = [side_by_side("memory", folder, n) for n in (few, many)]
    runs["scan"] = [side_by_side("scan", folder, n_tokens)]
    runs["one_neuron"] = [side_by_side("one_neuron", folder, n_tokens)]

    def rate(side: str) -> float:
        return median(run["tokens_per_second"] for run in runs[side])

    seconds = median(run["seconds"] for run in runs["stage"])
    growth = runs["memory"][1]["peak_bytes"] / runs["memory"][0]["peak_bytes"]
    verdicts.at_least("records_speed", runs["plain"][0]["seconds"] / seconds, "x", 15)
    verdicts.at_least("records_size", runs["plain"][0]["bytes"] / runs["stage"][0]["bytes"], "x smaller", 20)
    for run in runs["stage_bf16"]:
        verdicts.measured("records_speed_bf16", runs["plain"][0]["seconds"] / run["seconds"], "x")
        verdicts.measured("records_size_bf16", runs["plain"][0]["bytes"] / run["bytes"], "x smaller")
    if not runs["stage_bf16"]:
        verdicts.not_run("records_bf16", "x", "", "the processor does not multiply bfloat16")
    verdicts.at_least("extraction_over_forward", rate("core") / rate("forward"), "x", 0.6)
    verdicts.measured("extraction_over_pass_to_last_neurons", rate("core") / rate("body"), "x")
    verdicts.measured("scan_over_plain_torch", runs["scan"][0]["plain"] / runs["scan"][0]["kernels"], "x")
    verdicts.measured("finish", runs["memory"][1]["finish_bytes_per_second"] / 1e6, "MB/s")
    verdicts.between(f"peak_memory_at_{many // few}x_tokens", growth, "x", 0.9, 1.1)
    for name in ("open", "read"):
        verdicts.at_most(f"one_neuron_{name}", runs["one_neuron"][0][f"{name}_ms"], "ms", 100)
    if cores >= 2:
        runs["bodies"] = [at_once("body", folder, n_tokens, cores) for _ in range(rounds)]
        scale = median(sum(run["tokens_per_second"] for run in beside) for beside in runs["bodies"]) / rate("body")
        gain = median(
            one["seconds"] / all_["seconds"] for one, all_ in zip(runs["one_worker"], runs["stage"], strict=True)
        )
        verdicts.measured(f"speed_of_{cores}_cores", scale, "x one's")
        verdicts.at_least(f"speed_of_{cores}_workers", gain, "x one's", 0.75 * cores)
    else:
        verdicts.not_run("speed_of_2_workers", "x one's", ">= 1.5", "one core")
    return {"n_tokens": n_tokens, "runs": runs}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="an eighth of the tokens, one round instead of two")
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        side, folder, n_tokens = arguments.side
        print(json.dumps(SIDES[side](Path(folder), int(n_tokens))))
        return 0
    verdicts = Verdicts("activations", "torch", "ray", "pyarrow")
    with tempfile.TemporaryDirectory() as folder:
        return verdicts.write(measure(Path(folder), arguments.quick, verdicts))


if __name__ == "__main__":
    sys.exit(main())
