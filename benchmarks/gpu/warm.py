"""Fills the compiler's cache for the stages that are timed later, while stages run that are not timed."""

from __future__ import annotations

from gpu import small, train
from gpu.models import ARCHITECTURES
from gpu.session import Evidence


def ours(evidence: Evidence) -> None:
    for architecture in ARCHITECTURES[::-1]:  # CRATE first, which takes the compiler longer
        evidence.attempt(f"{architecture} compiled", train.ours_compiled, architecture, False, needs=20)


def plain(evidence: Evidence) -> None:
    for autocast in (True, False):
        for architecture in ARCHITECTURES:
            name = f"plain {architecture} compiled"
            evidence.attempt(name, train.plain_compiled, architecture, autocast, False, needs=20)


def small_crate(evidence: Evidence) -> None:
    _small(evidence, "crate")


def small_gpt2(evidence: Evidence) -> None:
    _small(evidence, "gpt2")


def _small(evidence: Evidence, architecture: str) -> None:
    for case in small.COMPILED:
        if case[0] == architecture:
            evidence.attempt(" ".join(map(str, case)), small.compiled, *case, False, needs=15)


def optimizer(evidence: Evidence) -> None:
    """DeepSpeed's FusedAdam compiled on the spot, where its wheel does not carry it."""
    from gpu.optimizers import compile_fused_adam

    evidence.attempt("deepspeed's FusedAdam", compile_fused_adam, needs=30)
