"""One finished sweep for all end-to-end tests: what a person asks of it afterwards, and what a disturbed one must equal."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from filelock import FileLock

from tests.corpus import write_corpus
from tests.e2e.sweeps import sweep, tiny_config, write_config


@pytest.fixture(scope="session")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a finished sweep, in a folder with a space in its name: made once, by whichever process is first."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "a sweep"
    config, report = folder / "tiny.yaml", folder / "store/runs/tiny/report/index.html"
    with FileLock(f"{folder}.lock"):
        if not report.exists():
            folder.mkdir(exist_ok=True)
            result = sweep(write_config(config, tiny_config(write_corpus(folder), folder / "store")))
            assert result.returncode == 0, result.stdout + result.stderr
            assert result.stdout.rstrip().endswith(f"report: {report}")
    return config
