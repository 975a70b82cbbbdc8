"""A worker pod's last act (its preStop hook): tell Ray that this node is taken away, let the work save, then let go.

    python -m cluster.leave [--root PID] [--seconds 110]

Ray hears nothing of Kubernetes: without this a reclaimed node simply vanishes, and what was done since the last checkpoint
with it. Ray Train passes the notice on to the training loop, which writes a checkpoint and leaves. When the last busy
process is gone, or the time is up, `ray start --block` is ended, so that the pod does not sit out its grace period: by itself
it stays when its raylet has left in peace.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sysconfig
import time
from pathlib import Path

import psutil

NOTICE_SECONDS = 20  # for the notice itself: at a sweep's end there is nobody left to take it


def give_notice(raylet: psutil.Process, seconds: int) -> bool:
    """Have Ray mark the node of this raylet as being preempted. False when the cluster does not answer."""
    ray = Path(sysconfig.get_path("scripts")) / "ray"
    command = [str(ray), "drain-node", "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=the pod is deleted"]
    command += [f"--node-id={node_id(raylet)}", f"--deadline-remaining-seconds={seconds}"]
    try:
        return not subprocess.run(command, timeout=NOTICE_SECONDS, check=False).returncode
    except subprocess.TimeoutExpired:
        return False


def node_id(raylet: psutil.Process) -> str:
    return next(word.partition("=")[2] for word in raylet.cmdline() if word.startswith("--node_id="))


def find_raylet(root: psutil.Process) -> psutil.Process | None:
    """Ray's node process below `root`."""
    return next((p for p in _below(root) if Path(_title(p).partition(" ")[0]).name == "raylet"), None)


def busy(root: psutil.Process) -> list[psutil.Process]:
    """Ray's processes below `root` that hold an actor or run a task; Ray writes that into their titles."""
    return [p for p in _below(root) if _title(p).startswith("ray::") and not _title(p).startswith("ray::IDLE")]


def _below(root: psutil.Process) -> list[psutil.Process]:
    return root.children(recursive=True)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--root", type=int, default=1, help="the process below which Ray runs; in a pod the first one")
    parser.add_argument("--seconds", type=int, default=110, help="how long the work may take to save")
    options = parser.parse_args()
    root, deadline = psutil.Process(options.root), time.monotonic() + options.seconds
    if raylet := find_raylet(root):
        starter = raylet.parent() or raylet
        if give_notice(raylet, options.seconds):
            while busy(root) and time.monotonic() < deadline:
                time.sleep(0.5)
        with contextlib.suppress(psutil.NoSuchProcess):
            starter.terminate()


if __name__ == "__main__":
    main()
