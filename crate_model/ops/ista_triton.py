"""Triton kernels for the products of ISTA that have element-wise work before or after them, in forward and backward.

They compute `start + scale * a @ b.T` and, before anything is written, either shrink it (forward: the code) or mask it by
where a code is positive (backward). Without them each of these is two or three more passes over tensors of the code's width.
Accumulation is float32. Imported only on CUDA; with TRITON_INTERPRET=1 they run on a CPU, which the tests use.

`kernel` takes a tile a program. `persistent_kernel` is for Hopper and later: as many programs as the GPU has multiprocessors
go from tile to tile, so that one tile's element-wise work hides behind the next one's product, and tiles come and go by bulk
copies, which leave the registers to the sums. It is off until a GPU has shown that it is faster (`PERSISTENT`).
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from crate_model.ops import precision

# Tile (rows, columns, inner), warps and pipeline stages: 16-bit tiles that fit the shared memory of sm_80 and sm_90.
TILE_M, TILE_N, TILE_K, GROUP_M = 128, 128, 64, 8
WARPS, STAGES = 8, 3
PERSISTENT = False  # whether `persistent_kernel` is taken where it can be
PERSISTENT_TILE_N = 256  # columns of its tiles; the rest is as above
BULK_COPY_BYTES = 16  # a bulk copy's rows begin at multiples of so many


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
    if PERSISTENT and not (k * a.element_size() % BULK_COPY_BYTES or n * a.element_size() % BULK_COPY_BYTES):
        _launch_persistent(a, b, start_or_out, code_or_out, out, scale, threshold, start is not None, code is not None)
        return out
    tiles = triton.cdiv(m, TILE_M) * triton.cdiv(n, TILE_N)
    kernel[(tiles,)](
        a, b, start_or_out, code_or_out, out, m, n, k, scale, threshold,
        has_start=start is not None, masks=code is not None,
        tile_m=TILE_M, tile_n=TILE_N, tile_k=TILE_K, group_m=GROUP_M,
        num_warps=WARPS, num_stages=STAGES,
    )  # fmt: skip
    return out


def _launch_persistent(
    a: Tensor, b: Tensor, start: Tensor, code: Tensor, out: Tensor, scale: float, threshold: float,
    has_start: bool, masks: bool,
) -> None:  # fmt: skip
    (m, k), n = a.shape, b.shape[0]
    tiles = triton.cdiv(m, TILE_M) * triton.cdiv(n, PERSISTENT_TILE_N)
    half_tile = [TILE_M, PERSISTENT_TILE_N // 2]
    of = TensorDescriptor.from_tensor
    persistent_kernel[(min(tiles, _multiprocessors()),)](
        of(a, [TILE_M, TILE_K]), of(b, [PERSISTENT_TILE_N, TILE_K]), of(start, half_tile), of(code, half_tile),
        of(out, half_tile), m, n, k, scale, threshold, has_start=has_start, masks=masks,
        tile_m=TILE_M, tile_n=PERSISTENT_TILE_N, tile_k=TILE_K, group_m=GROUP_M, num_warps=WARPS, num_stages=STAGES,
    )  # fmt: skip


@precision.constant_when_compiled
def _multiprocessors() -> int:
    return torch.cuda.get_device_properties().multi_processor_count


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


@triton.jit
def persistent_kernel(
    a_rows, b_rows, start_tiles, code_tiles, out_tiles, m, n, k, scale, threshold,
    has_start: tl.constexpr, masks: tl.constexpr,
    tile_m: tl.constexpr, tile_n: tl.constexpr, tile_k: tl.constexpr, group_m: tl.constexpr,
):  # fmt: skip
    n_tiles_m, n_tiles_n = tl.cdiv(m, tile_m), tl.cdiv(n, tile_n)
    half: tl.constexpr = tile_n // 2
    for tile in tl.range(tl.program_id(0), n_tiles_m * n_tiles_n, tl.num_programs(0), flatten=True):
        # In the order of `kernel`.
        first = (tile // (group_m * n_tiles_n)) * group_m
        height = min(n_tiles_m - first, group_m)
        row = (first + (tile % (group_m * n_tiles_n)) % height) * tile_m
        column = ((tile % (group_m * n_tiles_n)) // height) * tile_n
        total = tl.zeros((tile_m, tile_n), dtype=tl.float32)
        for begin in range(0, k, tile_k):
            total = tl.dot(a_rows.load([row, begin]), b_rows.load([column, begin]).T, total, input_precision="ieee")

        # In two halves: the element-wise work of a whole tile would not fit the registers beside its sums.
        left, right = tl.split(tl.permute(tl.reshape(total, (tile_m, 2, half)), (0, 2, 1)))
        for side in tl.static_range(2):
            place = column + side * half
            value = (left if side == 0 else right) * scale
            if has_start:
                value += start_tiles.load([row, place]).to(tl.float32)
            shrunk_or_masked = (
                tl.where(code_tiles.load([row, place]) > 0, value, 0.0) if masks else tl.maximum(value - threshold, 0.0)
            )
            out_tiles.store([row, place], shrunk_or_masked.to(out_tiles.dtype))
