"""The kernel that is launched to learn whether Triton works, under Triton's interpreter; run by test_triton_kernels.py."""

import pytest

from crate_model.ops import launch_triton


def test_a_kernel_that_runs_raises_nothing() -> None:
    launch_triton.check("cpu")


def test_a_kernel_that_computes_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_triton, "kernel", {(1,): lambda *_arguments, n: None})
    with pytest.raises(RuntimeError, match="did not compute"):
        launch_triton.check("cpu")
