"""The golden loss curve: thirty steps of both architectures, equal to the bit. A refactoring must not move it."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the golden curve's arithmetic is x86's")
def test_the_curve_has_not_moved() -> None:
    made = subprocess.run(
        [sys.executable, "-W", "ignore", str(HERE / "golden_curve.py")], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr[-2000:]
    ours, golden = json.loads(made.stdout), json.loads((HERE / "pretrain_curve.json").read_text())
    for architecture, curve in golden.items():
        for name, values in curve.items():
            if ours[architecture][name] != values:
                pytest.fail(f"{architecture} {name}: {_first_difference(ours[architecture][name], values)}")


def _first_difference(ours: list[str | None], golden: list[str | None]) -> str:
    step = next(i for i, pair in enumerate(zip(ours, golden, strict=True)) if pair[0] != pair[1])
    a, b = (float.fromhex(values[step] or "nan") for values in (ours, golden))
    return f"step {step + 1} is {a!r}, was {b!r} (they differ by {np.abs(a - b):.2e})"
