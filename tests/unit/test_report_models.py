"""What counts as a model, as a replica and as a point of a law, in made-up sweeps whose truth is known."""

from __future__ import annotations

import copy
import html
import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.config import Config
from pipeline.naming import flat
from pipeline.report import figures_curves, figures_layer_scores, figures_loss, figures_scores
from pipeline.report.browser import browser
from pipeline.report.cells import FOLLOWS_FROM, MEASURING_KEYS, Cell
from pipeline.report.replicas import over_seeds
from pipeline.report.scaling import fit_rows, offset_rows
from pipeline.report.series import all_series
from pipeline.report.study import Study, gather
from pipeline.report.tables import all_tables, each_once
from tests.report_world import build
from tests.synthetic_artifacts import write_tokens
from tests.synthetic_sweep import SyntheticSweep, fresh_store

KEPT = {"pretrain__keep_log_spaced": True}
AFTER_TRAINING: list[tuple[str, list[Any]]] = [
    ("sae__k", [(4,), (8,), (16,)]),
    ("evaluate__val_tokens", [1024, 0, 2048]),
    ("evaluate__top_words", [3, 4, 5]),
    ("steer__neurons", [1, 2, 3]),
    ("activations__tokens", [1024, 2048, 4096]),
    ("interpret__bootstrap", [20, 30, 40]),
    ("checkpoint_step", [1, 2, "last"]),
    ("pretrain__eval_every_steps", [5, 10, 20]),
]


@pytest.fixture
def sweep(tmp_path: Path) -> SyntheticSweep:
    return SyntheticSweep(fresh_store(tmp_path / "store"), total_tokens=4096, top=1, random=1, d_model=8, n_head=1)


def study_of(sweep: SyntheticSweep) -> Study:
    return gather(sweep.settings, sweep.inputs)


def marks(figure: Any) -> set[str]:
    """The texts that the marks of a figure tell."""
    assert figure is not None
    return {text for tips in figure.drawn[1].tips.values() for text, _ in tips}


@pytest.mark.parametrize(("key", "values"), AFTER_TRAINING, ids=[key for key, _ in AFTER_TRAINING])
def test_a_grid_over_what_follows_the_training_makes_no_model_and_no_seed(
    sweep: SyntheticSweep, key: str, values: list[Any]
) -> None:
    sweep.sae = key == "sae__k"
    depths = (1, 2, 3, 4)
    for n_layer in depths:
        for value in values:
            sweep.add("crate", n_layer, **KEPT, **{key: value})
    study = study_of(sweep)
    assert len(study.cells) == 12 and len(study.models) == len(study.trainings) == 4
    assert [row["n_models"] for row in fit_rows(study)] == [row["n_sizes"] for row in fit_rows(study)] == [4, 4]
    assert all(series.replicas == [] and len(series.cells) == 4 for series in all_series(study, "parameters"))
    tables = all_tables(study)
    assert {row["seeds"] for name in ("model_scores", "layer_scores") for row in over_seeds(study, tables[name])} == {1}
    shown = each_once(study, tables)
    assert len(marks(figures_loss.scaling(study))) == 3 * 4
    assert len(marks(figures_loss.domains(study, shown["domains"]))) == 2 * 4
    curves = marks(figures_curves.loss_curves(study, shown["curves"]))
    assert len({text.partition(":")[0] for text in curves}) == 4
    read_anew = key in ("activations__tokens", "interpret__bootstrap")
    panels = figures_layer_scores.layer_panels(study, study.of_models(shown["layer_scores"]))
    assert len(panels[0].alt.split(";")) == sum(depths) * (3 if read_anew else 1) + 4 * (3 if sweep.sae else 0)
    assert browser(study).n_units == sum(depths) * 32 + (12 if sweep.sae else 0) * 32


def test_a_page_says_how_many_models_its_cells_are(sweep: SyntheticSweep, tmp_path: Path) -> None:
    for k in ((4,), (8,), (16,)):
        sweep.sae = True
        sweep.add("crate", 1, sae__k=k)
    built = build(sweep, tmp_path / "report")
    page = html.unescape(re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", built.html)))
    assert "1 model (1 CRATE) in 3 cells" in page
    assert "more seed" not in built.html
    table = re.search(r'id="table-cells".*?</table>', built.html, re.S)
    assert table is not None and table[0].count("<tr class") == 1
    assert "CRATE (k 4)" in page and "CRATE (k 16)" in page, "the features of three autoencoders are told apart"
    assert len(pq.read_table(built.folder / "tables/cells.parquet")) == 3


def test_a_training_is_the_same_under_every_name_and_imported_models_are_no_seeds(sweep: SyntheticSweep) -> None:
    """5,000 and 4,096 tokens are as many whole batches; an imported model was not drawn."""
    sweep.add("crate", 1, pretrain__total_tokens=5000)
    sweep.add("crate", 1, pretrain__total_tokens=4096)
    for seed, folder in ((0, "a"), (1, "a"), (0, "b")):
        sweep.add("gpt2", 1, seed=seed, pretrain__checkpoint=folder)
    study = study_of(sweep)
    assert [(cell.architecture, cell.settings["pretrain"].get("checkpoint")) for cell in study.models] == [
        ("crate", None),
        ("gpt2", "a"),
        ("gpt2", "b"),
    ]
    assert len({cell.series for cell in study.models}) == 3
    assert all(series.replicas == [] for series in all_series(study, "parameters"))
    rows = over_seeds(study, all_tables(study)["model_scores"])
    assert {row["seeds"] for row in rows} == {1}
    assert len([row for row in rows if row["metric"] == "anthropic"]) == 4  # folder a was read with two seeds


def test_an_imported_model_has_as_many_tokens_as_are_told(sweep: SyntheticSweep) -> None:
    """Also where it is not made yet: it has no batches of ours to round to."""
    sweep.add("gpt2", 1, pretrain__checkpoint="a", pretrain__total_tokens=5001, missing={"pretrain": "failed"})
    (cell,) = study_of(sweep).cells
    assert cell.train_tokens == cell.training["pretrain.total_tokens"] == 5001


def test_one_failed_seed_leaves_the_others_and_a_failed_training_is_no_point(sweep: SyntheticSweep) -> None:
    failed = {stage: "failed" for stage in ("pretrain", "evaluate", "activations", "interpret", "steer")}
    for seed in (0, 1, 2):
        sweep.add("crate", 1, seed=seed, missing=failed if seed == 1 else None)
    study = study_of(sweep)
    assert (len(study.models), len(study.measured)) == (3, 2)
    (series,) = all_series(study, "parameters")
    assert len(series.cells) == 2 and len(series.replicas) == 1
    assert {row["seeds"] for row in over_seeds(study, all_tables(study)["model_scores"])} == {2}


def test_replicas_are_equal_in_every_setting_but_the_seed() -> None:
    """For every setting there is: two cells that differ in it and in the seed are replicas only for stages it does not reach."""
    settings = Config(model={"architecture": "crate"}, sae={"expansions": (1,)}).of_results  # type: ignore[arg-type]
    reach = {stage: (*sections, "model.", "pretrain.", "tokens.") for stage, sections in FOLLOWS_FROM.items()}
    one = Cell("a", settings, {}, {})
    checked = 0
    for key, value in flat(settings).items():
        if key in ("seed", "model.architecture", "model.activation", "model.bias"):
            continue
        other = copy.deepcopy(settings) | {"seed": 1}
        section, _, name = key.rpartition(".")
        (other[section] if section else other)[name] = (
            value * 2 + 262_144 if isinstance(value, int | float) else "other"
        )
        cell = Cell("b", other, {}, {})
        for stage, sections in reach.items():
            replicas = one.made_of(stage, of_any_seed=True) == cell.made_of(stage, of_any_seed=True)
            assert replicas == (not key.startswith(sections) or key in MEASURING_KEYS), (key, stage)
            assert one.made_of(stage) != cell.made_of(stage), (key, stage)
            checked += 1
    assert checked > 500


@pytest.mark.parametrize(
    "changed",
    [
        {"model__n_ctx": 128},
        {"model__n_head": 2},
        {"model__expansion": 2},
        {"model__d_model": 16},
        {"model__lambda_sparsity": 0.2},
        {"pretrain__precision": "fp32"},
        {"pretrain__batch_tokens": 512},
        {"pretrain__learning_rate": 1e-3},
        {"tokens__val_fraction": 0.1},
        {"tokens__text_field": "other"},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_what_differs_in_training_is_no_replica_and_no_law_s_point_beside(
    sweep: SyntheticSweep, changed: dict[str, Any]
) -> None:
    sweep.add("crate", 1)
    sweep.add("crate", 1, seed=1, **changed)
    study = study_of(sweep)
    assert len(study.models) == 2
    series = all_series(study, "parameters")
    assert all(not one.replicas for one in series)
    if "model__d_model" not in changed:  # another size, of the same series
        assert [len(one.cells) for one in series] == [1, 1] and len({one.name for one in series}) == 2
    rows = over_seeds(study, all_tables(study)["model_scores"])
    assert {row["seeds"] for row in rows} == {1}
    means = marks(figures_scores.means_by_depth(study, rows))
    assert len({study.by_name[row["cell"]].score_series for row in rows}) == 2
    assert sum("mean" in text and "CRATE" not in text and "GPT" not in text for text in means) == 6


def test_losses_measured_otherwise_are_not_averaged_or_fitted_together(sweep: SyntheticSweep) -> None:
    """One seed's evaluation failed: its training measured it on a part of val, in another way."""
    sweep.add("crate", 1)
    sweep.add("crate", 1, seed=1)
    sweep.add("crate", 1, seed=2, missing={"evaluate": "failed"}, loss=1.0)
    study = study_of(sweep)
    whole, part = all_series(study, "parameters")
    assert (len(whole.cells), len(part.cells)) == (2, 1) and whole.means[1][0] > 2
    assert "measured in training" in part.name


def test_of_several_evaluations_the_one_on_most_of_val_is_the_loss(sweep: SyntheticSweep) -> None:
    for loss, val_tokens in ((5.0, 1024), (4.0, 0), (6.0, 2048)):
        for seed in (0, 1):
            sweep.add("crate", 1, seed=seed, evaluate__val_tokens=val_tokens, loss=loss)
    study = study_of(sweep)
    assert [cell.val_loss for cell in study.models] == pytest.approx([4.0 + 0.02, 4.0 + 0.02], abs=0.2)
    ((_, mean, _),) = all_series(study, "parameters")[0].replicas
    assert mean == pytest.approx(study.models[0].val_loss)


def test_lines_are_of_models_that_saw_the_same_number_of_tokens(sweep: SyntheticSweep) -> None:
    """The larger model's long training failed: its short one is no end of the small models' long line."""
    for n_layer, tokens, loss in ((1, 4096, 6.0), (1, 32_768, 4.0), (2, 4096, 5.5), (4, 4096, 5.0), (2, 32_768, 3.5)):
        sweep.add("crate", n_layer, pretrain__total_tokens=tokens, loss=loss)
    (series,) = all_series(study_of(sweep), "parameters")
    short, long = series.lines
    assert [len(sizes) for sizes, _ in series.lines] == [3, 2]
    assert short[1].min() > long[1].max()


def test_a_lucky_seed_does_not_lead_at_its_compute(sweep: SyntheticSweep) -> None:
    """By its luckiest seed the short training beats the longer one; by its mean it does not."""
    for seed, short in ((0, 3.0), (1, 7.0)):
        sweep.add("crate", 1, seed=seed, pretrain__total_tokens=4096, loss=short)
        sweep.add("crate", 1, seed=seed, pretrain__total_tokens=8192, loss=4.0)
    (series,) = all_series(study_of(sweep), "training FLOPs")
    assert series.best.tolist() == [True] * 4
    sizes, losses = series.means
    assert losses[1] < losses[0] and len(sizes) == 2


def test_offsets_are_of_equally_many_tokens_or_say_why_not(sweep: SyntheticSweep) -> None:
    for n_layer in (1, 2, 4):
        sweep.add("crate", n_layer, pretrain__total_tokens=32_768, loss=4.0)
        sweep.add("gpt2", n_layer, pretrain__total_tokens=4096, loss=5.0)
    rows = offset_rows(study_of(sweep))
    assert len(rows) == 3 and all(row["offset"] is None and row["low"] is None for row in rows)
    assert all(row["note"] == "not trained on equally many tokens: 32.8k against 4.1k" for row in rows)
    for n_layer in (1, 2, 4):
        sweep.add("crate", n_layer, pretrain__total_tokens=4096, loss=5.5)
    rows = offset_rows(study_of(sweep))
    assert [row["train_tokens"] for row in rows] == [4096] * 3
    assert [row["offset"] for row in rows] == pytest.approx([0.5] * 3, abs=1e-6)


@pytest.mark.parametrize(
    "changed",
    [
        {"pretrain__learning_rate": 1e-3},
        {"model__n_ctx": 128},
        {"tokens__val_fraction": 0.1},
        {"evaluate__val_tokens": 1024},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_offsets_are_of_one_recipe_text_and_measurement_or_say_why_not(
    sweep: SyntheticSweep, changed: dict[str, Any]
) -> None:
    for n_layer in (1, 2, 4):
        sweep.add("crate", n_layer)
        sweep.add("gpt2", n_layer, **changed)
    rows = offset_rows(study_of(sweep))
    assert len(rows) == 3 and all(row["offset"] is None for row in rows)
    assert all(row["note"].startswith("not trained alike") or "loss" in row["note"] for row in rows)


def test_a_law_over_tokens_leaves_out_those_that_were_seen_too_often(sweep: SyntheticSweep) -> None:
    there = sweep.inputs["tokens"].summary["train"]["n_tokens"]
    epochs = {tokens: tokens // 1024 * 1024 / there for tokens in (4096, 8192, 16 * there)}
    assert epochs[8192] < 4 < epochs[16 * there]
    for n_layer in (1, 2, 3, 4, 5, 6):
        for tokens in epochs:
            sweep.add("gpt2", n_layer, pretrain__total_tokens=tokens)
    study = study_of(sweep)
    assert {round(cell.epochs or 0, 6) for cell in study.cells} == {round(value, 6) for value in epochs.values()}
    for row in fit_rows(study):
        assert row["n_models"] == 12
        assert row["note"].startswith("6 models beyond 4 epochs left out: repeated tokens are no new ones")
    rows = {row["cell"]: row for row in all_tables(study)["cells"]}
    assert all(rows[cell.name]["epochs"] == cell.epochs for cell in study.cells)
    assert study.epochs_said.endswith("epochs of their text)")


def test_ablations_are_lines_of_models_alike_in_all_else_on_one_text(sweep: SyntheticSweep) -> None:
    """Two rates with two seeds each at two depths, of one text; what another share for val leaves is no end of theirs."""
    for n_layer, rate, seed in itertools.product((1, 2), (1e-3, 2e-3), (0, 1)):
        sweep.add("crate", n_layer, seed=seed, pretrain__learning_rate=rate)
    sweep.inputs["other"] = sweep.publish("tokens", "other", other_text)
    sweep.add("crate", 1, text="other", tokens__val_fraction=0.1, pretrain__learning_rate=1e-3)
    (figure,) = figures_loss.ablations(study_of(sweep))
    assert figure.name == "ablation_pretrain_learning_rate"
    lines = [line for line in figure.drawn[0].axes[0].get_lines() if len(line.get_xdata()) == 2]
    assert [list(line.get_xdata()) for line in lines] == [[1e-3, 2e-3]] * 2, "seeds are averaged"
    assert len(marks(figure)) == 8


def other_text(folder: Path) -> dict[str, Any]:
    facts = write_tokens(folder)
    for file in (folder / "val").glob("*.arrow"):
        file.write_bytes(file.read_bytes() + b"other")
    return facts


def test_autoencoders_trained_otherwise_are_no_seeds(sweep: SyntheticSweep) -> None:
    sweep.sae = True
    for seed, k in ((0, (4,)), (1, (4,)), (0, (8,)), (1, (8,))):
        sweep.add("crate", 1, seed=seed, sae__k=k)
    study = study_of(sweep)
    rows = [row for row in over_seeds(study, all_tables(study)["model_scores"]) if row["metric"] == "anthropic"]
    features = [row for row in rows if row["family"] != "code"]
    assert [row["seeds"] for row in features] == [2, 2]
    assert [row["seeds"] for row in rows if row["family"] == "code"] == [2]
    assert not np.isclose(features[0]["mean"], features[1]["mean"], atol=1e-12)
