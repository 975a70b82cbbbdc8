"""What this machine is, and its ceilings: matrix products, copies, attention. Every other figure is read against these."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpu.clocks import milliseconds
from gpu.session import Evidence

PACKAGES = ("triton", "numpy", "pyarrow", "pydantic", "deepspeed", "transformers", "tiktoken", "numba", "ninja", "apex")
BACKENDS = {
    "default": None,
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def run(evidence: Evidence) -> None:
    evidence.attempt("machine", machine)
    evidence.attempt("ceilings", ceilings, needs=8)
    evidence.attempt("products", products, needs=5)
    for d_head, n_head, n_rows in evidence.pick(((64, 12, 32), (32, 4, 128)), ((16, 2, 2),)):
        for backend in BACKENDS:
            evidence.attempt("attention", attention, backend, d_head, n_head, n_rows, needs=3)


def machine(evidence: Evidence) -> None:
    from pipeline.this_machine import package_version

    asked = "name,driver_version,memory.total,clocks.sm,clocks.mem,power.limit"
    evidence.row(
        "machine",
        python=platform.python_version(),
        cores=os.cpu_count(),
        kernel=platform.release(),
        nvidia_smi=_said("nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"),
        nvcc=_said("nvcc", "--version").rpartition("\n")[2],
        cxx=_said("g++", "--version").partition("\n")[0],
        cudnn=torch.backends.cudnn.version(),
        packages={name: package_version(name) for name in PACKAGES},
    )


def _said(*command: str) -> str:
    """What a program prints; empty where it is not installed."""
    if not shutil.which(command[0]):
        return ""
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout.strip()


def ceilings(evidence: Evidence) -> None:
    """A large product in each precision, and a copy that no cache holds, its bytes counted read and written."""
    device = evidence.device
    n, wide_n = evidence.pick((8192, 4096), (256, 128))
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    bf16 = milliseconds(lambda: a @ b)
    source = torch.randn(evidence.pick(2**30, 2**20), device=device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    copy = milliseconds(lambda: target.copy_(source))
    wide = torch.randn(wide_n, wide_n, device=device)
    float32 = {}
    for precision in ("highest", "high"):  # "high" is TF32 on a GPU
        torch.set_float32_matmul_precision(precision)
        float32[precision] = 2 * wide_n**3 / milliseconds(lambda: wide @ wide) / 1e9
    torch.set_float32_matmul_precision("highest")
    evidence.row(
        "ceilings",
        bf16_tflops=2 * n**3 / bf16 / 1e9,
        copy_tb_per_second=2 * 2 * source.numel() / copy / 1e9,
        float32_tflops=float32["highest"],
        tf32_tflops=float32["high"],
    )


def products(evidence: Evidence) -> None:
    """The products of CRATE-B and of the head at 32 rows of 1024 tokens: what the library alone reaches on them."""
    rows, d, words = evidence.pick((32768, 768, 50304), (64, 32, 512))
    chunk = rows // 8
    shapes = {  # (m, k, n); a gradient's first factor lies transposed in memory
        "dictionary": (rows, d, 4 * d),
        "synthesis": (rows, 4 * d, d),
        "dictionary's gradient": (4 * d, rows, d),
        "square": (rows, d, d),
        "square's gradient": (d, rows, d),
        "head, a chunk": (chunk, d, words),
        "head's gradient": (words, chunk, d),
    }
    for name, (m, k, n) in shapes.items():
        a, b = (torch.randn(*shape, device=evidence.device, dtype=torch.bfloat16) for shape in ((m, k), (k, n)))
        if "gradient" in name:
            a = a.T.contiguous().T
        ms = milliseconds(lambda a=a, b=b: a @ b, repeat=20)
        evidence.row("product", what=name, m=m, k=k, n=n, ms=ms, tflops=2 * m * k * n / ms / 1e9)


def attention(evidence: Evidence, backend: str, d_head: int, n_head: int, n_rows: int) -> None:
    """Forward, and forward with backward, of torch's causal attention with one tensor for q, k and v, as CRATE has it.

    FLOPs are counted dense, as everywhere in this project.
    """
    t = evidence.pick(1024, 64)
    stream = torch.randn(n_rows, t, n_head * d_head, device=evidence.device, dtype=torch.bfloat16, requires_grad=True)
    gradient = torch.randn(n_rows, n_head, t, d_head, device=evidence.device, dtype=torch.bfloat16)

    def attend() -> torch.Tensor:
        u = stream.unflatten(-1, (n_head, -1)).transpose(1, 2)
        return F.scaled_dot_product_attention(u, u, u, is_causal=True)

    flops = 4 * n_rows * n_head * t * t * d_head
    with attention_by(backend):
        try:
            forward = milliseconds(attend)
            both = milliseconds(lambda: torch.autograd.grad(attend(), stream, gradient))
        except RuntimeError as error:
            if "kernel" not in str(error):  # torch's words where a backend is not for this device or shape
                raise
            return evidence.left_out(f"attention by {backend}", str(error).partition("\n")[0])
    told: dict[str, Any] = {
        "backend": backend,
        "d_head": d_head,
        "rows": n_rows,
        "forward_ms": forward,
        "both_ms": both,
    }
    evidence.row("attention", **told, forward_tflops=flops / forward / 1e9, both_tflops=3 * flops / both / 1e9)


def attention_by(backend: str) -> Any:
    """Within, torch's attention takes this backend and no other; `default` is torch's own choice."""
    chosen = BACKENDS[backend]
    return contextlib.nullcontext() if chosen is None else sdpa_kernel(chosen)
