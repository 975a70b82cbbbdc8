"""`python -m pipeline inspect-batch`: what a training step saw, with the cell left out where all cells saw the same."""

from __future__ import annotations

import copy
import json

import pytest

from pipeline.artifacts.store import Store
from pipeline.artifacts.tokens import TokenSplit
from pipeline.cli import main
from pipeline.config import Config, TokensConfig
from pipeline.errors import ArtifactError
from pipeline.pretrain.__main__ import find_tokens
from tests.training_world import N_CTX, RECIPE, make_tokens

SETTINGS = {
    "seed": 5,
    "model": {"n_ctx": N_CTX},
    "pretrain": {"batch_tokens": RECIPE.batch_tokens, "total_tokens": RECIPE.total_tokens},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("store"))
    make_tokens(store)
    return store


def changed(section: str, **values: int) -> dict:
    settings = copy.deepcopy(SETTINGS)
    settings[section] |= values
    return settings


def inspect(store: Store, cells: dict[str, dict], *arguments: str) -> int:
    """The command on a run of these cells, whose trainings have these settings."""
    (tokens,) = store.all_of("tokens")
    steps = {
        f"{cell}/pretrain": {
            "stage": "pretrain",
            "fingerprint": "0" * 32,
            "settings": settings,
            "inputs": {"tokens": tokens.fingerprint},
        }
        for cell, settings in cells.items()
    }
    store.write_note("run", "plan.json", json.dumps({"steps": steps}).encode())
    return main(["inspect-batch", "--run", "run", "--store", str(store.root), *arguments])


def test_the_batch_is_shown_with_its_documents_and_text(store, capsys):
    assert inspect(store, {"a": SETTINGS}, "--cell", "a", "--step", "3", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == RECIPE.batch_tokens // N_CTX
    assert all(sum(document["tokens"] for document in row["documents"]) == N_CTX for row in rows)
    document = TokenSplit(store.all_of("tokens")[0], "train").document_at(rows[0]["start"])
    assert rows[0]["documents"][0]["start"] == document.start
    assert inspect(store, {"a": SETTINGS}, "--cell", "a", "--step", "3") == 0
    told = capsys.readouterr().out
    assert all(f"window {row['window']}, " in told for row in rows) and "made:1 (code)" in told


def test_no_cell_need_be_named_where_all_take_the_same_batches(store, capsys):
    longer = changed("pretrain", total_tokens=2 * RECIPE.total_tokens)
    last = str(2 * RECIPE.total_tokens // RECIPE.batch_tokens - 1)
    assert inspect(store, {"a": SETTINGS, "b": longer, "c": SETTINGS}, "--step", last, "--json") == 0
    unnamed = capsys.readouterr().out
    assert inspect(store, {"a": SETTINGS, "b": longer}, "--cell", "b", "--step", last, "--json") == 0
    assert capsys.readouterr().out == unnamed
    assert inspect(store, {"a": SETTINGS, "b": longer}, "--cell", "a", "--step", last) == 2


@pytest.mark.parametrize(
    "other",
    [SETTINGS | {"seed": 6}, changed("model", n_ctx=16), changed("pretrain", batch_tokens=2 * RECIPE.batch_tokens)],
)
def test_a_cell_must_be_named_where_they_differ(store, capsys, other):
    assert inspect(store, {"a": SETTINGS, "b": other}, "--step", "0") == 2
    assert "--cell: a, b" in capsys.readouterr().err
    assert inspect(store, {"a": SETTINGS, "b": other}, "--cell", "x", "--step", "0") == 3
    assert "It has: a, b." in capsys.readouterr().err


def test_an_imported_model_saw_none_of_these_batches(store, capsys):
    imported = changed("pretrain", checkpoint="folder", batch_tokens=2 * RECIPE.batch_tokens) | {"seed": 0}
    for cells, arguments in (({"a": SETTINGS, "b": imported}, ("--cell", "b")), ({"b": imported}, ())):
        assert inspect(store, cells, *arguments, "--step", "0") == 2
        assert "b was trained elsewhere, on batches that are not known here" in capsys.readouterr().err
    assert inspect(store, {"a": SETTINGS, "b": imported}, "--step", "0") == 0


def test_a_cell_must_be_named_where_their_texts_differ(store, capsys):
    recipe = {"stage": "pretrain", "fingerprint": "0" * 32, "settings": SETTINGS}
    steps = {f"{cell}/pretrain": recipe | {"inputs": {"tokens": 32 * cell}} for cell in "ab"}
    store.write_note("texts", "plan.json", json.dumps({"steps": steps}).encode())
    assert main(["inspect-batch", "--run", "texts", "--store", str(store.root), "--step", "0"]) == 2
    assert "do not take the same batches" in capsys.readouterr().err


def test_who_lacks_tokens_is_told_a_command_that_exists(store):
    with pytest.raises(ArtifactError) as told:
        find_tokens(store, Config(tokens=TokensConfig(val_fraction=0.3)))
    assert "python pipeline/sweep.py --config" in told.value.fix and "--until tokens" in told.value.fix
