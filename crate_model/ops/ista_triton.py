"""One Triton kernel for the products of ISTA that have element-wise work before or after them, in forward and backward.

It computes `start + scale * a @ b.T` and, before anything is written, either shrinks it (forward: the code) or masks it by
where a code is positive (backward). Without it each of these is two or three more passes over tensors of the code's width.
Accumulation is float32. Written by import only on CUDA; with TRITON_INTERPRET=1 it runs on a CPU, which the tests use.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

# Tile (rows, columns, inner), warps and pipeline stages: 16-bit tiles that fit the shared memory of sm_80 and sm_90.
TILE_M, TILE_N, TILE_K, GROUP_M = 128, 128, 64, 8
WARPS, STAGES = 8, 3


def shrunk_product(
    start: Float[Tensor, "n d_code"] | None,
    a: Float[Tensor, "n d_model"],
    b: Float[Tensor, "d_code d_model"],
    scale: float,
    threshold: float,
) -> Float[Tensor, "n d_code"]:
    """relu(start + scale * a @ b.T - threshold)."""
    return _launch(start, a, b, scale, threshold, None)


def masked_product(
    start: Float[Tensor, "n d_code"] | None,
    a: Float[Tensor, "n d_model"],
    b: Float[Tensor, "d_code d_model"],
    scale: float,
    code: Float[Tensor, "n d_code"],
) -> Float[Tensor, "n d_code"]:
    """start + scale * a @ b.T where `code` is positive, else 0."""
    return _launch(start, a, b, scale, 0.0, code)


def _launch(start: Tensor | None, a: Tensor, b: Tensor, scale: float, threshold: float, code: Tensor | None) -> Tensor:
    a, b = a.contiguous(), b.contiguous()
    (m, k), n = a.shape, b.shape[0]
    out = torch.empty((m, n), dtype=a.dtype, device=a.device)
    start_or_out = out if start is None else start.contiguous()
    code_or_out = out if code is None else code.contiguous()
    tiles = triton.cdiv(m, TILE_M) * triton.cdiv(n, TILE_N)
    kernel[(tiles,)](
        a, b, start_or_out, code_or_out, out, m, n, k, scale, threshold,
        has_start=start is not None, masks=code is not None,
        tile_m=TILE_M, tile_n=TILE_N, tile_k=TILE_K, group_m=GROUP_M,
        num_warps=WARPS, num_stages=STAGES,
    )  # fmt: skip
    return out


@triton.jit
def kernel(
    a_ptr, b_ptr, start_ptr, code_ptr, out_ptr, m, n, k, scale, threshold,
    has_start: tl.constexpr, masks: tl.constexpr,
    tile_m: tl.constexpr, tile_n: tl.constexpr, tile_k: tl.constexpr, group_m: tl.constexpr,
):  # fmt: skip
    # Neighbouring programs share rows of b: tiles go down group_m rows before they move one column on.
    program, n_tiles_m, n_tiles_n = tl.program_id(0), tl.cdiv(m, tile_m), tl.cdiv(n, tile_n)
    group = program // (group_m * n_tiles_n)
    first = group * group_m
    height = min(n_tiles_m - first, group_m)
    row_tile = first + (program % (group_m * n_tiles_n)) % height
    column_tile = (program % (group_m * n_tiles_n)) // height

    rows = (row_tile * tile_m + tl.arange(0, tile_m)).to(tl.int64)
    columns = (column_tile * tile_n + tl.arange(0, tile_n)).to(tl.int64)
    inner = tl.arange(0, tile_k)
    total = tl.zeros((tile_m, tile_n), dtype=tl.float32)
    for begin in range(0, k, tile_k):
        inside = begin + inner < k
        a = tl.load(
            a_ptr + rows[:, None] * k + begin + inner[None, :], mask=(rows < m)[:, None] & inside[None, :], other=0.0
        )
        b = tl.load(
            b_ptr + columns[None, :] * k + begin + inner[:, None],
            mask=(columns < n)[None, :] & inside[:, None],
            other=0.0,
        )
        total = tl.dot(a, b, total, input_precision="ieee")

    places = rows[:, None] * n + columns[None, :]
    inside_out = (rows < m)[:, None] & (columns < n)[None, :]
    value = total * scale
    if has_start:
        value += tl.load(start_ptr + places, mask=inside_out, other=0.0).to(tl.float32)
    if masks:
        code = tl.load(code_ptr + places, mask=inside_out, other=0.0)
        value = tl.where(code > 0, value, 0.0)
    else:
        value = tl.maximum(value - threshold, 0.0)
    tl.store(out_ptr + places, value.to(out_ptr.dtype.element_ty), mask=inside_out)
