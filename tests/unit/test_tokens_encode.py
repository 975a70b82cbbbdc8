"""Ids are tiktoken's own, whichever encoder makes them."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.artifacts import vocabulary
from pipeline.artifacts.tokens import TokenSplit
from pipeline.artifacts.vocabulary import END_OF_TEXT, gpt2_encoding, token_bytes, token_strings, vocabulary_file
from pipeline.errors import ResourceError
from pipeline.tokens import encode
from pipeline.tokens.encode import encode_exactly, encode_fast, fast_encoder
from tests.tokens_lab import contents, jsonl, make, record, write_lines

BLOBS = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"


@pytest.fixture(scope="module")
def tiktokens_own(tmp_path_factory):
    """`tiktoken.get_encoding("gpt2")` itself, from its cache filled with the packaged files: it checks their sha256."""
    cache = tmp_path_factory.mktemp("tiktoken")
    for name in ("vocab.bpe", "encoder.json"):
        (cache / hashlib.sha1((BLOBS + name).encode()).hexdigest()).write_bytes(vocabulary_file(name))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
        yield tiktoken.get_encoding("gpt2")


def test_the_encoding_is_tiktokens(tiktokens_own):
    ours = gpt2_encoding()
    assert ours._mergeable_ranks == tiktokens_own._mergeable_ranks
    assert ours._pat_str == tiktokens_own._pat_str
    assert (ours.n_vocab, ours.eot_token) == (tiktokens_own.n_vocab, tiktokens_own.eot_token) == (50257, END_OF_TEXT)


@settings(max_examples=300, deadline=None)
@given(texts=st.lists(st.text(min_size=1), min_size=1, max_size=5))
def test_both_encoders_give_tiktokens_ids(tiktokens_own, texts):
    expected = [[*tiktokens_own.encode_ordinary(text), END_OF_TEXT] for text in texts]
    assert [ids.tolist() for ids in encode_exactly(texts)] == expected
    assert [ids.tolist() for ids in encode_fast(texts)] == expected


@pytest.mark.parametrize(
    "text", ["<|endoftext|>", "a<|endoftext|><|endoftext|>b", "  \n\n\t x", "\u200b\U0001f600e\u0301", "1234567"]
)
def test_end_of_text_within_a_text_is_plain_text(tiktokens_own, text):
    (fast,), (exact,) = encode_fast([text]), encode_exactly([text])
    assert fast.tolist() == exact.tolist() == [*tiktokens_own.encode_ordinary(text), END_OF_TEXT]
    assert END_OF_TEXT not in exact[:-1]


def test_tokens_have_bytes_and_strings():
    assert len(token_bytes()) == len(token_strings()) == 50257
    assert token_bytes()[15496] == b"Hello" and token_strings()[50256] == "<|endoftext|>"


def test_a_changed_vocabulary_file_is_refused(monkeypatch):
    monkeypatch.setitem(vocabulary.SHA256, "vocab.bpe", "0" * 64)
    with pytest.raises(ResourceError, match=r"vocab\.bpe is not GPT-2's vocab\.bpe"):
        vocabulary_file("vocab.bpe")
    monkeypatch.setattr(vocabulary, "CARRIER", "no-such-distribution")
    with pytest.raises(ResourceError, match="not installed"):
        vocabulary_file("encoder.json")


class Wrong:
    """A fast encoder with a fault: it takes every capital X for a small one."""

    def encode_batch_flat(self, texts, split_special_tokens):
        ids = [gpt2_encoding().encode_ordinary(text.replace("X", "x")) for text in texts]
        offsets = np.cumsum([0, *map(len, ids)]).astype(np.uint64)
        return np.concatenate(ids).astype(np.uint32).tobytes(), offsets.tobytes()


def test_a_shard_on_which_the_fast_encoder_errs_is_made_by_tiktoken(tmp_path, monkeypatch, caplog):
    texts = [f"document {i} {'X' if i % 2 else 'y'}" for i in range(40)]
    train = write_lines(tmp_path / "train.jsonl", map(record, texts))
    config = jsonl(train=(str(train),), val_fraction=0.2)
    expected = make(tmp_path / "right", config)
    monkeypatch.setattr("pipeline.tokens.shard.fast_encoder", Wrong)
    monkeypatch.setattr(encode, "fast_encoder", Wrong)
    monkeypatch.setattr("pipeline.tokens.shard.SAMPLE_STRIDE", 1)
    monkeypatch.setattr("pipeline.tokens.shard.GROUP_BYTES", 60)  # many groups, so that an X is sampled
    artifact = make(tmp_path / "wrong", config)
    assert contents(artifact) == contents(expected)
    assert "differed from tiktoken in 1 shards" in caplog.text


class WrongOnLong(Wrong):
    """A fault that only a long text brings out."""

    def encode_batch_flat(self, texts, split_special_tokens):
        return super().encode_batch_flat([t if len(t) > 20_000 else t.replace("X", "y") for t in texts], True)


@pytest.mark.parametrize("text", ["one word, X, and others " * 1000, "oneword,X,nospace" * 1000])
def test_of_a_long_document_the_beginning_is_compared(monkeypatch, text):
    encode.check(text, encode_fast([text])[0])
    wrong = text.replace("X", "x")
    with pytest.raises(encode.Mismatch):
        monkeypatch.setattr(encode, "fast_encoder", Wrong)
        encode.check(text, encode_fast([text])[0])
    assert len(encode_exactly([wrong])[0]) > encode.SAMPLE_CHARACTERS / 8


def test_the_ids_compared_of_a_long_document_are_those_it_was_given(monkeypatch):
    text = "one word, X, and others " * 1000
    monkeypatch.setattr(encode, "fast_encoder", WrongOnLong)
    with pytest.raises(encode.Mismatch):
        encode.check(text, encode_fast([text])[0])


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.sampled_from("ab ,'1\n\t\x1c\x85\xa0\u3000\u0301"), min_size=50))
def test_right_ids_always_pass_the_comparison(text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "SAMPLE_CHARACTERS", 40)
        encode.check(text, encode_exactly([text])[0])


def test_without_the_fast_encoder_the_artifact_is_the_same(tmp_path, monkeypatch):
    texts = [f"document {i} has some words, {i * i} of them" for i in range(50)]
    config = jsonl(train=(str(write_lines(tmp_path / "train.jsonl.zst", map(record, texts))),), val_fraction=0.2)
    assert fast_encoder() is not None
    with_it = make(tmp_path / "with", config)
    monkeypatch.setattr("pipeline.tokens.shard.fast_encoder", lambda: None)
    without = make(tmp_path / "without", config)
    assert contents(with_it) == contents(without)
    stream = np.concatenate(
        [TokenSplit(without, split).read(0, TokenSplit(without, split).n_tokens) for split in ("train", "val")]
    )
    decoded = gpt2_encoding().decode(stream.tolist()).split("<|endoftext|>")
    assert sorted(decoded[:-1]) == sorted(texts)
