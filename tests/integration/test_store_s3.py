"""A store on an object storage: same promises as a folder, also when the storage answers 500 or late."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.storage import Storage
from pipeline.artifacts.store import Store
from pipeline.errors import ArtifactError, ClientError
from pipeline.progress import Progress, read_progress
from pipeline.verify import verify
from tests.s3 import BUCKET, s3_server
from tests.unit.test_verify import Run

RECIPE = {"stage": "tokens", "version": 1, "fingerprint": "f00d", "settings": {}, "inputs": {}}


@pytest.fixture(scope="module")
def bad_weather() -> Iterator[str]:
    with s3_server(fail_every=11, slow_every=30) as weather:
        yield os.environ["AWS_ENDPOINT_URL"]
        assert weather.n_failed > 3


@pytest.fixture
def place(bad_weather: str, request: pytest.FixtureRequest) -> str:
    port = bad_weather.rpartition(":")[2]  # in the address itself, so that no test sees another's cached connection
    return f"s3://{BUCKET}/{request.node.name}?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"


def publish(store: Store, size: int = 300_000) -> Artifact:
    folder = store.making_folder("f00d")
    (folder / "train").mkdir()
    (folder / "train" / "0.bin").write_bytes(bytes(range(256)) * (size // 256))
    (folder / "small.txt").write_text("hello")
    return store.publish(folder, RECIPE, {"n": 1}, {})


def test_one_node_publishes_and_another_reads(place: str, tmp_path: Path) -> None:
    here, there = Store.open(place, tmp_path / "here"), Store.open(place, tmp_path / "there")
    assert there.find("tokens", "f00d") is None
    publish(here)
    artifact = there.get("tokens", "f00d")
    assert artifact.file("small.txt").read_text() == "hello"
    artifact.verify()
    assert [a.fingerprint for a in there.all_of("tokens")] == ["f00d"]


def test_of_two_nodes_that_made_the_same_the_first_is_kept_whole(place: str, tmp_path: Path) -> None:
    """On a GPU the same recipe may round differently: files of one under the manifest of the other would be no artifact."""
    here, there = Store.open(place, tmp_path / "here"), Store.open(place, tmp_path / "there")
    first = publish(here)
    second = publish(there, size=200_000)
    assert second.manifest == first.manifest
    second.verify()


def test_without_its_manifest_an_upload_is_no_artifact(place: str, tmp_path: Path) -> None:
    store = Store.open(place, tmp_path)
    assert store.storage
    store.storage.write("tokens/f00d/small.txt", b"hello")
    assert store.find("tokens", "f00d") is None


def test_a_damaged_object_is_told_and_not_kept(place: str, tmp_path: Path) -> None:
    publish(Store.open(place, tmp_path / "here"))
    there = Store.open(place, tmp_path / "there")
    assert there.storage
    there.storage.write("tokens/f00d/small.txt", b"hellO")
    with pytest.raises(ArtifactError, match=r"small\.txt is damaged"):
        there.get("tokens", "f00d").file("small.txt")
    assert not list((tmp_path / "there").rglob("small.txt"))


def test_unfinished_work_survives_the_loss_of_a_node(place: str, tmp_path: Path) -> None:
    here = Store.open(place, tmp_path / "here")
    folder = here.scratch_folder("f00d")
    (folder / "resume" / "5").mkdir(parents=True)
    (folder / "resume" / "5" / "state").write_text("kept")
    (folder / "junk").write_text("not kept")
    here.keep("f00d", folder / "resume" / "5")
    there = Store.open(place, tmp_path / "there")
    assert [p.name for p in there.scratch_folder("f00d").rglob("*") if p.is_file()] == ["state"]
    publish(there)
    assert list(Store.open(place, tmp_path / "fourth").scratch_folder("f00d").iterdir()) == []


def test_a_folder_is_brought_whole_or_not_at_all(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(place, tmp_path)
    assert store.storage
    for name in ("a", "b" * 250):  # no file system takes the second while it is under way
        store.storage.write(f".scratch/f00d/made/{name}", b"kept")
    monkeypatch.setattr("pipeline.artifacts.storage.ATTEMPTS", 1)
    scratch = store.root / ".scratch" / "f00d"
    with pytest.raises(ClientError):
        store.scratch_folder("f00d")
    assert not scratch.exists()
    scratch.mkdir(parents=True)
    with pytest.raises(ClientError):
        store.bring("f00d", scratch / "made")
    assert not list(scratch.iterdir())


@pytest.mark.parametrize("new", [b"short", b"long" * 1000])
def test_a_note_that_is_replaced_while_it_is_read_is_the_new_one(new: bytes) -> None:
    """Between pyarrow's question for the size and its question for the bytes."""
    with s3_server() as weather:
        storage, server = Storage(f"s3://{BUCKET}/replaced-{len(new)}"), weather.application
        storage.write("note", b"as it was" * 100)

        def replace_first(environ: dict, start_response: Callable) -> Iterable[bytes]:
            if environ["REQUEST_METHOD"] == "GET" and environ["PATH_INFO"].endswith("/note"):
                weather.application = server
                storage.write("note", new)
            return server(environ, start_response)

        weather.application = replace_first
        assert storage.read("note") == new
        assert weather.application is server


def test_two_nodes_may_delete_the_same_object(place: str, tmp_path: Path) -> None:
    here, there = Store.open(place, tmp_path / "here"), Store.open(place, tmp_path / "there")
    assert here.storage and there.storage
    here.storage.write("runs/run/note", b"")
    names = there.storage.names("runs/")
    here.storage.delete(names)
    there.storage.delete(names)
    assert there.storage.names("runs/") == []


def test_what_was_never_kept_is_told(place: str, tmp_path: Path) -> None:
    store = Store.open(place, tmp_path)
    with pytest.raises(ArtifactError, match="never kept"):
        store.bring("f00d", store.scratch_folder("f00d") / "made")


def test_progress_and_notes_are_seen_from_elsewhere(place: str, tmp_path: Path) -> None:
    here, there = Store.open(place, tmp_path / "here"), Store.open(place, tmp_path / "there")
    Progress(here, "run", "crate-1l/pretrain", 10, "tokens").update(10)
    assert read_progress(there, "run")["crate-1l/pretrain"].done == 10
    here.write_note("run", "stop", b"")
    assert there.read_note("run", "stop") == b""
    there.delete_note("run", "stop")
    assert here.read_note("run", "stop") is None


def test_a_storage_that_stays_away_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.artifacts.storage.ATTEMPTS", 2)
    store = Store.open(f"s3://{BUCKET}/x?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1", tmp_path)
    with pytest.raises(ClientError, match="cannot read"):
        store.find("tokens", "f00d")


def test_links_of_an_earlier_sweep_are_taken_away_there_too(place: str, tmp_path: Path) -> None:
    store = Store.open(place, tmp_path / "here")
    artifact = publish(store)
    for name in ("a/pretrain", "b/pretrain", "tokens"):
        store.link("run", name, artifact)
    Progress(store, "run", "a/pretrain", 100, "tokens").update(100)
    other = Store.open(place, tmp_path / "there")  # the machine that the next driver runs on
    assert other.links("run") == ["a/pretrain", "b/pretrain", "tokens"]
    other.unlink_others("run", {"a/pretrain": "f00d", "tokens": "0ther"})
    assert store.read_note("run", "a/pretrain.json") and not store.read_note("run", "tokens.json")
    assert store.read_note("run", "b/pretrain.json") is None


def test_verify_looks_at_the_storage_and_not_at_the_copy_here(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = Store.open(place, tmp_path / "here")
    assert here.storage
    Run(here)
    assert verify(here, "c") == 0
    assert verify(Store.open(place, tmp_path / "there"), "c") == 0
    stages = ("tokens", "evaluate")
    tokens, evaluate = (next(iter(here.all_of(stage))) for stage in stages)
    here.storage.write(f"{tokens.below}/b.txt", b"c")
    here.storage.write(f"{evaluate.below}/more.txt", b"c")
    here.storage.write("runs/c/report.json", b"{")
    here.storage.delete([f"{evaluate.below}/b.txt"])
    here.storage.write("runs/c/n/pretrain.json", b'{"artifact": "tokens/f00d"}')
    capsys.readouterr()
    with pytest.raises(
        ArtifactError, match=r"4 of 5 steps of 'c' are not what was made: tokens, m/evaluate, report, n/pretrain"
    ):
        verify(here, "c")
    told = capsys.readouterr().out
    assert all(
        said in told
        for said in (
            "it does not have the sha256",
            "it is gone",
            "more.txt is no file of it",
            "does not lead to it",
            "no step of the run",
        )
    )
    assert tokens.file("b.txt").read_text() == "b" and not list((here.root / ".making").iterdir())


def test_a_damaged_copy_here_is_fetched_again(place: str, tmp_path: Path) -> None:
    artifact = publish(Store.open(place, tmp_path))
    (artifact.folder / "small.txt").write_text("hel")
    assert artifact.file("small.txt").read_text() == "hello"
    (artifact.folder / "small.txt").write_text("hellO")
    artifact.verify()
    assert artifact.file("small.txt").read_text() == "hello"
