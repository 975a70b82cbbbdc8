"""A tiny sweep as a person starts it: its configuration, and the command as a process of its own."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


@functools.cache
def interpreter() -> str:
    """This Python, by a path without spaces: `ray start` (2.60) puts it unquoted into a shell's command."""
    if " " not in sys.executable:
        return sys.executable
    link = Path(tempfile.mkdtemp(prefix="python-")) / "venv"
    link.symlink_to(sys.prefix)
    return str(link / "bin" / "python")


def ray_command(*arguments: str) -> list[str]:
    return [interpreter(), "-m", "ray.scripts.scripts", *arguments]


def tiny_config(corpus: Path, store: Path, **changes: object) -> dict:
    """Two small models of one layer on a small corpus; float32, so that reruns are equal to the bit."""
    config: dict = {
        "name": "tiny",
        "grid": {"model.architecture": ["crate", "gpt2"], "model.n_layer": [1]},
        "model": {"d_model": 32, "n_head": 2, "n_ctx": 64},
        "tokens": {"source": "jsonl", "train": [str(corpus)], "val_fraction": 0.2},
        "pretrain": {
            "total_tokens": 6_400,
            "batch_tokens": 128,
            "learning_rate": 3e-3,
            "min_learning_rate": 3e-4,
            "warmup_steps": 5,
            "precision": "fp32",
            "eval_every_steps": 25,
            "eval_tokens": 1024,
        },
        "evaluate": {"val_tokens": 4096},
        "activations": {"tokens": 8192, "tokens_short": 8192, "top": 50, "random": 20},
        "runtime": {"store": str(store), "cpus": 2, "checkpoint_every_steps": 5},
    }
    for key, value in changes.items():
        section = config
        *above, last = key.split("__")
        for name in above:
            section = section.setdefault(name, {})
        section[last] = value
    return config


def write_config(path: Path, config: dict) -> Path:
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def environment() -> dict[str, str]:
    clean = {
        key: value for key, value in os.environ.items() if not key.startswith("RAY_") and key != "MLFLOW_TRACKING_URI"
    }
    return clean | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def command(config: Path, *arguments: str) -> list[str]:
    return [sys.executable, "pipeline/sweep.py", "--config", str(config), *arguments]


def sweep(config: Path, *arguments: str, timeout_seconds: float = 1200) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(config, *arguments),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
    )


def planned(config: Path, *arguments: str) -> dict[str, str]:
    """Status of every step by name, from `--plan --json`."""
    result = sweep(config, "--plan", "--json", *arguments)
    assert result.returncode == 0, result.stderr
    return {step["name"]: step["status"] for step in json.loads(result.stdout)["steps"]}
