"""Which arithmetic a device is good at, asked once, and matrix products that follow the answer.

bfloat16 halves memory everywhere, but a CPU without AVX512-BF16, AMX or Arm BF16 multiplies it by software emulation, some ten
times slower than float32. There the operands are widened, multiplied in float32 and the result is rounded to bfloat16: the
same rounding of the result as a native bfloat16 product with float32 accumulation, at float32's speed.
"""

import functools
import logging
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Method = TypeVar("Method", bound=Callable[..., Any])
logger = logging.getLogger(__name__)


def constant_when_compiled(function: Method) -> Method:
    """What `torch.compiler.assume_constant_result` does: torch.compile calls `function` and puts the answer into its graph,
    where it would otherwise trace into it and split the graph. By hand, since that decorator imports the whole compiler."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_when_compiled
def fast_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (AVX512-BF16, AMX-BF16 or Arm BF16)."""
    return _ask_for_bf16()


@constant_when_compiled
def why_no_triton() -> str:
    """Why no Triton kernel runs on this process's GPU; empty when one was launched and computed what it should.

    Asked once a process, by launching one: a package that imports says nothing yet. A launch needs a C compiler and the driver
    too, and a GPU that this Triton knows.
    """
    return _ask_for_triton()


@functools.cache
def _ask_for_triton() -> str:
    try:
        from crate_model.ops import launch_triton

        launch_triton.check()
    except (ImportError, OSError, RuntimeError, AssertionError, subprocess.SubprocessError) as error:
        why = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        logger.warning("Triton's kernels do not run here, torch's operations are used instead: %s", why)
        return why
    return ""


@functools.cache
def _ask_for_bf16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    if any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16")):
        return True
    cpuinfo = Path("/proc/cpuinfo")
    return capabilities.get("architecture") != "x86_64" and cpuinfo.exists() and " bf16 " in cpuinfo.read_text()


def default_dtype(device: torch.device | str) -> torch.dtype:
    """The dtype that trains fastest on `device`: bfloat16 where the hardware multiplies it, else float32."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.bfloat16
    return torch.bfloat16 if kind == "cpu" and fast_bf16() else torch.float32


def widens(tensor: Tensor) -> bool:
    """Whether products of `tensor` are computed in float32 and rounded: bfloat16 or float16 on a CPU without native products."""
    return tensor.device.type == "cpu" and tensor.dtype in (torch.bfloat16, torch.float16) and not fast_bf16()


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Products of float32 tensors within: torch's `highest` (float32), `high` (TF32 on a GPU) or `medium` (bfloat16 factors on a
    CPU that multiplies them, TF32 on a GPU). Sums and results stay float32; hardware without these takes float32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def runs_triton(tensor: Tensor) -> bool:
    """Whether the Triton kernels are for `tensor`: 16-bit floats of a CUDA device on which they run; the rest is torch's."""
    return tensor.is_cuda and tensor.dtype in (torch.bfloat16, torch.float16) and not why_no_triton()


def widened(tensor: Tensor) -> Tensor:
    """`tensor` in float32 where its products should be computed so, else itself."""
    return tensor.float() if widens(tensor) else tensor


def autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Cast to the autocast dtype where autocast is on, as torch does for its own linear layers; else the tensors as they are."""
    device_type = tensors[0].device.type
    if not torch.is_autocast_enabled(device_type):
        return tensors
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in tensors)


def without_autocast(method: Method) -> Method:
    """Make a Function's forward or backward choose its own dtypes, whatever autocast is on around it."""

    @functools.wraps(method)
    def run(ctx: Any, *arguments: Any) -> Any:
        with ExitStack() as contexts:
            for device_type in {argument.device.type for argument in arguments if isinstance(argument, Tensor)}:
                if torch.is_autocast_enabled(device_type):
                    contexts.enter_context(torch.autocast(device_type, enabled=False))
            return method(ctx, *arguments)

    return cast(Method, run)


def add_product_(total: Tensor, a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
    """total += scale * a @ b. A GPU adds a 16-bit product to float32 sums unrounded, as it writes it."""
    if total.dtype == a.dtype:
        return total.addmm_(a, b, alpha=scale)
    if not total.is_cuda:
        return total.add_(a @ b, alpha=scale)
    if torch.compiler.is_compiling():  # torch 2.11 cannot compile the operation below
        return total.add_(torch.mm(a, b, out_dtype=total.dtype), alpha=scale)
    return torch.addmm(total, a, b, alpha=scale, out_dtype=total.dtype, out=total)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias` for x (..., in), weight (out, in): torch's own, or widened where that is faster."""
    if not widens(x) or x.dtype != weight.dtype:
        return torch.nn.functional.linear(x, weight, bias)
    if bias is None:
        return _WideLinear.apply(x, weight)
    return _WideLinear.apply(x, weight) + bias


class _WideLinear(torch.autograd.Function):
    """A linear layer whose three products run in float32 while everything kept or returned stays narrow."""

    @staticmethod
    @without_autocast
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return (x.float() @ weight.float().T).to(x.dtype)

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        wide = gradient.float()
        grad_x = (wide @ weight.float()).to(x.dtype)
        grad_weight = wide.flatten(0, -2).T @ x.float().flatten(0, -2)
        return grad_x, grad_weight.to(weight.dtype)
