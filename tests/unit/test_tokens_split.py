"""The token stream: nothing lost or added by packing, every window where it should be, every document found again."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.artifacts import token_shards
from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.manifest import Manifest, list_files
from pipeline.artifacts.token_shards import ShardWriter
from pipeline.artifacts.tokens import TokenSplit
from pipeline.artifacts.vocabulary import END_OF_TEXT, gpt2_encoding
from pipeline.errors import ArtifactError
from tests.tokens_lab import contents, jsonl, make, record, write_lines

documents_of_shards = st.lists(
    st.lists(st.lists(st.integers(0, 50255), max_size=40), min_size=1, max_size=8), min_size=1, max_size=4
)


def write_split(folder: Path, shards: list[list[list[int]]]) -> Artifact:
    """An artifact with these documents (without their end-of-text) in these shards."""
    for number, documents in enumerate(shards):
        writer = ShardWriter(folder / "train" / f"{number:05d}")
        for line, document in enumerate(documents, start=1):
            ids = np.array([*document, END_OF_TEXT], np.uint16)
            writer.add(ids, 2 * len(document), f"domain {line % 3}", f"file {number}", line)
        writer.close()
    n_documents = sum(map(len, shards))
    summary = {"train": {"n_documents": n_documents, "n_bytes": 0, "domains": {f"domain {i}": {} for i in range(3)}}}
    return Artifact(folder, Manifest("tokens", 1, "0", {}, {}, list_files(folder), summary))


@settings(max_examples=60, deadline=None)
@given(shards=documents_of_shards, batch_tokens=st.integers(1, 50), group=st.integers(1, 4), data=st.data())
def test_packing_loses_nothing_and_everything_is_found_again(tmp_path_factory, shards, batch_tokens, group, data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_shards, "BATCH_TOKENS", batch_tokens)
        patch.setattr(token_shards, "GROUP_DOCUMENTS", group)
        artifact = write_split(tmp_path_factory.mktemp("split"), shards)
    split = TokenSplit(artifact, "train")
    documents = [[*document, END_OF_TEXT] for shard in shards for document in shard]
    stream = np.array([token for document in documents for token in document], np.uint16)
    assert split.n_tokens == len(stream) and np.array_equal(split.read(0, len(stream)), stream)
    starts = np.cumsum([0, *map(len, documents)])[:-1]
    assert np.array_equal(split.document_starts(), starts)
    lines = [line for shard in shards for line in range(1, len(shard) + 1)]
    assert split.domain_of_documents().tolist() == [line % 3 for line in lines]

    position = data.draw(st.integers(0, len(stream) - 1))
    index = int(np.searchsorted(starts, position, side="right")) - 1
    found = split.document_at(position)
    assert (found.start, found.n_tokens, found.origin_line) == (starts[index], len(documents[index]), lines[index])

    length = data.draw(st.integers(0, len(stream)))
    offsets = data.draw(st.lists(st.integers(0, len(stream) - length), max_size=5))
    rows = split.rows(offsets, length)
    assert rows.dtype == np.int64 and rows.shape == (len(offsets), length)
    assert all(np.array_equal(row, stream[offset : offset + length]) for row, offset in zip(rows, offsets, strict=True))


@settings(max_examples=60, deadline=None)
@given(shards=documents_of_shards, n_ctx=st.integers(1, 30))
def test_windows_cover_the_stream_exactly(tmp_path_factory, shards, n_ctx):
    split = TokenSplit(write_split(tmp_path_factory.mktemp("split"), shards), "train")
    n = split.n_windows(n_ctx)
    windows = split.windows(np.arange(n), n_ctx)
    stream = split.read(0, split.n_tokens)
    assert windows.shape == (n, n_ctx + 1)
    assert np.array_equal(windows[:, :-1].ravel(), stream[: n * n_ctx])  # every token an input once, in order
    assert np.array_equal(windows[:, 1:].ravel(), stream[1 : n * n_ctx + 1])  # and its successor the target
    assert split.n_tokens - (n * n_ctx + 1) < n_ctx  # fewer are left over than one more window would need


def test_outside_of_the_stream_is_a_mistake(tmp_path):
    split = TokenSplit(write_split(tmp_path, [[[1, 2, 3]], [[4, 5]]]), "train")
    for start, length in ((-1, 2), (0, 8), (7, 1), (6, 2), (100, 1), (0, -1)):
        with pytest.raises(ValueError, match="not within"):
            split.read(start, length)
    with pytest.raises(ValueError, match="not within"):
        split.rows([0, 6], 2)
    with pytest.raises(ValueError, match="not within"):
        split.document_at(7)
    assert split.read(7, 0).shape == (0,)


def test_reading_copies_nothing_and_travels(tmp_path):
    split = TokenSplit(write_split(tmp_path, [[list(range(1000))]]), "train")
    before = pa.total_allocated_bytes()
    view = split.read(10, 900)
    assert not view.flags.owndata and not view.flags.writeable
    assert pa.total_allocated_bytes() == before
    assert np.array_equal(pickle.loads(pickle.dumps(split)).read(10, 900), view)


def test_a_shard_opens_with_hugging_face_datasets(tmp_path):
    import datasets

    artifact = write_split(tmp_path, [[[1, 2, 3], [4, 5]]])
    dataset = datasets.Dataset.from_file(str(artifact.file("train/00000.arrow")))
    assert dataset["ids"][:] == [1, 2, 3, END_OF_TEXT, 4, 5, END_OF_TEXT]
    assert dataset.features["ids"] == datasets.Value("uint16")


@pytest.fixture
def artifact(tmp_path):
    path = write_lines(tmp_path / "text.jsonl", (record(f"document {i}, {'word ' * i}") for i in range(200)))
    return make(tmp_path / "store", jsonl(train=(str(path),), val_fraction=0.2))


def test_a_torn_shard_is_refused_on_opening(artifact):
    path = artifact.folder / "train/00000.arrow"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"00000\.arrow is damaged"):
        TokenSplit(artifact, "train").read(0, 1)


def test_a_flipped_bit_is_found_by_verifying(artifact):
    artifact.verify()
    path = artifact.folder / "train/00000.arrow"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="sha256"):
        artifact.verify()


def test_a_missing_split_is_told(artifact):
    with pytest.raises(ArtifactError, match="no 'test' tokens"):
        TokenSplit(artifact, "test")


def test_the_summary_counts_what_the_files_hold(artifact):
    counts = np.zeros(1 << 16)
    for split in ("train", "val"):
        tokens, summary = TokenSplit(artifact, split), artifact.summary[split]
        assert summary["n_tokens"] == tokens.n_tokens
        assert summary["n_documents"] == tokens.n_documents == len(tokens.document_starts())
        text = gpt2_encoding().decode(tokens.read(0, tokens.n_tokens).tolist()).replace("<|endoftext|>", "")
        assert summary["n_bytes"] == len(text.encode())
        assert summary["domains"]["Test"] == {name: summary[name] for name in ("n_documents", "n_tokens", "n_bytes")}
    val = TokenSplit(artifact, "val")
    counts = np.unique(val.read(0, val.n_tokens), return_counts=True)[1]
    shares = counts / counts.sum()
    assert artifact.summary["unigram_entropy"] == pytest.approx(-(shares * np.log(shares)).sum())


def test_made_twice_it_is_the_same(artifact, tmp_path):
    path = tmp_path / "text.jsonl"
    assert contents(make(tmp_path / "other", jsonl(train=(str(path),), val_fraction=0.2))) == contents(artifact)
