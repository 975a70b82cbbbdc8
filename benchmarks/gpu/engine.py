"""The product's DeepSpeed engine: whole optimizer steps at every ZeRO stage, and what each of its settings costs.

A plan names what differs from the product's defaults; to try another switch, add a plan. A step is the paper's batch, 262,144
tokens in micro-batches of 32 windows, with the optimizer, clipping and everything else that the engine does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from crate_model.config import ModelConfig
from crate_model.model import LanguageModel
from gpu.clocks import forget_peak, milliseconds, peak_gib, seconds
from gpu.models import ROWS, model_config, speed
from gpu.session import Evidence
from gpu.switches import constants, deepspeed_settings
from gpu.world import made_up
from pipeline.artifacts.tokens import TokenSplit
from pipeline.config import PretrainConfig, RuntimeConfig
from pipeline.pretrain import compiling
from pipeline.pretrain.__main__ import process_group
from pipeline.pretrain.batches import Batches, BatchPlan, MicroBatch
from pipeline.pretrain.engine import Engine

PASSES = 8  # micro-batches a step


@dataclass(frozen=True)
class Plan:
    """One way to open the engine: fields of `RuntimeConfig`, and DeepSpeed's settings laid over the product's own."""

    name: str
    runtime: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    architecture: str = "crate"
    size: str = "B"
    precision: Any = "bf16"
    optimizer: str = "torch_fused"
    cuda_graphs: bool = False  # `compiling.CUDA_GRAPHS`
    needs: float = 12.0  # seconds


def timer(on: bool) -> dict[str, Any]:
    """DeepSpeed's throughput timer, which waits for the GPU at every micro-batch."""
    return {"timers": {"throughput": {"enabled": on}}}


def at_once(on: bool) -> dict[str, Any]:
    """Gradients added to the float32 ones as they come, or after the backward pass."""
    return {"bf16": {"immediate_grad_update": on}}


COMPILED, EAGER = {"compile": True}, {"compile": False}
FAST = timer(False) | at_once(True)
PRODUCT = Plan("as the product sets it", needs=20)
FIRST = (
    PRODUCT,
    replace(PRODUCT, architecture="gpt2"),
    Plan("eager, timer off, gradients at once", EAGER, FAST),
)
OTHERS = (
    Plan("eager, timer on, gradients after", EAGER, timer(True) | at_once(False)),
    Plan("eager, ZeRO 2", {**EAGER, "zero_stage": 2}),
    Plan("eager, ZeRO 1, fp16", {**EAGER, "zero_stage": 1}, precision="fp16"),
    Plan("eager, ZeRO 0, fp32", {**EAGER, "zero_stage": 0}, precision="fp32"),
    Plan("eager, activation checkpointing", {**EAGER, "activation_checkpointing": True}),
    replace(PRODUCT, size="1L", needs=10),
    replace(PRODUCT, name="compiled, CUDA graphs", size="1L", cuda_graphs=True, needs=15),
    Plan("compiled, timer on, gradients at once", COMPILED, timer(True) | at_once(True), needs=20),
    Plan("compiled, timer off, gradients after", COMPILED, timer(False) | at_once(False), needs=20),
    Plan("eager, apex", EAGER, FAST, optimizer="apex"),
    Plan("eager, deepspeed's FusedAdam", EAGER, FAST, optimizer="deepspeed"),
    Plan("eager, ZeRO 3", {**EAGER, "zero_stage": 3}),
)
TINY = (*FIRST, OTHERS[3], OTHERS[-1])


def run(evidence: Evidence) -> None:
    with process_group(300):
        _try(evidence, FIRST)
        evidence.attempt("state", state, needs=10)
        _try(evidence, OTHERS)


def _try(evidence: Evidence, plans: tuple[Plan, ...]) -> None:
    for plan in plans:
        if plan in TINY or not evidence.tiny:
            evidence.attempt(f"{plan.name}, {plan.architecture}", drive, plan, needs=plan.needs)
            torch.compiler.reset()


def drive(evidence: Evidence, plan: Plan) -> None:
    """Losses and norms of the first steps, which every plan must share; then the median time of a step."""
    if why := unavailable(evidence, plan.optimizer):
        return evidence.left_out(plan.name, why)
    config = model_config(evidence, plan.architecture, plan.size)
    # Float32 products are an order slower and its activations twice as large: a smaller step tells as much.
    n_rows, passes = evidence.pick((8, 2) if plan.precision == "fp32" else (ROWS, PASSES), (2, 2))
    work = batches(evidence, config, n_rows, passes)
    engine = opened(evidence, plan, config, work)
    try:
        step = step_of(engine, work)
        first = [step() for _ in range(2)]
        forget_peak()
        ms = milliseconds(step, repeat=evidence.pick(4, 1), warm=0)
        losses, norms = zip(*first, strict=True)
        told = {"plan": plan.name, "architecture": plan.architecture, "size": plan.size, "precision": plan.precision}
        told |= {"zero_stage": engine.stage, "compiled": engine.compiled, "not_compiled": engine.not_compiled}
        told |= {"losses": [float(loss) for loss in losses], "norms": norms, "peak_gib": peak_gib()}
        evidence.row("engine", **told, **speed(evidence, config, n_rows * passes, ms))
    finally:
        engine.close()


def unavailable(evidence: Evidence, optimizer: str) -> str:
    """Why an optimizer is not tried here; empty when it is."""
    from pipeline.pretrain import optimizers

    if optimizer in optimizers.OPERATIONS and not optimizers.is_prebuilt(optimizer):
        return "it would have to be compiled first"
    return optimizers.missing(optimizer, evidence.device)[0]


def opened(evidence: Evidence, plan: Plan, config: ModelConfig, work: list[MicroBatch]) -> Engine:
    """An engine for steps of these micro-batches, compiled where the plan asks for it."""
    torch.manual_seed(0)
    recipe, runtime = PretrainConfig(precision=plan.precision), RuntimeConfig(**plan.runtime)
    device, n_rows = torch.device(evidence.device), len(work[0].windows)
    with deepspeed_settings(plan.settings):
        engine = Engine(LanguageModel(config), recipe, runtime, device, n_rows, len(work), plan.optimizer)
    with constants(compiling, CUDA_GRAPHS=plan.cuda_graphs):
        engine.compile_like_eager(work[0])
    return engine


def batches(evidence: Evidence, config: ModelConfig, n_rows: int, passes: int) -> list[MicroBatch]:
    """A step's micro-batches as the product reads them, in memory from which a card copies beside its work."""
    _, tokens = made_up(evidence)
    plan = BatchPlan(n_rows * passes, 1, 1, n_rows)
    reader = Batches(TokenSplit(tokens, "train"), 0, config.n_ctx, 0, plan)
    work = list(reader.micro_batches(reader.window_ids(0)))
    if torch.cuda.is_available() and torch.is_tensor(work[0].windows):
        work = [replace(batch, windows=batch.windows.pin_memory()) for batch in work]
    return work


def step_of(engine: Engine, work: list[MicroBatch]) -> Callable[[], tuple[torch.Tensor, Any]]:
    """An optimizer step as a function of nothing; gives the loss and the gradient's norm."""
    return lambda: (engine.accumulate(work), engine.step(1e-4))


def state(evidence: Evidence) -> None:
    """The whole state out of the engine and in again: the same to the bit, and how long the way out takes."""
    config = model_config(evidence, "crate", "B")
    work = batches(evidence, config, *evidence.pick((ROWS, 2), (2, 2)))
    engine = opened(evidence, Plan("state", EAGER), config, work)
    try:
        step = step_of(engine, work)
        step()
        kept = {part: {n: t.clone() for n, t in tensors.items()} for part, tensors in engine.full_state().items()}
        taken = seconds(engine.full_state)
        step()
        engine.restore(kept, 1)
        back = engine.full_state()
        same = all(torch.equal(kept[part][name], back[part][name]) for part in kept for name in kept[part])
        evidence.row("state", ok=same, seconds_to_take_it=taken)
    finally:
        engine.close()
