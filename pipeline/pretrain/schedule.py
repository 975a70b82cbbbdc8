"""The learning rate of a step: a pure function, so there is nothing to restore."""

from __future__ import annotations

import math

from pipeline.config import PretrainConfig


def learning_rate(config: PretrainConfig, step: int, total_steps: int) -> float:
    """The rate of update `step` (from 0) out of `total_steps`.

    Linear warm-up from 0, then cosine or warm-up-stable-decay to `min_learning_rate`. *Source:* crate-lm's training
    script (cosine; the very first update has rate 0 there too); WSD: Hu et al. 2024, arXiv 2404.06395, with linear decay.
    """
    peak, low, warmup = config.learning_rate, config.min_learning_rate, config.warmup_steps
    if step < warmup:
        return peak * step / warmup
    if step >= total_steps:
        return low
    if config.schedule == "wsd":
        start = max(warmup, total_steps - round(config.decay_fraction * total_steps))
        return peak if step < start else peak + (low - peak) * (step - start) / (total_steps - start)
    progress = (step - warmup) / (total_steps - warmup)
    return low + 0.5 * (1.0 + math.cos(math.pi * progress)) * (peak - low)
