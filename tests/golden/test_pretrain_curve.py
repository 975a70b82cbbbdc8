"""The golden loss curve: thirty steps of both architectures. A refactoring must not move it.

Equal to the bit where this processor's curve is recorded. The instruction set is pinned, but MKL's products still round
otherwise on processors of another maker: there the curve is a recorded one within rounding.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import numpy as np
import pytest
from golden_curve import PLACE, processor

ROUNDING = {"loss": 1e-4, "val_loss": 1e-4, "grad_norm": 0.02}  # relative; two makers' curves lie 1e-5 and 0.005 apart


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the golden curve's arithmetic is x86's")
def test_the_curve_has_not_moved() -> None:
    script = [sys.executable, "-W", "ignore", str(PLACE.with_name("golden_curve.py"))]
    made = subprocess.run(script, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr[-2000:]
    ours, recorded = json.loads(made.stdout), json.loads(PLACE.read_text())
    mine = [maker for maker in recorded if processor().startswith(maker)]
    golden = recorded[mine[0]] if mine else next(iter(recorded.values()))
    assert (_difference(ours, golden) if mine else _difference(ours, golden, ROUNDING)) == ""


def test_the_recorded_curves_differ_by_rounding_alone() -> None:
    first, *others = json.loads(PLACE.read_text()).values()
    assert others and [_difference(other, first, ROUNDING) for other in others] == [""] * len(others)


def _difference(ours: dict, golden: dict, rounding: dict[str, float] | None = None) -> str:
    """The first value beyond `rounding` (None: other than to the bit); empty where there is none."""
    for architecture, curve in golden.items():
        if ours[architecture]["consumed"] != curve["consumed"]:
            return f"{architecture} consumed other windows"
        for name in ROUNDING:
            a, b = (
                np.array([float.fromhex(value or "nan") for value in of[architecture][name]]) for of in (ours, golden)
            )
            moved = ~np.isclose(a, b, rtol=rounding[name] if rounding else 0, atol=0, equal_nan=True)
            if moved.any():
                step = int(moved.argmax())
                return f"{architecture} {name}: step {step + 1} is {float(a[step])!r}, was {float(b[step])!r}"
    return ""
