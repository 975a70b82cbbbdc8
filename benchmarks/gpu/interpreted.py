"""In tiny sizes the Triton kernels run on the CPU, by Triton's interpreter: the same kernels, in float32 and small tiles."""

from __future__ import annotations

import os

import torch

from gpu.session import Evidence

SMALL_TILES = {"TILE_M": 16, "TILE_N": 32, "TILE_K": 16, "GROUP_M": 2, "PERSISTENT_TILE_N": 64}


def kernel_dtypes(evidence: Evidence) -> tuple[torch.dtype, ...]:
    """The dtypes in which kernels are tried. Called first in a stage, since Triton asks at import whether to interpret."""
    if not evidence.tiny:
        return torch.bfloat16, torch.float16, torch.float32
    os.environ["TRITON_INTERPRET"] = "1"
    from crate_model.ops import cross_entropy_triton, ista_triton, precision

    precision.runs_triton = lambda tensor: tensor.dtype == torch.float32
    for name, size in SMALL_TILES.items():
        setattr(ista_triton, name, size)
    ista_triton._multiprocessors = lambda: 3
    cross_entropy_triton.BLOCK = 64
    return (torch.float32,)
