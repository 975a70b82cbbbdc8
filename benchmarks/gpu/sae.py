"""Autoencoders on one stream of activations of a three-layer CRATE, by variant and precision; a plain loop beside them."""

from __future__ import annotations

import time
from typing import Any

import torch

from crate_model.ops.precision import matmul_precision
from gpu import models
from gpu.clocks import forget_peak, milliseconds, peak_gib, synchronize
from gpu.models import model_config
from gpu.session import Evidence
from gpu.switches import constants
from gpu.world import made_up
from pipeline.artifacts.tokens import TokenSplit
from pipeline.config import SAEConfigSection
from pipeline.sae import loop
from pipeline.sae.loop import train_group
from pipeline.sae.planned import planned_sites
from pipeline.sae.watcher import Watcher

CASES = (  # variant, widths, precision of products, steps
    ("relu", (1, 4), "highest", 160),
    ("relu", (1, 4), "high", 160),
    ("relu", (16,), "high", 100),
    ("topk", (4,), "high", 100),
    ("batchtopk", (4,), "high", 60),
    ("relu", (16,), "highest", 60),
)
POINTS = 10  # of the curve: as rarely as a long training logs, since every figure waits for the card


def run(evidence: Evidence) -> None:
    for variant, widths, precision, n_steps in evidence.pick(CASES, (("relu", (1,), "highest", 20),)):
        evidence.attempt(f"{variant} {widths} {precision}", group, variant, widths, precision, n_steps, needs=7)
    evidence.attempt("plain", plain, needs=5)


def batch_tokens(evidence: Evidence) -> int:
    return evidence.pick(4096, 256)


def group(evidence: Evidence, variant: Any, widths: tuple[int, ...], precision: Any, n_steps: int) -> None:
    """The product's own training; its speed between two logged steps, the first of them after a third of all."""
    _, tokens = made_up(evidence)
    model = models.ours(model_config(evidence, "crate", "3L"), evidence.device).eval()
    batch = batch_tokens(evidence)
    settings = SAEConfigSection(
        expansions=widths,
        variant=variant,
        total_tokens=n_steps * batch,
        batch_tokens=batch,
        buffer_tokens=32 * batch,
        batch_rows=evidence.pick(32, 4),
        resample_steps=(),
        matmul_precision=precision,
    )
    sites = planned_sites(settings, model.config)
    marks: list[tuple[float, int]] = []

    def look(step: int, _figures: Any) -> None:
        synchronize()
        marks.append((time.perf_counter(), step))

    folder = evidence.work / f"sae-{variant}-{widths}-{precision}"
    watcher = Watcher(folder, 10**9, on_figures=look)
    forget_peak()
    with constants(loop, CURVE_POINTS=POINTS):
        trained = train_group(
            model, TokenSplit(tokens, "train"), sites, settings, 0, torch.device(evidence.device), watcher
        )
    (began, first), (ended, last) = marks[len(marks) // 3], marks[-1]
    steps_per_second = (last - first) / (ended - began)
    told = {"variant": variant, "widths": widths, "precision": precision, "autoencoders": len(sites)}
    told |= {"steps_per_second": steps_per_second, "trained_tokens_per_second": steps_per_second * batch * len(sites)}
    evidence.row("group", **told, last_loss=trained.curves[-1]["loss"], peak_gib=peak_gib())


def plain(evidence: Evidence) -> None:
    """The published recipe in plain torch on activations that are there already: no language model is in its time."""
    d, width, batch = model_config(evidence, "crate", "3L").d_code, evidence.pick(16, 1), batch_tokens(evidence)
    wide = width * d

    def weights(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, device=evidence.device) * 0.02).requires_grad_()

    encoder, decoder = weights(d, wide), weights(wide, d)
    encoder_bias, decoder_bias = weights(wide), weights(d)
    optimizer = torch.optim.Adam([encoder, encoder_bias, decoder, decoder_bias], lr=4e-5, fused=True)
    v = torch.randn(batch, d, device=evidence.device).relu()

    def step() -> None:
        code = torch.relu((v - decoder_bias) @ encoder + encoder_bias)
        error = (code @ decoder + decoder_bias - v).pow(2) / v.norm(dim=-1, keepdim=True)
        optimizer.zero_grad()
        (error.mean() + 8e-5 * code.abs().sum(-1).mean()).backward()
        optimizer.step()
        with torch.no_grad():
            decoder.div_(decoder.norm(dim=1, keepdim=True) + 1e-6)

    for precision in ("highest", "high"):
        with matmul_precision(precision):
            ms = milliseconds(step, repeat=evidence.pick(20, 3))
        told = {"trained_tokens_per_second": batch / ms * 1000, "tflops": 6 * 2 * batch * d * wide / ms / 1e9}
        evidence.row("plain", width=width, precision=precision, ms=ms, **told)
