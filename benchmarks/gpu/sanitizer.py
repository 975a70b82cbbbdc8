"""Every kernel under compute-sanitizer, which finds reads and writes outside of what was allocated."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict

import torch

from gpu.boxes import PROGRAM
from gpu.clocks import synchronize
from gpu.interpreted import kernel_dtypes
from gpu.session import Evidence

FOUND = 7  # the exit status by which the sanitizer says that it found something


def run(evidence: Evidence) -> None:
    evidence.attempt("memcheck", memcheck, needs=20)


def memcheck(evidence: Evidence) -> None:
    """`every_kernel` in a process of its own under the tool; in tiny sizes without it."""
    tool = shutil.which("compute-sanitizer")
    if not tool and not evidence.tiny:
        return evidence.left_out("memcheck", "compute-sanitizer is not installed")
    report = evidence.out / "sanitizer.txt"
    watched = [tool, "--tool", "memcheck", "--error-exitcode", str(FOUND), "--log-file", str(report)] if tool else []
    task = {"session": asdict(evidence.session), "stage": evidence.stage, "deadline": evidence.deadline}
    command = [sys.executable, str(PROGRAM), "--task", json.dumps(task | {"function": "gpu.sanitizer:every_kernel"})]
    started = time.perf_counter()
    # Every tensor is to be an allocation of its own, or what lies beside it would be allocated too.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run([*map(str, watched), *command], env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, FOUND):
        raise RuntimeError(f"status {done.returncode}: {done.stderr[-400:]}")
    taken = time.perf_counter() - started
    evidence.row("memcheck", ok=done.returncode == 0, under_the_tool=bool(watched), seconds=taken)


def every_kernel(evidence: Evidence) -> None:
    """Each kernel on shapes that no tile divides. Nothing is caught: what is raised is the process's exit status."""
    dtype = kernel_dtypes(evidence)[0]
    from crate_model.ops import cross_entropy_triton
    from crate_model.ops.ista import ista
    from gpu.parity import scan_arguments
    from pipeline.activations import scan, scan_triton

    device = evidence.device
    for n, d, n_atoms in evidence.pick(((37, 24, 56), (130, 72, 200), (5, 7, 33)), ((5, 7, 33),)):
        z = torch.randn(n, d, device=device, dtype=dtype, requires_grad=True)
        atoms = (torch.randn(n_atoms, d, device=device, dtype=dtype) * 0.3).requires_grad_()
        ista(z, atoms, 0.1, 0.1, 2).sum().backward()
    for n, words in evidence.pick(((9, 31), (3, 200), (5, 50257)), ((9, 31),)):
        logits = torch.randn(n, words, device=device, dtype=dtype)
        cross_entropy_triton.surprise_(logits, torch.randint(words, (n,), device=device))
    for shape in evidence.pick(((1, 100, 33), (2, 17, 1), (3, 128, 48)), ((2, 17, 1),)):
        values = torch.randn(shape).relu()
        counts = scan.level_counts(values.flatten(0, 1), False)
        told = [t.to(device) for t in scan_arguments(values, counts, (0.5, 0.9), False, 3)]
        scan_triton.extremes(*told)
        scan_triton.statistics(told[0])
    synchronize()
