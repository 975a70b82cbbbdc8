"""The evaluate stage against a loop that a reader can check by eye."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from training_world import MODEL, N_CTX, make_job, make_tokens

from crate_model import taps
from crate_model.model import LanguageModel
from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.checkpoint import CURVE, KeptStep, kept_steps, load_model, tokens_seen, write_curve, write_model
from pipeline.artifacts.evaluation import DomainTotals, ValBatch, ValWindows
from pipeline.artifacts.store import Store
from pipeline.artifacts.tokens import TokenSplit
from pipeline.artifacts.vocabulary import END_OF_TEXT, gpt2_encoding, token_bytes
from pipeline.config import EvaluateConfig
from pipeline.evaluate.measure import diagnose_layers, next_words
from pipeline.evaluate.stage import EvaluateSettings, run


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    store = Store(tmp_path_factory.mktemp("evaluate") / "store")
    tokens = make_tokens(store)
    torch.manual_seed(0)
    making = store.making_folder("model")
    write_model(making, MODEL, LanguageModel(MODEL).state_dict())
    write_model(making / "steps" / "4", MODEL, LanguageModel(MODEL).state_dict())
    curve = {name: [0.0] * 5 for name in ("loss", "learning_rate", "grad_norm", "val_loss")}
    write_curve(making / CURVE, curve | {"step": [1, 2, 3, 4, 5], "tokens": [10, 20, 30, 40, 50]})
    recipe = {"stage": "pretrain", "version": 1, "fingerprint": "8" * 32, "settings": {}, "inputs": {}}
    return {"tokens": tokens, "pretrain": store.publish(making, recipe, {"train_tokens": 50}, {})}


def by_eye(inputs: dict[str, Artifact], step: KeptStep = "last") -> tuple[np.ndarray, np.ndarray]:
    """The loss of every token of val but the first, and its position: window after window, the last one short."""
    split, model = TokenSplit(inputs["tokens"], "val"), load_model(inputs["pretrain"], step)
    losses, positions = [], []
    for start in range(0, split.n_tokens - 1, N_CTX):
        ids = torch.from_numpy(split.read(start, min(N_CTX + 1, split.n_tokens - start)).astype(np.int64))
        with torch.no_grad():
            logits = model(ids[None, :-1])[0]
        losses.append(torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none").numpy())
        positions.append(np.arange(start + 1, start + len(ids)))
    return np.concatenate(losses), np.concatenate(positions)


def test_losses_of_all_of_val_by_domain(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    split = TokenSplit(inputs["tokens"], "val")
    losses, positions = by_eye(inputs)
    assert list(positions) == list(range(1, split.n_tokens))
    lengths = [len(token) for token in token_bytes()]
    n_bytes = np.array([lengths[split.read(int(p), 1)[0]] for p in positions])
    job = make_job(tmp_path, inputs["tokens"])
    summary = run(EvaluateSettings(EvaluateConfig()), inputs, job.out_folder, job.context)
    assert summary["val_tokens"] == split.n_tokens - 1
    assert summary["val_loss"] == pytest.approx(losses.mean(), rel=1e-5)
    assert summary["bits_per_byte"] == pytest.approx(losses.sum() / math.log(2) / n_bytes.sum(), rel=1e-5)
    domains = np.array([split.document_at(int(position)).domain for position in positions])
    table = pq.read_table(job.out_folder / "domains.parquet").to_pylist()
    assert {row["domain"] for row in table} == {"code", "prose"}
    for row in table:
        own = domains == row["domain"]
        assert row["n_tokens"] == own.sum() and row["n_bytes"] == n_bytes[own].sum()
        assert row["loss"] == pytest.approx(losses[own].mean(), rel=1e-5)


def test_weights_kept_along_the_way_are_measured_in_their_own_right(
    inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    assert kept_steps(inputs["pretrain"]) == [4]
    assert (tokens_seen(inputs["pretrain"], 4), tokens_seen(inputs["pretrain"])) == (40, 50)
    earlier, last = by_eye(inputs, 4)[0].mean(), by_eye(inputs)[0].mean()
    assert abs(earlier - last) > 1e-4
    job = make_job(tmp_path, inputs["tokens"])
    settings = EvaluateSettings(EvaluateConfig(), checkpoint_step=4)
    assert run(settings, inputs, job.out_folder, job.context)["val_loss"] == pytest.approx(earlier, rel=1e-6)


def test_next_words_are_the_likeliest_and_sum_to_less_than_one() -> None:
    torch.manual_seed(0)
    model = LanguageModel(replace(MODEL, vocab_size=50304)).eval()
    (answer,) = next_words(model, torch.device("cpu"), EvaluateConfig(prompts=("They saw",), top_words=7))
    assert answer["prompt"] == "They saw"
    with torch.no_grad():
        logits = model(torch.tensor([gpt2_encoding().encode_ordinary("They saw")]))[0, -1]
    probabilities = logits[:50257].softmax(-1)
    shown = [word["probability"] for word in answer["words"]]
    np.testing.assert_allclose(shown, probabilities.sort(descending=True).values[:7].numpy(), rtol=1e-5)
    assert len(shown) == 7 and sum(shown) < 1


def test_an_empty_prompt_is_the_start_of_a_document() -> None:
    torch.manual_seed(0)
    model = LanguageModel(replace(MODEL, vocab_size=50304)).eval()
    (answer,) = next_words(model, torch.device("cpu"), EvaluateConfig(prompts=("",), top_words=3))
    with torch.no_grad():
        after = [model(torch.tensor([[start]]))[0, -1, :50257].softmax(-1).topk(3).values for start in (END_OF_TEXT, 0)]
    shown = [word["probability"] for word in answer["words"]]
    np.testing.assert_allclose(shown, after[0].numpy(), rtol=1e-5)
    assert not np.allclose(shown, after[1].numpy(), rtol=1e-5)
    small = LanguageModel(MODEL).eval()  # its vocabulary has no such token
    (answer,) = next_words(small, torch.device("cpu"), EvaluateConfig(prompts=("",)))
    assert answer == {"prompt": "", "words": []}


def test_next_words_of_a_prompt_that_the_model_cannot_read_in_full_are_not_those_of_a_part_of_it() -> None:
    torch.manual_seed(0)
    asked = EvaluateConfig(prompts=("They saw some boats on the",))
    known = gpt2_encoding().encode_ordinary(asked.prompts[0])
    for change in ({"vocab_size": max(known)}, {"vocab_size": 50304, "n_ctx": len(known) - 1}):
        model = LanguageModel(replace(MODEL, **change)).eval()
        assert next_words(model, torch.device("cpu"), asked) == [{"prompt": asked.prompts[0], "words": []}]


@pytest.mark.parametrize("n_ctx", [32, 64])
def test_layers_of_a_short_text_are_those_of_its_own_tokens(tmp_path: Path, n_ctx: int) -> None:
    """In evaluation and in training alike: what fills up the last window is no text."""
    tokens = make_tokens(Store(tmp_path / "store"), n_val=1)
    split, model = TokenSplit(tokens, "val"), LanguageModel(replace(MODEL, n_ctx=n_ctx)).eval()
    assert split.n_tokens == 40
    names = [f"blocks.{layer}.code" for layer in range(MODEL.n_layer)]
    codes: list[torch.Tensor] = []
    for start in range(0, 40, n_ctx):
        with taps.read(model, names) as values:
            model.hidden(torch.from_numpy(split.read(start, min(n_ctx, 40 - start)).astype(np.int64))[None])
        codes.append(torch.stack([values[name][0] for name in names]))
    expected = (torch.cat(codes, dim=1) != 0).double().mean((1, 2)).tolist()
    rows = diagnose_layers(model, torch.device("cpu"), tokens)
    assert [row["fraction_nonzero"] for row in rows] == pytest.approx(expected, abs=1e-3)
    assert sum(int(batch.real.sum()) for batch in ValWindows(split, n_ctx).batches(1)) == 40


def test_an_end_of_text_token_counts_as_a_token_and_stands_for_no_bytes() -> None:
    """Its nats are the price of saying where a document ends: they are in both losses."""
    word = 262  # " the"
    targets = np.array([[word, END_OF_TEXT, -1]])
    totals = DomainTotals(("prose",))
    totals.add(
        ValBatch(targets, targets >= 0, targets, np.zeros_like(targets)), np.array([[2.0, 6.0, 99.0]], np.float32)
    )
    assert (totals.loss, totals.n_tokens) == (4.0, 2)
    assert totals.bits_per_byte == pytest.approx(8.0 / math.log(2) / len(" the"))


def test_a_part_of_val_is_spread_evenly_and_shared_without_loss(inputs: dict[str, Artifact]) -> None:
    split = TokenSplit(inputs["tokens"], "val")
    windows = ValWindows(split, N_CTX, 10 * N_CTX)
    assert len(windows.starts) == 10
    assert windows.starts[0] == 0 and windows.starts[-1] >= 0.85 * split.n_tokens
    whole, shares = DomainTotals(split.domains), DomainTotals(split.domains)
    for rank in (0, 1, 2):
        for batch in windows.batches(2, rank, 3):
            shares.add(batch, batch.targets.astype(np.float32))
    for batch in windows.batches(10):
        whole.add(batch, batch.targets.astype(np.float32))
    np.testing.assert_allclose(shares.sums, whole.sums)
    assert whole.n_tokens == 10 * N_CTX


def test_no_model_without_context_is_below_the_entropy_of_what_was_measured(
    inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    """A few windows of easy text have a lower loss than all of val by the frequencies of all of val, and not by their own."""
    split = TokenSplit(inputs["tokens"], "val")
    ids = split.read(1, split.n_tokens - 1)
    of_val, easiest = -np.log(np.maximum(np.bincount(ids), 1) / len(ids)), 0.0
    for start in range(0, split.n_tokens - N_CTX - 1, N_CTX):
        targets = split.read(start + 1, N_CTX).astype(np.int64)[None]
        totals = DomainTotals(("all",))
        totals.add(ValBatch(targets, targets >= 0, targets, np.zeros_like(targets)), of_val[targets].astype(np.float32))
        assert totals.loss >= totals.unigram_entropy
        easiest = max(easiest, float(of_val @ np.bincount(ids) / len(ids)) - totals.loss)
    assert easiest > 0.1
    job = make_job(tmp_path, inputs["tokens"])
    summary = run(EvaluateSettings(EvaluateConfig(val_tokens=2 * N_CTX)), inputs, job.out_folder, job.context)
    windows = next(ValWindows(split, N_CTX, 2 * N_CTX).batches(2))
    shares = np.unique(windows.targets, return_counts=True)[1] / windows.targets.size
    assert summary["unigram_entropy"] == pytest.approx(-(shares * np.log(shares)).sum())


def test_the_model_is_found_where_training_left_it(inputs: dict[str, Artifact]) -> None:
    model = load_model(inputs["pretrain"])
    assert not model.training and model.config == MODEL
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert replace(MODEL, n_layer=2) == MODEL
