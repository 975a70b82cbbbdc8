"""How near the kernels come to the ceilings: ISTA's products by tile, the head by chunk of logits, the scan by bandwidth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from plain_model import PlainBlock
from torch import Tensor

from crate_model.ops import cross_entropy
from crate_model.ops.ista import ista
from gpu.clocks import forget_peak, milliseconds, peak_gib
from gpu.interpreted import kernel_dtypes
from gpu.session import Evidence
from gpu.switches import constants
from gpu.variants import VARIANTS, Variant

TILES = (  # rows, columns, inner, warps, stages; all in groups of eight rows of tiles
    (128, 256, 64, 8, 3),
    (128, 256, 64, 8, 4),
    (256, 128, 64, 8, 3),
    (128, 128, 64, 4, 4),
    (128, 128, 64, 8, 4),
    (128, 128, 32, 8, 5),
    (64, 256, 64, 4, 4),
    (128, 128, 128, 8, 2),
)
CHUNKS = (31, 29, 30, 32, 27)  # powers of two of CHUNK_BYTES
NARROW_CHUNKS = (31, 25, 24, 26, 28)  # of a d=128 model's 8,192 tokens: the small ones stay in the card's cache


def run(evidence: Evidence) -> None:
    dtype = kernel_dtypes(evidence)[0]
    evidence.attempt("ista_products", ista_products, dtype, needs=5)
    for variant in VARIANTS:
        evidence.attempt(variant.name, as_variant, variant, dtype, needs=3)
    evidence.attempt("ista_block", ista_block, dtype, needs=12)
    for tiles in evidence.pick(TILES, ((16, 16, 16, 4, 2),)):
        evidence.attempt("ista_tiles", ista_tiles, dtype, tiles, needs=5)
    for chunk in evidence.pick(CHUNKS, (14,)):
        evidence.attempt("head", head, dtype, sizes(evidence)[:2], chunk, needs=3)
    for chunk in evidence.pick(NARROW_CHUNKS, (14,)):
        evidence.attempt("head", head, dtype, evidence.pick((8192, 128), (32, 16)), chunk, needs=3)
    evidence.attempt("plain head", plain_head, dtype, needs=3)
    evidence.attempt("scan", scan, needs=5)


def sizes(evidence: Evidence) -> tuple[int, int, int]:
    """Tokens, width and atoms: CRATE-B's, 32 rows of 1024."""
    return evidence.pick((32768, 768, 3072), (32, 32, 64))


def ways(evidence: Evidence, dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    """ISTA's products with their element-wise work, by our kernel, and by the library with passes of torch."""
    from crate_model.ops import ista_triton

    n, d, n_atoms = sizes(evidence)
    z = torch.randn(n, d, device=evidence.device, dtype=dtype)
    atoms = torch.randn(n_atoms, d, device=evidence.device, dtype=dtype) * 0.03
    code = torch.randn(n, n_atoms, device=evidence.device, dtype=dtype).relu()
    masked = torch.ops.aten.threshold_backward
    return {
        "forward, first step": lambda: ista_triton.shrunk_product(None, z, atoms, 0.1, 0.01),
        "forward, later step": lambda: ista_triton.shrunk_product(code, z, atoms, 0.1, 0.01),
        "backward, first step": lambda: ista_triton.masked_product(None, z, atoms, 1.0, code),
        "backward, later step": lambda: ista_triton.masked_product(code, z, atoms, -1.0, code),
        "library: product alone": lambda: z @ atoms.T,
        "library: forward, later step": lambda: torch.addmm(code, z, atoms.T, alpha=0.1).sub_(0.01).relu_(),
        "library: backward, later step": lambda: masked(torch.addmm(code, z, atoms.T, alpha=-1), code, 0),
    }


def ista_products(evidence: Evidence, dtype: torch.dtype, variant: str = "") -> None:
    n, d, n_atoms = sizes(evidence)
    for name, way in ways(evidence, dtype).items():
        if variant and name.startswith("library"):
            continue
        ms = milliseconds(way, repeat=evidence.pick(20, 1), warm=evidence.pick(3, 0))
        evidence.row("ista_product", what=name, variant=variant, ms=ms, tflops=2 * n * d * n_atoms / ms / 1e9)


def as_variant(evidence: Evidence, variant: Variant, dtype: torch.dtype) -> None:
    """Our products as a variant of the product computes them, where it is one of ISTA."""
    if "ista" in variant.module:
        with variant.on():
            ista_products(evidence, dtype, variant.name)


def ista_tiles(evidence: Evidence, dtype: torch.dtype, tiles: tuple[int, ...]) -> None:
    from crate_model.ops import ista_triton

    n, d, n_atoms = sizes(evidence)
    names = ("TILE_M", "TILE_N", "TILE_K", "WARPS", "STAGES")
    with constants(ista_triton, **dict(zip(names, tiles, strict=True))):
        for name, way in list(ways(evidence, dtype).items())[:4]:
            ms = milliseconds(way, repeat=evidence.pick(10, 1), warm=evidence.pick(3, 0))
            evidence.row("ista_tiles", what=name, tiles=tiles, ms=ms, tflops=2 * n * d * n_atoms / ms / 1e9)


def ista_block(evidence: Evidence, dtype: torch.dtype) -> None:
    """Forward and backward of the whole block: the plain one compiled, and ours."""
    n, d, n_atoms = sizes(evidence)
    torch.manual_seed(0)
    block = PlainBlock(d, 1, n_atoms // d)
    torch.nn.init.kaiming_uniform_(block.w)
    block = block.to(evidence.device, dtype)
    z = torch.randn(n, d, device=evidence.device, dtype=dtype, requires_grad=True)
    gradient = torch.randn_like(z)
    plain = torch.compile(block.ista, backend="aot_eager" if evidence.tiny else "inductor")

    def timed(run: Callable[[Tensor], Tensor]) -> float:
        def step() -> None:
            z.grad = block.w.grad = None
            run(z).backward(gradient)

        return milliseconds(step, repeat=evidence.pick(12, 1), warm=evidence.pick(3, 1))

    sides = {"plain_compiled_ms": timed(plain), "ours_ms": timed(lambda z: ista(z, block.w, 0.1, 0.1, 2))}
    ratio = sides["plain_compiled_ms"] / sides["ours_ms"]
    evidence.row("ista_block", **sides, ratio=ratio, ours_tflops=12 * 2 * n * d * n_atoms / sides["ours_ms"] / 1e9)


def head_inputs(evidence: Evidence, dtype: torch.dtype, n: int, d: int) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states (n, d), token table and targets."""
    words = evidence.pick(50304, 128)
    hidden = torch.randn(n, d, device=evidence.device, dtype=dtype, requires_grad=True)
    weight = (torch.randn(words, d, device=evidence.device, dtype=dtype) * 0.02).requires_grad_()
    return hidden, weight, torch.randint(words, (n,), device=evidence.device)


def head(evidence: Evidence, dtype: torch.dtype, shape: tuple[int, int], chunk: int) -> None:
    """Head and loss of tokens and width `shape`, forward and backward, with logits of 2^`chunk` bytes at a time."""
    hidden, weight, targets = head_inputs(evidence, dtype, *shape)

    def step() -> None:
        hidden.grad = weight.grad = None
        cross_entropy.linear_cross_entropy(hidden, weight, targets).backward()

    with constants(cross_entropy, CHUNK_BYTES={**cross_entropy.CHUNK_BYTES, evidence.device: 2**chunk}):
        forget_peak()
        ms = milliseconds(step, repeat=evidence.pick(6, 1), warm=evidence.pick(2, 0))
    told = {
        "shape": shape,
        "chunk_bytes": f"2^{chunk}",
        "ms": ms,
        "tflops": 6 * weight.numel() * len(hidden) / ms / 1e9,
    }
    evidence.row("head", **told, peak_gib=peak_gib())


def plain_head(evidence: Evidence, dtype: torch.dtype) -> None:
    """The whole logits in float32, on half the rows, since they take so much memory."""
    n, d, _ = sizes(evidence)
    hidden, weight, targets = head_inputs(evidence, dtype, n // 2, d)

    def step() -> None:
        hidden.grad = weight.grad = None
        F.cross_entropy((hidden @ weight.T).float(), targets).backward()

    forget_peak()
    ms = milliseconds(step, repeat=evidence.pick(4, 1), warm=1)
    flops = 6 * weight.numel() * len(hidden)
    evidence.row("plain head", rows=len(hidden), ms=ms, tflops=flops / ms / 1e9, peak_gib=peak_gib())


def scan(evidence: Evidence) -> None:
    """The kernels that look at every activation of a batch of CRATE-B, by the memory they read, beside plain torch."""
    from gpu.parity import scan_arguments
    from pipeline.activations import scan, scan_triton

    n_rows, n_ctx, n_neurons = evidence.pick((8, 1024, 3072), (1, 64, 32))
    values = torch.randn(n_rows, n_ctx, n_neurons).relu()
    counts = scan.level_counts(values.flatten(0, 1), False)
    told = [t.to(evidence.device) for t in scan_arguments(values, counts, (0.5, 0.9, 0.99, 0.999), False, 5)]
    timed: dict[str, Callable[[], Any]] = {
        "extremes": lambda: scan_triton.extremes(*told),
        "statistics": lambda: scan_triton.statistics(told[0]),
        "plain extremes": lambda: scan.plain_extremes(*told),
        "plain statistics": lambda: scan.plain_statistics(told[0]),
        "level counts": lambda: scan.level_counts(told[0].flatten(0, 1), False),
    }
    for name, run in timed.items():
        ms = milliseconds(run, repeat=evidence.pick(8, 1), warm=evidence.pick(2, 0))
        evidence.row("scan", what=name, ms=ms, tb_per_second=4 * values.numel() / ms / 1e9)
