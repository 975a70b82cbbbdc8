"""The training loop: plain Python over an engine's verbs. It knows no Ray, no DeepSpeed, no files.

What decides the weights is all here: which windows, which rate, which update, in which order. Everything else (metrics,
checkpoints, progress) hangs on the `Watch` and must not change a bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Protocol

from pipeline.artifacts.order import chain
from pipeline.config import PretrainConfig
from pipeline.errors import StageError
from pipeline.pretrain.resume import Counters
from pipeline.pretrain.schedule import learning_rate

if TYPE_CHECKING:
    import torch

    from pipeline.pretrain.batches import Batches
    from pipeline.pretrain.engine import Engine

SPIKE_FACTOR, SPIKE_DEVIATIONS = 10.0, 6.0  # of gradient norms, of losses
SPIKE_WINDOW, SPIKE_MEMORY = 128, 32  # steps that are looked back on, at most and at least


class Stopped(Exception):
    """The run was asked to leave, by a person or because its node is taken away; its state is saved."""

    def __init__(self, preempted: bool) -> None:
        super().__init__("preempted" if preempted else "stopped")
        self.preempted = preempted


class Watch(Protocol):
    """Looks on at a run, after every step."""

    def after_step(self, run: Run) -> None: ...


@dataclass
class Run:
    """A run under way: the counters, the curve up to the last flush, and the norms and losses that still lie on the device."""

    counters: Counters
    curve: dict[str, list]
    total_steps: int
    unread: list[tuple[int, float, torch.Tensor, torch.Tensor]] = field(default_factory=list)  # step, rate, norm, loss

    @property
    def finished(self) -> bool:
        return self.counters.step >= self.total_steps

    def flush(self, engine: Engine, named: str = "") -> None:
        """Fetch the losses, averaged over the workers, and norms of all steps since the last flush into the curve.

        Raises StageError at the first that is not finite, with the command that shows its batch; `named` are that command's
        options for this run. Collective: every worker calls it after the same step.
        """
        import torch

        if not self.unread:
            return
        losses = engine.mean(torch.stack([loss for *_, loss in self.unread]))
        norms = torch.stack([norm for _, _, norm, _ in self.unread]).tolist()
        tokens_per_step = self.counters.tokens // self.counters.step
        for (step, rate, _, _), norm, loss in zip(self.unread, norms, losses, strict=True):
            finite_norm = math.isfinite(norm)
            if not math.isfinite(loss) or not (finite_norm or engine.loss_scale):
                raise _diverged(step, loss, norm, named)
            self.counters.overflows += not finite_norm  # of float16, with its loss scale
            row = (step, step * tokens_per_step, float(loss), rate, norm if finite_norm else None, None)
            for column, value in zip(self.curve.values(), row, strict=True):
                column.append(value)
        self.unread.clear()

    def note_val_loss(self, loss: float) -> None:
        self.curve["val_loss"][-1] = loss


def _diverged(step: int, loss: float, norm: float, named: str) -> StageError:
    command = " ".join(filter(None, ["python -m pipeline inspect-batch", named, f"--step {step - 1}"]))
    return StageError(
        f"training diverged at step {step}: loss {loss:g}, gradient norm {norm:g}; it was batch {step - 1}",
        fix=f"`{command}` shows that batch. Lower pretrain.learning_rate, raise pretrain.warmup_steps, or set "
        "pretrain.skip_spikes: true.",
        stage="pretrain",
    )


def train(engine: Engine, batches: Batches, config: PretrainConfig, run: Run, watch: Watch) -> None:
    """Train from where `run` stands to its last step. Raises Stopped, StageError."""
    counters = run.counters
    while not run.finished:
        step = counters.step
        rate = learning_rate(config, step, run.total_steps)
        ids, micro_batches = batches.take(step)
        loss = engine.accumulate(micro_batches)
        norm = engine.step(rate, _refusal(engine, counters, loss) if config.skip_spikes else None)
        counters.step += 1
        counters.tokens += config.batch_tokens
        counters.consumed = chain(counters.consumed, ids)
        if engine.refused:
            counters.skipped_steps.append(counters.step)
        elif config.skip_spikes and math.isfinite(norm):
            counters.norms[:] = [*counters.norms, float(norm)][-SPIKE_WINDOW:]
        run.unread.append((counters.step, rate, norm, loss))
        watch.after_step(run)


def _refusal(engine: Engine, counters: Counters, loss: torch.Tensor) -> Callable[[float], bool]:
    """What says of a step's gradient norm whether to leave the step out. Remembers the loss, averaged over the workers, of a
    step that is no spike."""
    mean_loss = float(engine.mean(loss[None])[0])
    high = is_loss_spike(counters.losses, mean_loss)
    if not high:
        counters.losses[:] = [*counters.losses, mean_loss][-SPIKE_WINDOW:]
    return lambda norm: high or is_spike(counters.norms, norm)


def is_spike(recent: list[float], norm: float) -> bool:
    """Whether a gradient norm is far above the recent ones: more than ten times their median, once there are enough."""
    if len(recent) < SPIKE_MEMORY:
        return False
    return norm > SPIKE_FACTOR * sorted(recent)[len(recent) // 2]


def is_loss_spike(recent: list[float], loss: float) -> bool:
    """Whether a loss is far above the recent ones: six standard deviations above their mean. *Source:* OLMo-core's rule."""
    if len(recent) < SPIKE_MEMORY:
        return False
    return loss > fmean(recent) + SPIKE_DEVIATIONS * pstdev(recent)
