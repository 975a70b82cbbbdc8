"""The resume format: whole or not there, and never trusted unread."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from pipeline.artifacts.checkpoint import CURVE_SCHEMA
from pipeline.errors import ResourceError
from pipeline.pretrain import resume
from pipeline.pretrain.resume import PARTS, BackgroundWriter, Counters, Snapshot


def snapshot(step: int) -> Snapshot:
    generator = torch.Generator().manual_seed(step)
    tensors = {part: {"a.weight": torch.randn(4, 3, generator=generator), "b": torch.randn(5)} for part in PARTS}
    values = {"step": [1, 2], "tokens": [8, 16], "val_loss": [None, 2.5]}
    curve = {name: values.get(name, [0.1, 1 / 3]) for name in CURVE_SCHEMA.names}
    counters = Counters(step, 8 * step, "ab" * 32, [2], [0.5, 1 / 3], "torch_fused", 0.0)
    return Snapshot(counters, tensors, curve, torch.get_rng_state())


def test_what_is_written_is_read(tmp_path: Path) -> None:
    written = snapshot(7)
    read = resume.read(resume.write(tmp_path, written, keep=2))
    assert read.counters == written.counters
    assert read.curve == written.curve
    assert read.rng is not None and torch.equal(read.rng, written.rng)
    for part in PARTS:
        assert all(torch.equal(read.tensors[part][name], tensor) for name, tensor in written.tensors[part].items())


def test_only_the_newest_are_kept_and_no_pickle_is_written(tmp_path: Path) -> None:
    for step in (1, 2, 3, 12):
        resume.write(tmp_path, snapshot(step), keep=2)
    assert resume.steps(tmp_path) == [3, 12]
    suffixes = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert suffixes == {".safetensors", ".json", ".parquet"}


def test_what_killed_writers_left_goes_once_the_run_is_further(tmp_path: Path) -> None:
    for left in (".0000000004-77", ".0000000009-78"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "weights.safetensors").write_bytes(b"half of it")
    resume.write(tmp_path, snapshot(5), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".0000000009-78", "0000000005"]


@pytest.mark.parametrize("name", ["weights.safetensors", "exp_avg_sq.safetensors", "curve.parquet", "state.json"])
def test_a_torn_one_is_told_and_the_one_before_is_taken(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    older, newer = (resume.write(tmp_path, snapshot(step), keep=2) for step in (3, 4))
    data = bytearray((newer / name).read_bytes())
    data[len(data) // 2] ^= 1
    (newer / name).write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert resume.newest(tmp_path) == older
    assert str(newer) in caplog.text and name in caplog.text


def test_a_cut_off_or_unfinished_folder_is_no_checkpoint(tmp_path: Path) -> None:
    path = resume.write(tmp_path, snapshot(3), keep=2)
    (path / resume.FILES).unlink()
    (tmp_path / ".0000000009-1").mkdir()
    assert resume.newest(tmp_path) is None
    assert resume.newest(tmp_path / "nothing") is None


def test_the_background_writer_keeps_order_and_raises_later(tmp_path: Path) -> None:
    copied: list[str] = []
    writer = BackgroundWriter(tmp_path / "resume", 2, lambda path: copied.append(path.name))
    for step in (1, 2, 3):
        writer.submit(snapshot(step))
    writer.wait()
    assert resume.steps(tmp_path / "resume") == [2, 3]
    assert copied == ["0000000001", "0000000002", "0000000003"]
    (tmp_path / "file").write_text("in the way")
    blocked = BackgroundWriter(tmp_path / "file" / "resume", 2)
    blocked.submit(snapshot(4))
    with pytest.raises(ResourceError):
        blocked.wait()
