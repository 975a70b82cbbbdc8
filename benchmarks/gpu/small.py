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

FEW, MANY = 8, 128  # rows: of the step of 8,192 tokens, and of one that fills the card
LARGE = models.ROWS  # rows of the six-layer model's
COMPILED = (  # architecture, size, mode, rows; the most valuable first
    ("crate", "1L", "reduce-overhead", FEW),
    ("crate", "1L", "default", FEW),
    ("crate", "1L", "default", MANY),
    ("gpt2", "1L", "reduce-overhead", FEW),
    ("gpt2", "1L", "default", MANY),
    ("crate", "3L", "default", MANY),
    ("gpt2", "3L", "default", MANY),
    ("crate", "3L", "reduce-overhead", FEW),
    ("crate", "S", "default", LARGE),
    ("gpt2", "S", "default", LARGE),
    ("crate", "2L", "default", MANY),
    ("gpt2", "2L", "default", MANY),
    ("crate", "3L", "reduce-overhead", MANY),
)


def run(evidence: Evidence) -> None:
    for architecture in ("crate", "gpt2"):
        evidence.attempt(f"{architecture} 1L eager", eager, architecture, "1L", needs=3)
    for case in evidence.pick(COMPILED, COMPILED[:1]):
        evidence.attempt(" ".join(map(str, case)), compiled, *case, needs=8)
    for size in evidence.pick(("3L", "2L", "S"), ("2L",)):
        for architecture in ("crate", "gpt2"):
            evidence.attempt(f"{architecture} {size} eager", eager, architecture, size, needs=3)


def eager(evidence: Evidence, architecture: str, size: str) -> None:
    config = model_config(evidence, architecture, size)
    model = models.ours(config, evidence.device).bfloat16()
    told = {"side": "ours", "architecture": architecture, "size": size, "how": "eager", "weights": "bf16"}
    for n_rows in evidence.pick((FEW, LARGE) if size == "S" else (FEW, MANY), (2,)):
        measured(evidence, config, model, model, random_batch(config, n_rows, evidence.device), told)


def compiled(evidence: Evidence, architecture: str, size: str, mode: str, n_rows: int, measure: bool = True) -> None:
    """Under one mode of torch.compile; `measure` False fills the compiler's cache alone."""
    config = model_config(evidence, architecture, size)
    model = models.ours(config, evidence.device).bfloat16()
    batch = random_batch(config, evidence.pick(n_rows, 2), evidence.device)
    run = models.compiled(evidence, model, mode)
    started = time.perf_counter()
    step_of(model, run, batch)()
    synchronize()
    told = {"side": "ours", "architecture": architecture, "size": size, "weights": "bf16", "how": f"compiled, {mode}"}
    if measure:
        measured(evidence, config, model, run, batch, told | {"compile_seconds": time.perf_counter() - started})
