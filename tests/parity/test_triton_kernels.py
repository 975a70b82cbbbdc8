"""The Triton kernels without a GPU: run by Triton's interpreter, and compiled for sm_80 and sm_90."""

import functools
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from crate_model.ops import ista, precision

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton is published for Linux alone")
COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from crate_model.ops import cross_entropy_triton, ista_triton, launch_triton
from pipeline.activations import reservoir_triton, scan_triton

def build(kernel, signature, constants, capability, **options):
    aligned = {(index,): [["tt.divisibility", 16]] for index, kind in enumerate(signature.values()) if kind != "fp32"}
    full = signature | dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, signature=full, constexprs=constants, attrs=aligned)
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert built.asm["cubin"] and built.metadata.shared <= {80: 163, 90: 227}[capability] * 1024
    print(capability, built.metadata.shared, "mma" in built.asm["ptx"])

tiles = dict(tile_m=ista_triton.TILE_M, tile_n=ista_triton.TILE_N, tile_k=ista_triton.TILE_K, group_m=ista_triton.GROUP_M)
pointers = dict.fromkeys(("a_ptr", "b_ptr", "start_ptr", "code_ptr", "out_ptr"), "*bf16")
products = pointers | dict(m="i32", n="i32", k="i32", scale="fp32", threshold="fp32")
found = dict(highest_ptr="*fp32", token_ptr="*i32", largest_ptr="*i32", least_ptr="*i32")
looked_at = dict(allowed_ptr="*i8", of_tokens_ptr="*i32", of_neurons_ptr="*i32", bounds_ptr="*i32")
sizes = dict(n_ctx="i32", n_neurons="i32")
summed = dict(sums_ptr="*fp64", maximum_ptr="*fp32", nonzero_ptr="*i32")
held = dict(kept_ptr="*i64", activations_ptr="*fp32")
excerpts = dict(starts_ptr="*i64", first="i64") | dict.fromkeys(("n_neurons", "n_bins", "capacity", "width"), "i32")
tokens = dict(of_tokens_ptr="*i32", of_neurons_ptr="*i32", bounds_ptr="*i32", n_tokens="i32")
counted = dict(counts_ptr="*i32", n_tokens="i32", n_neurons="i32", n_levels="i32")
rows = dict(logits_ptr="*bf16", targets_ptr="*i64", losses_ptr="*fp32", n_words="i32")
for capability in (80, 90):
    for flags in (dict(has_start=False, masks=False), dict(has_start=True, masks=True)):
        build(ista_triton.kernel, products, flags | tiles, capability,
              num_warps=ista_triton.WARPS, num_stages=ista_triton.STAGES)
    build(cross_entropy_triton.kernel, rows, dict(block=cross_entropy_triton.BLOCK), capability,
          num_warps=cross_entropy_triton.WARPS)
    build(launch_triton.kernel, dict(from_ptr="*fp32", to_ptr="*fp32"), dict(n=launch_triton.N), capability)
    tile = dict(tile_tokens=scan_triton.TOKENS, tile_neurons=scan_triton.NEURONS)
    for values in (dict(values_ptr="*fp32"), dict(values_ptr="*bf16")):
        for n_bins in (8, 16):
            build(scan_triton.extremes_kernel, values | looked_at | found | sizes | dict(n_bins="i32"),
                  tile | dict(tile_tokens=scan_triton.TOKENS_OF_BINS, tile_bins=n_bins), capability,
                  num_warps=scan_triton.WARPS)
        build(scan_triton.statistics_kernel, values | summed | sizes, tile, capability, num_warps=scan_triton.WARPS)
        for signed in (False, True):
            build(scan_triton.levels_kernel, values | counted, tile | dict(signed=signed), capability,
                  num_warps=scan_triton.WARPS)
        for kept, width in ((64, 64), (128, 64), (64, 8)):
            tiles_of_kept = dict(tile_neurons=reservoir_triton.NEURONS, tile_kept=kept, tile_width=width)
            into = held | dict(text_ptr=values["values_ptr"]) | excerpts
            build(reservoir_triton.keep_kernel, into | dict(keys_ptr="*i64", n_offered="i32"), tiles_of_kept,
                  capability, num_warps=reservoir_triton.WARPS)
            build(reservoir_triton.keep_tokens_kernel, into | values | tokens,
                  tiles_of_kept | dict(tile_tokens=reservoir_triton.TOKENS, by_activation=kept == 64), capability,
                  num_warps=reservoir_triton.WARPS)
"""
PERSISTENT = """
import subprocess, tempfile
from pathlib import Path
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from crate_model.ops import ista_triton as ours

m, n, k = ours.TILE_M, ours.PERSISTENT_TILE_N, ours.TILE_K
shapes = dict(a_rows=(m, k), b_rows=(n, k), start_tiles=(m, n // 2), code_tiles=(m, n // 2), out_tiles=(m, n // 2))
tiles = {name: f"tensordesc<bf16[{rows}, {columns}]>" for name, (rows, columns) in shapes.items()}
numbers = dict(m="i32", n="i32", k="i32", scale="fp32", threshold="fp32")
for has_start, masks in ((False, False), (True, False), (True, True)):
    constants = dict(has_start=has_start, masks=masks, tile_m=m, tile_n=n, tile_k=k, group_m=ours.GROUP_M)
    signature = tiles | numbers | dict.fromkeys(constants, "constexpr")
    source = ASTSource(ours.persistent_kernel, signature=signature, constexprs=constants, attrs={})
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32),
                           options=dict(num_warps=ours.WARPS, num_stages=ours.STAGES))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        used = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    print(built.metadata.shared, "wgmma" in built.asm["ptx"], "bulk.tensor" in built.asm["ptx"], "LOCAL:0" in used.stdout)
"""


def run(*command: str, **environment: str) -> str:
    """In a process of its own: Triton decides at import whether it interprets."""
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=inherited | environment, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_forward_and_backward_under_the_interpreter() -> None:
    files = sorted(str(path) for path in Path(__file__).parent.glob("interpreted_*.py"))
    assert len(files) == 4
    assert "failed" not in run("-m", "pytest", "-q", *files, TRITON_INTERPRET="1")


def test_compiles_for_sm80_and_sm90() -> None:
    """To machine code, within the shared memory of an A100 and an H100, the products on tensor cores."""
    built = [line.split() for line in run("-c", COMPILE).splitlines()]
    of_scan = 2 * (2 + 1 + 2 + 2 * 3)  # by precision: bins, moments, levels, those that are kept
    assert [capability for capability, _, _ in built] == ["80"] * (4 + of_scan) + ["90"] * (4 + of_scan)
    assert [on_tensor_cores for _, _, on_tensor_cores in built] == ["True", "True", *["False"] * (2 + of_scan)] * 2


def test_the_persistent_kernel_compiles_for_hopper() -> None:
    """Its products by warp groups, its tiles by bulk copies, within an H100's shared memory, and no register spilled."""
    for line in run("-c", PERSISTENT).splitlines():
        shared, *facts = line.split()
        assert int(shared) <= 227 * 1024 and facts == ["True"] * 3


def test_without_a_working_triton_a_gpu_takes_torchs_operations(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It imports here and finds no driver, as on a machine without one or without a compiler: asked once, and told."""
    monkeypatch.setattr(precision, "_ask_for_triton", functools.cache(precision._ask_for_triton.__wrapped__))
    with FakeTensorMode(), caplog.at_level(logging.WARNING):
        z, w = (torch.empty(size, dtype=torch.bfloat16, device="cuda") for size in ((8, 16), (64, 16)))
        assert ista.ista(z, w, 0.1, 0.1, 2).shape == (8, 16)
        assert not precision.runs_triton(z)
    assert precision.why_no_triton()
    assert [record.message for record in caplog.records] == [
        f"Triton's kernels do not run here, torch's operations are used instead: {precision.why_no_triton()}"
    ]


def test_a_gpu_adds_narrow_products_to_wide_sums_unrounded() -> None:
    """As far as it can be seen without one: the compiled graph asks for a float32 product of 16-bit factors."""
    graphs: list[torch.fx.GraphModule] = []

    def capture(graph: torch.fx.GraphModule, _inputs: object) -> object:
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    with FakeTensorMode():
        a, b = (torch.empty(size, dtype=torch.bfloat16, device="cuda") for size in ((8, 16), (16, 4)))
        total = torch.empty(8, 4, dtype=torch.float32, device="cuda")
        torch.compile(precision.add_product_, backend=capture, fullgraph=True)(total, a, b, 0.5)
    (product,) = [node for node in graphs[0].graph.nodes if "mm" in str(node.target)]
    assert product.kwargs == {"out_dtype": torch.float32}
