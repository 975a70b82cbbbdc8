"""One finished sweep for all end-to-end tests: what a person asks of it afterwards, and what a disturbed one must equal."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.corpus import write_corpus
from tests.e2e.sweeps import sweep, tiny_config, write_config


@pytest.fixture(scope="session")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a finished sweep, in a folder with a space in its name."""
    folder = tmp_path_factory.mktemp("a sweep")
    config = write_config(folder / "tiny.yaml", tiny_config(write_corpus(folder), folder / "store"))
    result = sweep(config)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.rstrip().endswith("report: " + str(folder / "store/runs/tiny/report/index.html"))
    return config
