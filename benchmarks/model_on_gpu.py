"""The rows of bench_model.py that need a GPU: whole training steps in bfloat16, and the ISTA block's Triton kernel.

A training step is forward, backward and fused AdamW on float32 weights under bfloat16 autocast, compiled, at the micro-batch
that is fastest among those that fit. Its share of the peak counts true FLOPs (crate_model/flops.py). The functions take a
device, so that a test runs them on a CPU in small.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from plain_model import PlainBlock
from verdicts import Verdicts

from crate_model.config import ModelConfig
from crate_model.model import LanguageModel
from crate_model.ops.ista import ista
from pipeline.pretrain.meter import Meter

ROWS = [  # name, unit, target: what is said where there is no GPU
    ("crate_b_share_of_bf16_peak", "%", ">= 45"),
    ("gpt2_b_share_of_bf16_peak", "%", ">= 45"),
    ("gpt2_b_h200", "tokens/s", ">= 520000"),
    ("triton_ista_to_compiled_eager", "x", ">= 1.25"),
]


def measure(verdicts: Verdicts) -> dict[str, Any]:
    """All rows on the CUDA device there is. A share is not said for a GPU whose peak is not known."""
    gpu = torch.cuda.get_device_name()
    figures: dict[str, Any] = {"gpu": gpu}
    for architecture in ("crate", "gpt2"):
        best = figures[f"{architecture}_b"] = fastest(ModelConfig(architecture), "cuda")
        verdicts.measured(f"{architecture}_b_training", best["tokens_per_second"], "tokens/s")
        name = f"{architecture}_b_share_of_bf16_peak"
        if "mfu" in best:
            verdicts.at_least(name, 100 * best["mfu"], "%", 45)
        else:
            verdicts.not_run(name, "%", ">= 45", f"the peak of {gpu} is not known")
    if "H200" in gpu:
        verdicts.at_least("gpt2_b_h200", figures["gpt2_b"]["tokens_per_second"], "tokens/s", 520_000)
    else:
        verdicts.not_run("gpt2_b_h200", "tokens/s", ">= 520000", f"this is {gpu}, no H200")
    block = figures["ista_block"] = ista_block("cuda")
    ratio = statistics.median(a / b for a, b in zip(block["plain_compiled"], block["ours"], strict=True))
    verdicts.at_least("triton_ista_to_compiled_eager", ratio, "x", 1.25)
    return figures


def fastest(config: ModelConfig, device: str) -> dict[str, float]:
    """`training` at its best micro-batch, doubled until memory runs out."""
    best: dict[str, float] = {"tokens_per_second": 0.0}
    n_rows = 4
    while True:
        try:
            speed = training(config, device, n_rows)
        except torch.OutOfMemoryError:
            return best
        finally:
            torch.cuda.empty_cache()
        if speed["tokens_per_second"] > best["tokens_per_second"]:
            best = speed | {"micro_batch": n_rows}
        n_rows *= 2


def training(
    config: ModelConfig, device: str, n_rows: int, n_steps: int = 20, warm_up: int = 10, compiled: bool = True
) -> dict[str, float]:
    """Tokens and FLOPs a second of training steps of `n_rows` sequences, and `mfu` where the GPU's peak is known."""
    torch.manual_seed(0)
    torch.compiler.reset()  # or the second micro-batch would be compiled for any size
    model = LanguageModel(config).to(device)
    run = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    ids = torch.randint(config.vocab_size, (n_rows, config.n_ctx + 1), device=device)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16):
            loss = run(ids[:, :-1], ids[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for _ in range(warm_up):
        step()
    wait(device)
    meter = Meter(config, 1, torch.cuda.get_device_name() if device == "cuda" else None)
    for _ in range(n_steps):
        step()
    wait(device)
    return meter.read(n_steps * n_rows * config.n_ctx)


def ista_block(
    device: str, d_model: int = 768, n_tokens: int = 2**15, rounds: int = 20, compiled: bool = True
) -> dict[str, list[float]]:
    """Seconds of forward and backward of the ISTA block in bfloat16, in turn: the plain one compiled, and ours."""
    torch.manual_seed(0)
    plain = PlainBlock(d_model, 1)
    torch.nn.init.kaiming_uniform_(plain.w)
    plain = plain.to(device, torch.bfloat16)
    z = torch.randn(n_tokens, d_model, device=device, dtype=torch.bfloat16, requires_grad=True)
    gradient = torch.randn_like(z)
    plain_ista = torch.compile(plain.ista) if compiled else plain.ista
    sides: dict[str, Callable[[], torch.Tensor]] = {
        "plain_compiled": lambda: plain_ista(z),
        "ours": lambda: ista(z, plain.w, 0.1, 0.1, 2),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for count in range(rounds + 3):  # the first three compile and warm up
        for name, run in sides.items():
            z.grad = plain.w.grad = None
            wait(device)
            started = time.perf_counter()
            run().backward(gradient)
            wait(device)
            if count >= 3:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
