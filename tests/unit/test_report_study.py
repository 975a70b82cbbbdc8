"""What the report says of a sweep: replicas, variants, findings and offsets follow from the data, whoever wins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.report import figures_layer_scores, figures_loss, figures_scores
from pipeline.report.figures import all_figures
from pipeline.report.findings import findings
from pipeline.report.replicas import over_seeds
from pipeline.report.scaling import fit_rows, offset_rows
from pipeline.report.series import all_series
from pipeline.report.study import Study, gather
from pipeline.report.tables import all_tables
from tests.synthetic_artifacts import EXPONENT
from tests.synthetic_sweep import SyntheticSweep, fresh_store


@pytest.fixture
def sweep(tmp_path: Path) -> SyntheticSweep:
    return SyntheticSweep(fresh_store(tmp_path), total_tokens=4096, top=1, random=1, d_model=32, n_head=1)


def study_of(sweep: SyntheticSweep) -> Study:
    return gather(sweep.settings, sweep.inputs)


def test_seeds_are_replicas_and_lambda_is_a_variant(sweep: SyntheticSweep) -> None:
    for seed in (0, 1):
        sweep.add("crate", 1, seed=seed)
    sweep.add("crate", 1, model__lambda_sparsity=0.2)
    sweep.add("gpt2", 1)
    study = study_of(sweep)
    assert study.has_replicas
    assert [cell.series for cell in study.cells] == ["CRATE (lambda_sparsity 0.1)"] * 2 + [
        "CRATE (lambda_sparsity 0.2)",
        "GPT-2",  # which has no lambda
    ]
    series = all_series(study, "parameters")[0]
    sizes, means = series.means
    assert len(sizes) == 1
    assert means[0] == pytest.approx(np.mean([cell.val_loss for cell in study.cells[:2]]))


def test_replicas_have_means_and_intervals_over_seeds(sweep: SyntheticSweep) -> None:
    for seed in (0, 1, 2):
        sweep.add("crate", 2, seed=seed)
    sweep.add("gpt2", 2)
    study = study_of(sweep)
    crate, gpt2 = all_series(study, "parameters")
    ((_, mean, half),) = crate.replicas
    losses = [cell.val_loss for cell in study.of("crate")]
    assert mean == pytest.approx(np.mean(losses))
    assert half == pytest.approx(4.303 * np.std(losses, ddof=1) / 3**0.5, rel=1e-3)  # Student's t of three
    assert gpt2.replicas == []
    tables = all_tables(study)
    by_model = over_seeds(study, tables["model_scores"])
    assert len(by_model) == 2 * 3 and {row["seeds"] for row in by_model} == {1, 3}
    row = next(row for row in by_model if row["seeds"] == 3 and row["metric"] == "anthropic")
    each = [r["mean"] for r in tables["model_scores"] if r["cell"].startswith("crate") and r["metric"] == "anthropic"]
    assert row["mean"] == pytest.approx(np.mean(each))
    assert row["low"] < min(each) and row["high"] > max(each)
    for figure in (figures_scores.means_by_depth(study, tables["model_scores"]), figures_loss.scaling(study)):
        assert figure is not None
        texts = [text for marks in figure.drawn[1].tips.values() for text, _ in marks]
        assert sum(text.startswith("crate-2l") for text in texts) == (3 if figure.name == "means_by_depth" else 9)
    panels = figures_layer_scores.layer_panels(study, tables["layer_scores"])
    assert all("crate-2l-seed1" not in figure.alt for figure in panels)


def test_a_plain_ladder_has_no_variants(sweep: SyntheticSweep) -> None:
    for architecture in ("gpt2", "crate"):
        for n_layer in (2, 1):
            sweep.add(architecture, n_layer)
    study = study_of(sweep)
    assert [cell.name for cell in study.cells] == ["crate-1l", "crate-2l", "gpt2-1l", "gpt2-2l"]
    assert {cell.series for cell in study.cells} == {"CRATE", "GPT-2"}


def test_what_changes_no_model_splits_no_ladder(sweep: SyntheticSweep) -> None:
    """Quickstart trains autoencoders on one layer's models only: all its models are still one ladder."""
    sweep.add("crate", 1, sae__expansions=(1,), steer__neurons=2)
    sweep.add("crate", 2, pretrain__eval_every_steps=7)
    sweep.add("crate", 3)
    study = study_of(sweep)
    (series,) = all_series(study, "parameters")
    assert (series.name, len(series.means[0])) == ("CRATE", 3)
    assert {cell.score_series for cell in study.cells} == {"CRATE"}


def test_how_a_model_is_judged_tells_scores_apart_but_not_losses(sweep: SyntheticSweep) -> None:
    sweep.add("crate", 1)
    sweep.add("crate", 1, activations__tokens=1024)
    study = study_of(sweep)
    assert {cell.series for cell in study.cells} == {"CRATE"}
    assert {cell.score_series for cell in study.cells} == {"CRATE (tokens 1024)", "CRATE (tokens 8192000)"}


def test_tokens_are_an_axis_of_the_law_and_no_variant(sweep: SyntheticSweep) -> None:
    for n_layer in (1, 2, 4, 8):
        for tokens in (4096, 16_384, 65_536):
            sweep.add("gpt2", n_layer, pretrain__total_tokens=tokens)
    study = study_of(sweep)
    (series,) = all_series(study, "non-embedding parameters")
    assert series.tokens_vary
    assert series.fit is not None and len(series.fit.exponents) == 2
    by_size, by_flops = fit_rows(study)
    assert by_size["beta"] is not None and by_size["B"] is not None
    assert by_flops["beta"] is None
    longest = [cell.val_loss for cell in study.cells if cell.train_tokens == 65_536]
    assert series.means[1].tolist() == longest
    (compute,) = all_series(study, "training FLOPs")
    assert np.all(np.diff(compute.means[1]) <= 0)


def test_weights_kept_along_the_way_show_the_training_and_are_no_models(sweep: SyntheticSweep) -> None:
    kept: dict[str, Any] = {"pretrain__total_tokens": 16_384, "pretrain__keep_log_spaced": True}
    for architecture in ("crate", "gpt2"):
        for step in (1, 4, "last"):
            sweep.add(architecture, 2, checkpoint_step=step, **kept)
    study = study_of(sweep)
    assert [cell.train_tokens for cell in study.of("crate")] == [1024, 4096, 16_384]
    assert [cell.score_series for cell in study.of("crate")] == [
        "CRATE (checkpoint_step 1)",
        "CRATE (checkpoint_step 4)",
        "CRATE",
    ]
    assert {cell.series for cell in study.cells} == {"CRATE", "GPT-2"}
    assert [len(series.cells) for series in all_series(study, "parameters")] == [1, 1]
    tables = all_tables(study)
    assert {row["cell"] for row in tables["curves"]} == {cell.name for cell in study.models}
    figures = {figure.name: figure for figure in all_figures(study, tables)}
    marks = {
        name: {text.partition(":")[0] for tips in figure.drawn[1].tips.values() for text, _ in tips}
        for name, figure in figures.items()
    }
    everything, models = {cell.name for cell in study.cells}, {cell.name for cell in study.models}
    assert marks["scores_against_tokens"] == marks["scores_against_loss"] == everything
    assert marks["scaling"] == models and marks["means_by_depth"] & everything == models
    against_tokens = figures["scores_against_tokens"].drawn[0].axes[0]
    lines = [line for line in against_tokens.get_lines() if len(line.get_xdata()) == 3]
    assert all(list(line.get_xdata()) == [1024, 4096, 16_384] for line in lines) and len(lines) >= 2
    for figure in figures.values():  # names of such cells are long: they may not push the panels away
        drawing = figure.drawn[0]
        assert all(axes.get_position().width * drawing.get_figwidth() > 1.5 for axes in drawing.axes), figure.name
    told = findings(study, tables)
    assert set().union(*(finding.cells for finding in told)) == models


def test_findings_tell_the_numbers_of_the_tables(sweep: SyntheticSweep) -> None:
    """One seed of each: the losses have no verdict; the scores have the one of their neurons."""
    for architecture in ("crate", "gpt2"):
        sweep.add(architecture, 2)
    study = study_of(sweep)
    crate, gpt2 = (float(cell.val_loss or 0) for cell in study.cells)
    tables = all_tables(study)
    (loss, score, _) = findings(study, tables)
    assert loss.number == f"{crate:.3f} : {gpt2:.3f}" and loss.tone == "muted"
    assert loss.plain.startswith("At 2 layers which has the lower validation loss cannot be said")
    rows = [row for row in tables["model_scores"] if row["metric"] == "top_and_random"]
    assert score.number == " : ".join(f"{100 * row['mean']:.1f}" for row in rows)
    assert "token table (offline, no LLM)" in score.plain


def test_laws_of_a_ladder_are_told_with_what_they_cannot_say(sweep: SyntheticSweep) -> None:
    for n_layer in range(1, 9):
        sweep.add("gpt2", n_layer)
    by_size, by_flops = fit_rows(study_of(sweep))
    assert by_size["n_sizes"] == 8
    low, high = by_size["alpha_low"], by_size["alpha_high"]
    assert low <= EXPONENT["gpt2"] <= high
    assert "beta cannot be identified: all models saw the same number of tokens" in by_size["note"]
    assert by_size["beta"] is None
    assert by_flops["alpha"] is not None


def test_a_mean_score_stands_at_the_mean_loss_of_its_own_seeds(sweep: SyntheticSweep) -> None:
    """The third seed has a loss, and no scores: its judge failed."""
    for seed, loss in enumerate((4.0, 5.0, 9.0)):
        sweep.add("crate", 1, seed=seed, loss=loss, missing={"interpret": "failed"} if seed == 2 else None)
    sweep.add("gpt2", 1)
    study = study_of(sweep)
    figure = figures_scores.against_loss(study, all_tables(study)["model_scores"])
    assert figure is not None
    texts = [text for marks in figure.drawn[1].tips.values() for text, _ in marks if text.startswith("crate")]
    assert texts and all(text.endswith(" 4.5") for text in texts), texts


def test_the_floor_of_a_law_is_no_result_where_its_exponent_is_none(sweep: SyntheticSweep) -> None:
    rng = np.random.default_rng(0)
    for n_layer in range(1, 9):
        sweep.add("crate", n_layer, loss=3 + 0.01 * rng.standard_normal())  # no trend at all
        sweep.add("gpt2", n_layer, loss=2 + 3 * n_layer**-0.4)
    rows = fit_rows(study_of(sweep))
    assert all(row["E_low"] <= row["E"] <= row["E_high"] for row in rows)
    by_size = [row for row in rows if row["against"] == "non-embedding parameters"]
    assert {(row["architecture"], row["E_identified"]) for row in by_size} == {("crate", False), ("gpt2", True)}


def test_three_sizes_make_no_law(sweep: SyntheticSweep) -> None:
    for n_layer in (1, 2, 3):
        sweep.add("crate", n_layer)
    row = fit_rows(study_of(sweep))[0]
    assert row["alpha"] is None
    assert row["note"].startswith("3 distinct sizes")


def test_offset_at_equal_size_is_read_between_models(sweep: SyntheticSweep) -> None:
    for architecture, depths in (("crate", (1, 2, 4)), ("gpt2", (1, 2))):
        for n_layer in depths:
            sweep.add(architecture, n_layer)
    study = study_of(sweep)
    row = next(row for row in offset_rows(study) if row["against"] == "non-embedding parameters")
    crate, gpt2 = all_series(study, "non-embedding parameters")
    size = min(crate.sizes.max(), gpt2.sizes.max())
    assert row["at"] == size
    expected = float(crate.loss_at(np.array([size]))[0] - gpt2.loss_at(np.array([size]))[0])
    assert row["offset"] == pytest.approx(expected)
    assert row["low"] is None and "no interval" in row["note"] and "cannot be said" in row["note"]
    assert np.isnan(gpt2.loss_at(np.array([10 * size]))[0])


def test_no_common_size_gives_no_offset(sweep: SyntheticSweep) -> None:
    sweep.add("crate", 1)
    sweep.add("gpt2", 4)
    row = next(row for row in offset_rows(study_of(sweep)) if row["against"] == "training FLOPs")
    assert row["offset"] is None
    assert row["note"].startswith("no common size")
