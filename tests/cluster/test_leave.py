"""A worker pod that is taken away; one with work on it is in tests/e2e/test_cluster.py."""

from __future__ import annotations

import subprocess
import sys
import time

from tests.cluster.manifests import ROOT


def test_with_no_ray_below_it_goes_at_once() -> None:
    started = time.monotonic()
    with subprocess.Popen(["sleep", "300"]) as alone:  # this process itself may have a Ray below it, from other tests
        try:
            leave = [sys.executable, "-m", "cluster.leave", "--root", str(alone.pid), "--seconds", "300"]
            subprocess.run(leave, cwd=ROOT, check=True, timeout=120, capture_output=True)
            assert alone.poll() is None, "it ended a process that does not keep Ray"
        finally:
            alone.kill()
    assert time.monotonic() - started < 60
