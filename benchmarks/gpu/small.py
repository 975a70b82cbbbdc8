"""The paper's models of width 128 and the six-layer one: there the head is most of the work, and launches cost the rest.

For width 128 each way of compiling is tried: a CUDA graph (`reduce-overhead`) issues a whole step at once. A step of 8,192 tokens
is where launches weigh most.
"""

from __future__ import annotations

import time

from gpu import models
from gpu.clocks import synchronize
from gpu.models import model_config, random_batch, step_of
from gpu.session import Evidence
from gpu.train import measured

FEW = 8  # rows of the step of 8,192 tokens
MANY = 128
COMPILED = (
    ("crate", "1L", "reduce-overhead"),
    ("crate", "1L", "default"),
    ("gpt2", "1L", "reduce-overhead"),
    ("gpt2", "1L", "default"),
    ("crate", "3L", "reduce-overhead"),
    ("crate", "3L", "default"),
)


def run(evidence: Evidence) -> None:
    for architecture in ("crate", "gpt2"):
        evidence.attempt(f"{architecture} 1L eager", eager, architecture, "1L", needs=3)
    for architecture, size, mode in COMPILED:
        evidence.attempt(f"{architecture} {size} {mode}", compiled, architecture, size, mode, needs=10)
    for size in ("3L", "2L", "S"):
        for architecture in ("crate", "gpt2"):
            evidence.attempt(f"{architecture} {size} eager", eager, architecture, size, needs=3)


def eager(evidence: Evidence, architecture: str, size: str) -> None:
    config = model_config(evidence, architecture, size)
    model = models.ours(config, evidence.device).bfloat16()
    told = {"side": "ours", "architecture": architecture, "size": size, "how": "eager", "weights": "bf16"}
    for n_rows in evidence.pick((FEW, models.ROWS) if size == "S" else (FEW, MANY), (2,)):
        measured(evidence, config, model, model, random_batch(config, n_rows, evidence.device), told)


def compiled(evidence: Evidence, architecture: str, size: str, mode: str, measure: bool = True) -> None:
    """Under one mode of torch.compile; `measure` False fills the compiler's cache alone."""
    config = model_config(evidence, architecture, size)
    told = {"side": "ours", "architecture": architecture, "size": size, "weights": "bf16", "how": f"compiled, {mode}"}
    for n_rows in evidence.pick((FEW, MANY), (2,)):
        model = models.ours(config, evidence.device).bfloat16()
        batch = random_batch(config, n_rows, evidence.device)
        run = models.compiled(evidence, model, mode)  # anew: a second shape would be compiled for any size
        started = time.perf_counter()
        step_of(model, run, batch)()
        synchronize()
        about = {"compile_seconds": time.perf_counter() - started}
        if measure:
            measured(evidence, config, model, run, batch, told | about)
