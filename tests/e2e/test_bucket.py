"""The whole sweep with its store in a bucket, on a server that answers 500 and late: its artifacts are those of a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.artifacts.store import Store
from tests.e2e.sweeps import sweep
from tests.s3 import BUCKET, s3_server

PLACE = f"s3://{BUCKET}/sweep"
STAGES = ("tokens", "pretrain", "evaluate", "activations", "interpret", "steer")


def made(store: Store) -> dict[tuple[str, str], tuple]:
    """Names, sizes and hashes of every artifact's files."""
    artifacts = [artifact for stage in STAGES for artifact in store.all_of(stage)]
    return {(a.manifest.stage, a.fingerprint): tuple(a.manifest.files) for a in artifacts}


def test_a_sweep_over_a_bucket_in_bad_weather(swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Store(swept.parent / "store")
    config = tmp_path / "tiny.yaml"
    config.write_text(swept.read_text().replace(str(folder.root), PLACE))
    knobs = (f"runtime.mlflow_uri=sqlite:///{tmp_path}/mlflow.db", "runtime.checkpoint_every_steps=25")
    options = [argument for knob in knobs for argument in ("--set", knob)]
    with s3_server(fail_every=25, slow_every=400) as weather:
        monkeypatch.setenv("CRATE_CACHE", str(tmp_path / "one machine"))
        result = sweep(config, *options)
        assert result.returncode == 0, result.stdout + result.stderr
        assert weather.n_failed > 10
        far = made(Store.open(PLACE, tmp_path / "reader"))
        assert len(far) == 11 and far.items() <= made(folder).items()  # tokens, and five steps of two models

        monkeypatch.setenv("CRATE_CACHE", str(tmp_path / "another machine"))
        again = sweep(config, *options)
        assert again.returncode == 0, again.stdout + again.stderr
        assert "0 to make" in again.stdout
        assert again.stdout.splitlines()[-1] == result.stdout.splitlines()[-1]
        assert again.stdout.splitlines()[-1].startswith(f"report: {PLACE}/report/")
