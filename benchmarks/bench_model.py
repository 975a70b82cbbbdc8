"""Our CRATE against a plain module written from its equations: speed and memory of a training step, the ISTA block, the loss.

    python benchmarks/bench_model.py [--quick]

The yardstick (plain_model.py) takes five dictionary products, makes full float32 logits and lets autograd keep what it likes;
its attention is torch's fused one, as in the published code. Every comparison runs both sides in turn in one process and
reports the median of the paired ratios. CRATE-3L: d=128, 3 layers, 1024 tokens, a vocabulary of 50304, forward and backward.
Peak memory is that of a process of its own, above what it held before its first step. What a GPU does: gpu_evidence.py.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from verdicts import Verdicts, in_new_process

WORDS = 50304


def build(side: str, n_ctx: int, seed: int = 0) -> Any:
    """`plain` or `ours`, with the same initial weights for the same seed."""
    import torch
    from plain_model import PlainCrate

    from crate_model.config import ModelConfig
    from crate_model.model import LanguageModel

    torch.manual_seed(seed)
    ours = LanguageModel(ModelConfig("crate", 3, 4, 128, n_ctx, WORDS))
    return ours if side == "ours" else PlainCrate(3, 4, 128, n_ctx, WORDS).take_weights(ours)


def batch(n_rows: int, n_ctx: int, seed: int = 0) -> tuple[Any, Any]:
    """Ids and targets with Zipf's frequencies and a successor that depends on the word: something to learn."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(n_rows, n_ctx + 1, generator=generator)
    ids = ((50257.0**uniform) - 1).long().clamp(0, 50256)  # density 1/rank
    ids[:, 1::2] = (ids[:, 0:-1:2] * 7 + 3) % 50257
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def step_seconds(model: Any, data: tuple[Any, Any], autocast: bool = False) -> float:
    import torch

    model.zero_grad(set_to_none=True)
    started = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(*data)
    loss.backward()
    return time.perf_counter() - started


def paired(sides: dict[str, Callable[[], float]], rounds: int, warm_up: bool = True) -> dict[str, list[float]]:
    """Seconds of every side, run in turn `rounds` times after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for count in range(rounds + warm_up):
        for name, run in sides.items():
            taken = run()
            if count >= warm_up:
                seconds[name].append(taken)
    return seconds


def ratio(seconds: dict[str, list[float]], slower: str, faster: str) -> float:
    return statistics.median(a / b for a, b in zip(seconds[slower], seconds[faster], strict=True))


def training_steps(threads: int, n_ctx: int, rounds: int) -> dict[str, list[float]]:
    """The float32 yardstick, ours in float32, and ours with bfloat16 weights."""
    import torch

    torch.set_num_threads(threads)
    data = batch(2, n_ctx)
    plain, ours = build("plain", n_ctx), build("ours", n_ctx)
    narrow = build("ours", n_ctx).bfloat16()
    models = {"plain_fp32": plain, "ours_fp32": ours, "ours_bf16_weights": narrow}
    return paired({name: lambda model=model: step_seconds(model, data) for name, model in models.items()}, rounds)


def autocast_steps(n_ctx: int, rounds: int) -> dict[str, list[float]]:
    """The yardstick under bfloat16 autocast, which a CPU without bfloat16 products emulates, and ours in its own precision."""
    import torch

    from crate_model.ops import precision

    torch.set_num_threads(2)
    data = batch(1, n_ctx)
    plain, ours = build("plain", n_ctx), build("ours", n_ctx).to(precision.default_dtype("cpu"))
    sides = {
        "plain_autocast": lambda: step_seconds(plain, data, autocast=True),
        "ours_default": lambda: step_seconds(ours, data),
    }
    return paired(sides, rounds, warm_up=False)


def ista_block(rounds: int) -> dict[str, list[float]]:
    """Forward and backward of the ISTA block alone at d=768, 1024 tokens, float32."""
    import torch
    from plain_model import PlainBlock

    from crate_model.ops.ista import ista

    torch.set_num_threads(2)
    torch.manual_seed(0)
    plain = PlainBlock(768, 12)
    torch.nn.init.kaiming_uniform_(plain.w)
    z = torch.randn(1024, 768, requires_grad=True)

    def seconds(run: Callable[[], Any]) -> float:
        z.grad = plain.w.grad = None
        started = time.perf_counter()
        run().sum().backward()
        return time.perf_counter() - started

    sides = {
        "plain": lambda: seconds(lambda: plain.ista(z)),
        "ours": lambda: seconds(lambda: ista(z, plain.w, 0.1, 0.1, 2)),
    }
    return paired(sides, rounds)


def loss_curve(side: str, n_steps: int, seed: int = 0) -> list[float]:
    """Losses of AdamW steps of 256 tokens, the same tokens for every seed. Ours is in its own precision, of float32 weights."""
    import torch

    from crate_model.ops import precision

    weights = build(side, 256, seed)
    model = weights if side == "plain" else copy.deepcopy(weights).to(precision.default_dtype("cpu"))
    optimizer = torch.optim.AdamW(weights.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    losses = []
    for step in range(n_steps):
        loss = model(*batch(1, 256, step))
        model.zero_grad(set_to_none=True)
        loss.backward()
        for weight, parameter in zip(weights.parameters(), model.parameters(), strict=True):
            weight.grad = parameter.grad.to(weight.dtype)
        optimizer.step()
        model.load_state_dict(weights.state_dict())
        losses.append(loss.item())
    return losses


def loss_difference(n_steps: int) -> dict[str, float]:
    """Mean distance of the loss curves of the last quarter: ours to the yardstick's from the same initial weights, over two
    seeds; and, what noise is, the yardstick's from one seed's initial weights to the other's."""
    import torch

    torch.set_num_threads(2)
    plain, ours = ([loss_curve(side, n_steps, seed) for seed in (0, 1)] for side in ("plain", "ours"))
    last = slice(-n_steps // 4, None)

    def distance(a: list[float], b: list[float]) -> float:
        return statistics.mean(abs(x - y) for x, y in zip(a[last], b[last], strict=True))

    ends = {"first_loss": plain[0][0], "last_loss_plain": plain[0][-1], "last_loss_ours": ours[0][-1]}
    return {"ours_to_plain": statistics.mean(map(distance, plain, ours)), "seed_to_seed": distance(*plain), **ends}


def peak_bytes(side: str, n_ctx: int) -> int:
    """Called in a process of its own: the most memory two steps took above what the process held before them."""
    import torch

    def memory(field: str) -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
        return int(line.split()[1]) * 1024

    torch.set_num_threads(2)
    model, data = build(side, n_ctx), batch(2, n_ctx)
    before = memory("VmRSS")
    for _ in range(2):
        step_seconds(model, data)
    return memory("VmHWM") - before


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="256 tokens, few rounds, 40 steps of training")
    parser.add_argument("--peak", choices=("plain", "ours"))
    parser.add_argument("--context", type=int, default=1024)
    options = parser.parse_args()
    if options.peak:
        print(peak_bytes(options.peak, options.context))
        return 0
    n_ctx, rounds, n_steps = (256, 3, 40) if options.quick else (1024, 7, 200)
    from crate_model.ops import precision

    verdicts = Verdicts("model", "torch")
    two, one = training_steps(2, n_ctx, rounds), training_steps(1, n_ctx, max(3, rounds // 2))
    default = "ours_bf16_weights" if precision.fast_bf16() else "ours_fp32"
    verdicts.at_least("step_default_to_fp32_yardstick", ratio(two, "plain_fp32", default), "x", 2.4)
    verdicts.at_least("step_fp32_to_fp32_yardstick", ratio(two, "plain_fp32", "ours_fp32"), "x", 1.3)
    bf16 = ratio(two, "plain_fp32", "ours_bf16_weights"), ratio(one, "plain_fp32", "ours_bf16_weights")
    verdicts.measured("step_bf16_weights_to_fp32_yardstick", bf16[0], "x")
    verdicts.measured("step_bf16_weights_one_thread", bf16[1], "x")
    cast = autocast_steps(n_ctx, 1 if options.quick else 2)
    verdicts.at_least("step_default_to_bf16_yardstick", ratio(cast, "plain_autocast", "ours_default"), "x", 1.7)
    block = ista_block(3 * rounds)
    verdicts.at_least("ista_block_d768", ratio(block, "plain", "ours"), "x", 1.2)
    peaks = {side: in_new_process("--peak", side, "--context", n_ctx) for side in ("plain", "ours")}
    verdicts.at_most("peak_memory", peaks["ours"] / peaks["plain"], "x", 0.4)
    curve = loss_difference(n_steps)
    verdicts.at_most("loss_difference_to_seed_noise", curve["ours_to_plain"] / curve["seed_to_seed"], "x", 1)
    figures = {"two_threads": two, "one_thread": one, "autocast": cast, "ista_block": block, "peak_bytes": peaks}
    about = {"context": n_ctx, "steps": n_steps, "fast_bf16": precision.fast_bf16()}
    return verdicts.write(about | figures | {"loss_curve": curve})


if __name__ == "__main__":
    sys.exit(main())
