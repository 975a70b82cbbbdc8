"""Before a first kernel Triton compiles a C module. Without a compiler, headers or a place to write: told, and done without."""

from __future__ import annotations

import dataclasses
import functools
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is published for Linux alone")

from triton.runtime.build import compile_module_from_src

from cluster.preflight import node
from crate_model.ops import launch_triton, precision
from pipeline import doctor
from pipeline.activations import scan

MODULE = """
#include <Python.h>
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "trivial", 0, -1};
PyMODINIT_FUNC PyInit_trivial(void) { return PyModule_Create(&definition); }
"""
FAULTS = {
    "no compiler": ({"PATH": ""}, "RuntimeError: Failed to find C compiler"),
    "a compiler that fails": ({"CC": "false"}, "CalledProcessError: Command '['false'"),
    "nowhere to write": ({"TRITON_CACHE_DIR": "/dev/null/triton"}, "NotADirectoryError"),
}


@pytest.fixture(autouse=True)
def as_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU that nobody has asked yet, with an empty cache: of a launch only the compiling is done, by Triton's own builder."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(precision, "_ask_for_triton", functools.cache(precision._ask_for_triton.__wrapped__))
    monkeypatch.setattr(launch_triton, "check", lambda: compile_module_from_src(MODULE, "trivial"))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    monkeypatch.delenv("CC", raising=False)
    yield


def plant(monkeypatch: pytest.MonkeyPatch, fault: str) -> str:
    variables, why = FAULTS[fault]
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return why


@pytest.mark.skipif(not (shutil.which("gcc") or shutil.which("clang")), reason="no C compiler on PATH")
def test_with_a_compiler_it_works_and_doctor_and_preflight_say_so(tmp_path: Path) -> None:
    assert precision.why_no_triton() == ""
    assert list((tmp_path / "triton").rglob("trivial*.so"))
    assert doctor._triton(torch) == "works: a kernel was compiled and launched"
    assert [fact.line("triton") for fact in node.triton()] == [
        "ok   triton       a Triton kernel, compiled and launched"
    ]


@pytest.mark.parametrize("fault", FAULTS)
def test_what_keeps_it_from_launching_is_told_with_what_to_install(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = plant(monkeypatch, fault)
    why = precision.why_no_triton()
    assert why.startswith(expected)
    assert doctor._triton(torch) == f"its kernels do not run ({why}): torch's own operations are used instead, slower"
    (line,) = [fact.line("triton") for fact in node.triton()]
    assert line.startswith(f"BAD  triton       no Triton kernel runs ({why}): install g++ and Python's headers")


def test_without_a_gpu_it_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    plant(monkeypatch, "no compiler")
    assert doctor._triton(torch) == "not needed on the processor"
    assert [fact.line("triton") for fact in node.triton()] == ["--   triton       Triton's kernels need a GPU"]


class OnAGpu(torch.Tensor):
    """Numbers of the processor that say they lie on a GPU, so that they can be compared."""

    is_cuda = property(lambda self: True)  # type: ignore[assignment]


def test_the_scan_takes_its_plain_forms_and_warns_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plant(monkeypatch, "no compiler")
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, 8, 5, generator=generator)
    tokens, neurons = torch.arange(16, dtype=torch.int32).view(2, 8), torch.arange(5, dtype=torch.int32)
    bounds = torch.tensor([scan.SMALLEST, 0, scan.LARGEST], dtype=torch.int32)[:, None].repeat(1, 5)
    rest = (values[:, :, 0] > -1, tokens, neurons, bounds)
    with caplog.at_level(logging.WARNING):
        there, extreme = (
            f(values.as_subclass(OnAGpu), *more) for f, more in ((scan.statistics, ()), (scan.extremes, rest))
        )
    for ours, plain in ((there, scan.plain_statistics(values)), (extreme, scan.plain_extremes(values, *rest))):
        for name in (field.name for field in dataclasses.fields(ours)):
            assert torch.equal(getattr(ours, name), getattr(plain, name)), name
    assert [record.message for record in caplog.records] == [
        f"Triton's kernels do not run here, torch's operations are used instead: {precision.why_no_triton()}"
    ]
