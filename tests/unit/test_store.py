"""Artifacts are published whole or not at all, and a damaged one is never taken for whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.store import Store
from pipeline.artifacts.verified import verify_once
from pipeline.errors import ArtifactError

RECIPE = {"stage": "tokens", "version": 1, "fingerprint": "f00d", "settings": {"a": 1}, "inputs": {}}


def make(store: Store, text: str = "hello") -> Artifact:
    folder = store.making_folder("f00d")
    (folder / "train").mkdir()
    (folder / "train" / "0.txt").write_text(text)
    return store.publish(folder, RECIPE, {"n": 5}, {"host": "here"})


def test_what_is_published_is_found_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.find("tokens", "f00d") is None
    make(store)
    artifact = store.get("tokens", "f00d")
    assert artifact.file("train/0.txt").read_text() == "hello"
    assert artifact.summary == {"n": 5}
    assert artifact.manifest.total_bytes == 5
    artifact.verify()


def test_a_folder_without_a_manifest_is_no_artifact(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (tmp_path / "tokens" / "f00d").mkdir(parents=True)
    assert store.find("tokens", "f00d") is None


def test_the_first_of_two_equal_publications_stays(tmp_path: Path) -> None:
    store = Store(tmp_path)
    make(store, "first")
    assert make(store, "other").file("train/0.txt").read_text() == "first"
    assert not list((tmp_path / ".making").iterdir())


def test_a_flipped_byte_is_found(tmp_path: Path) -> None:
    store = Store(tmp_path)
    artifact = make(store)
    verify_once(store, artifact)
    artifact.file("train/0.txt").write_text("hellO")
    with pytest.raises(ArtifactError, match=r"0\.txt is damaged.*sha256"):
        verify_once(store, artifact)


def test_a_cut_file_is_found_on_open(tmp_path: Path) -> None:
    artifact = make(Store(tmp_path))
    (artifact.folder / "train" / "0.txt").write_text("hel")
    with pytest.raises(ArtifactError, match="5 bytes"):
        artifact.file("train/0.txt")
    with pytest.raises(ArtifactError, match="holds no file 'absent'"):
        artifact.file("absent")


def test_unchanged_files_are_hashed_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    artifact = make(store)
    verify_once(store, artifact)
    path = artifact.file("train/0.txt")
    times = path.stat()
    path.write_text("hellO")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    verify_once(store, artifact)  # same size, time and inode: trusted
    with pytest.raises(ArtifactError):
        artifact.verify()  # `python -m pipeline verify` hashes all the same


@pytest.mark.parametrize("torn", [b"", b'{"seal": "', b"\xff", b"[]"])
def test_a_torn_note_of_an_earlier_hashing_is_no_hashing(tmp_path: Path, torn: bytes) -> None:
    store = Store(tmp_path)
    artifact = make(store)
    verify_once(store, artifact)
    (stamp,) = (tmp_path / ".verified").iterdir()
    whole = stamp.read_bytes()
    stamp.write_bytes(torn)
    verify_once(store, artifact)
    assert stamp.read_bytes() == whole
    stamp.write_bytes(torn)
    artifact.file("train/0.txt").write_text("hellO")
    with pytest.raises(ArtifactError, match=r"0\.txt is damaged"):
        verify_once(store, artifact)


def test_a_torn_manifest_is_told(tmp_path: Path) -> None:
    store = Store(tmp_path)
    artifact = make(store)
    (artifact.folder / "manifest.json").write_text('{"stage": ')
    with pytest.raises(ArtifactError, match="is not a manifest"):
        store.find("tokens", "f00d")


def test_links_point_to_the_artifact_and_move_with_the_store(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    link = store.link("run", "crate-1l/tokens", make(store))
    store.link("run", "crate-1l/tokens", store.get("tokens", "f00d"))
    assert (Path(link) / "train" / "0.txt").read_text() == "hello"
    moved = (tmp_path / "store").rename(tmp_path / "elsewhere")
    assert (moved / "runs" / "run" / "crate-1l" / "tokens" / "train" / "0.txt").exists()


def test_links_of_an_earlier_sweep_do_not_pass_for_this_one_s(tmp_path: Path) -> None:
    store = Store(tmp_path)
    artifact = make(store)
    for name in ("a/pretrain", "a/evaluate", "b/pretrain", "tokens", "report"):
        store.link("run", name, artifact)
    store.write_note("run", "plan.json", b"{}")
    store.unlink_others("run", {"a/pretrain": "f00d", "a/evaluate": "0ther", "tokens": "f00d"})
    left = {
        path.relative_to(tmp_path / "runs/run").as_posix()
        for path in (tmp_path / "runs/run").rglob("*")
        if path.is_symlink()
    }
    assert left == {"a/pretrain", "tokens", "report"} and artifact.file("train/0.txt").is_file()
    assert store.read_note("run", "plan.json") == b"{}"
