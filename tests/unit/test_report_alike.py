"""What stands side by side on the page is alike, or is named apart and says on what it stands."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq

from pipeline.interpret.basis import Part
from pipeline.report.browser import browser
from pipeline.report.figures_edits import steering_doses
from pipeline.report.study import gather
from tests.report_world import Page, build, figure_of, table
from tests.synthetic_sweep import SyntheticSweep, fresh_store


def test_models_that_saw_unequal_numbers_of_tokens_are_not_drawn_as_if_alike(tmp_path: Path) -> None:
    sweep = SyntheticSweep(fresh_store(tmp_path / "store"), d_model=8, n_head=1)
    sweep.add("crate", 1, pretrain__total_tokens=131_072)
    sweep.add("gpt2", 1)
    built = build(sweep, tmp_path / "report")
    for name in ("scaling", "domains"):
        assert "The models saw 65.5k to 131k tokens" in figure_of(built, name), name
    assert "trained on 65.5k to 131k tokens" in Page(built.html).text
    assert "CRATE (total_tokens 131072)" in figure_of(built, "scores_against_loss")


def test_the_neurons_side_by_side_are_of_models_that_are_alike_or_said_not_to_be(tmp_path: Path) -> None:
    """A deeper CRATE and weights kept along the way are there, too: neither is shown beside GPT-2 at the end of its training."""
    sweep = SyntheticSweep(fresh_store(tmp_path / "store"), d_model=8, n_head=1)
    sweep.add("crate", 2)
    sweep.add("gpt2", 1, checkpoint_step=4, pretrain__keep_log_spaced=True)
    sweep.add("gpt2", 1)
    shown = browser(gather(sweep.settings, sweep.inputs)).gallery
    assert [(entry["head"]["cell"], entry["alike"]) for entry in shown] == [("crate-2l", ""), ("gpt2-1l", "")]
    sweep.add("crate", 1)
    built = build(sweep, tmp_path / "report")
    shown = browser(gather(sweep.settings, sweep.inputs)).gallery
    assert [entry["head"]["cell"] for entry in shown] == ["crate-1l", "gpt2-1l"]
    assert (
        "no typical ones, of one model of each architecture (both: 65.5k tokens each, 1 layer" in Page(built.html).text
    )


def test_steered_and_controls_are_of_the_same_edits_and_features_no_neurons() -> None:
    """Edit 1 has no control, edit 0 has two, edit 2 is of a feature: its effects are a hundred times larger."""
    study = SimpleNamespace(cells=[SimpleNamespace(name="crate-1l")])
    rows = [
        {"cell": "crate-1l", "edit": edit, "site": site, "layer": 0, "role": role, "dose": 1.0, "kl": kl}
        for edit, site, role, kl in (
            (0, "code-l0", "steered", 1.0),
            (0, "code-l0", "control", 1.0),
            (0, "code-l0", "control", 3.0),
            (1, "code-l0", "steered", 9.0),
            (2, "code-l0-1x", "steered", 100.0),
            (2, "code-l0-1x", "control", 100.0),
        )
    ]
    drawn = steering_doses(study, rows)
    assert "crate-1l 1 neuron steered dose 1 1; crate-1l 1 neuron control dose 1 2;" in drawn.alt
    assert "crate-1l 1 feature steered dose 1 100; crate-1l 1 feature control dose 1 100." in drawn.alt
    assert "no interval" in drawn.caption


def test_every_line_that_differs_in_a_setting_is_named(tmp_path: Path) -> None:
    """Two learning rates, and two amounts of text on which neurons were read: of the fewer, more neurons are dead."""
    sweep = SyntheticSweep(fresh_store(tmp_path / "store"), d_model=8, n_head=1)
    sweep.add("crate", 1)
    sweep.add("crate", 1, pretrain__learning_rate=0.01)
    sweep.add("crate", 1, activations__tokens=1024)
    built = build(sweep, tmp_path / "report")
    for name, said in (("loss_curves", "rate 0.01"), ("coding_rate", "rate 0.01"), ("sparsity", "tokens 1024")):
        assert said in figure_of(built, name), name
    assert "mark without a bar is not known" in figure_of(built, "ablation_pretrain_learning_rate")
    alone = SyntheticSweep(fresh_store(tmp_path / "plain"), name="plain", d_model=8, n_head=1)
    alone.add("crate", 1)
    curves = build(alone, tmp_path / "other").html.partition('id="fig-loss_curves"')[2].partition("</figure>")[0]
    assert curves and 'class="key"' not in curves


def test_losses_and_scores_that_were_measured_in_unlike_ways_are_named_apart(tmp_path: Path) -> None:
    """One model lacks its evaluation and has the training's own; neurons of the others were read in two ways."""
    sweep = SyntheticSweep(fresh_store(tmp_path / "store"), d_model=8, n_head=1)
    sweep.add("crate", 1, missing={"evaluate": "failed: out of memory"})
    sweep.add("gpt2", 1)
    sweep.add("gpt2", 1, activations__top=10)
    built = build(sweep, tmp_path / "report")
    assert "measured in training)" in table(built, "cells")[0][-2]
    drawn = figure_of(built, "scores_against_loss")
    assert "Judge of the scores here" in built.html and "A token table is no language model" in built.html
    assert "measured in training)" in drawn and "GPT-2 (top 10, " in drawn and "Better models" not in drawn


def test_captions_and_columns_say_what_scores_stand_on(tmp_path: Path) -> None:
    """A kind that goes short is told with its number; a metric that lacks one has no score and no caption."""

    def had(part: Part) -> int:
        return {"top": 0 if part.tokens == 8 else 4}.get(part.kind, part.asked)

    sweep = SyntheticSweep(fresh_store(tmp_path), had=had)
    sweep.add("crate", 3, activations__layers=(1,))
    built = build(sweep, tmp_path / "report")
    text = Page(built.html).text
    caption = text[text.index("Scores by layer: Top and random") :][:400]
    assert "4 of 5 top (64 tokens each)" in caption and "5 random (64 tokens each)" in caption
    assert "over all layers" not in text and "1 of 3" in text and "9 of 10" in text and "too few excerpts" in text
    rows = pq.read_table(built.folder / "tables/layer_scores.parquet").to_pylist()
    (row,) = [row for row in rows if row["metric"] == "anthropic"]
    assert row["mean"] is None and row["n_too_few_excerpts"] == row["n_neurons"]
    assert 'id="fig-layers_anthropic"' not in built.html
