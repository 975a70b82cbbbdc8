"""The published numbers agree with each other, and the figures show just these."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crate_model.flops import count_parameters
from pipeline.interpret.statistics import paper_mean_and_variance
from pipeline.report import figures_coverage, figures_layer_scores, figures_loss, figures_scores, published
from pipeline.report.study import gather
from pipeline.report.style import PALETTE, Canvas, styled
from pipeline.report.tables import all_tables
from tests.synthetic_sweep import SyntheticSweep, fresh_store

CASES = [
    (metric, architecture, n_layer)
    for metric, table in published.TABLE.items()
    for architecture, rows in table.items()
    for n_layer in rows
]


@pytest.mark.parametrize(("metric", "architecture", "n_layer"), CASES)
def test_layer_scores_give_the_printed_mean_and_variance(metric: str, architecture: str, n_layer: int) -> None:
    mean, variance = published.TABLE[metric][architecture][n_layer]
    plotted = published.plotted(metric, architecture, n_layer)
    assert np.mean(plotted) == pytest.approx(mean, abs=0.006)
    assert np.var(plotted) == pytest.approx(variance, abs=0.006)


@pytest.mark.parametrize("metric", ["top_and_random", "anthropic"])
@pytest.mark.parametrize("architecture", ["crate", "gpt2"])
@pytest.mark.parametrize("n_layer", [6, 12])
def test_our_paper_convention_gives_the_printed_numbers_from_all_layers(
    metric: str, architecture: str, n_layer: int
) -> None:
    """The last layer, known for these, is left out by the convention and not by hand."""
    layers = published.LAYERS[metric][architecture][n_layer]
    assert len(layers) == n_layer
    mean, variance = paper_mean_and_variance([score / 100 for score in layers])
    assert mean is not None
    assert variance is not None
    assert (100 * mean, 1e4 * variance) == pytest.approx(published.TABLE[metric][architecture][n_layer], abs=0.006)


def test_published_shapes_have_the_printed_sizes() -> None:
    """Parameters in millions, as printed, but for CRATE-S, whose printed 55.9 no shape gives."""
    printed = {
        "crate": {1: 6.54, 2: 6.64, 3: 6.74, 12: 81.1},
        "gpt2": {1: 6.64, 2: 6.83, 3: 7.03, 6: 81.1, 12: 123.6},
    }
    for architecture, sizes in printed.items():
        for n_layer, millions in sizes.items():
            size = count_parameters(published.model(architecture, n_layer)).total_without_positions
            assert size / 1e6 == pytest.approx(millions, abs=0.06)


def test_figures_show_the_published_layer_scores(tmp_path: Path) -> None:
    """Means and variances of the hollow marks, read back from the drawn figure, are the printed ones."""
    sweep = SyntheticSweep(fresh_store(tmp_path), total_tokens=4096, top=1, random=1, d_model=8, n_head=1)
    sweep.add("crate", 12)
    sweep.add("gpt2", 3)
    study = gather(sweep.settings, sweep.inputs)
    tables = all_tables(study)
    figure = next(
        f for f in figures_layer_scores.layer_panels(study, tables["layer_scores"]) if f.name == "layers_anthropic"
    )
    with styled():
        panels = figure.draw(Canvas()).axes
    for axes, n_layer in zip(panels, (12, 3), strict=True):
        for architecture in ("crate", "gpt2"):
            (marks,) = [
                line
                for line in axes.get_lines()
                if line.get_marker() in "os"
                and line.get_markeredgecolor() == PALETTE[architecture]
                and line.get_markerfacecolor() != PALETTE[architecture]
            ]
            shown = np.asarray(marks.get_ydata(), float)
            expected = published.TABLE["anthropic"][architecture][n_layer]
            assert (shown.mean(), shown.var()) == pytest.approx(expected, abs=0.006)


def test_scores_of_written_numbers_have_figures_without_published_marks(tmp_path: Path) -> None:
    """interpret.simulator http_numbers: another metric, which nobody has published."""
    sweep = SyntheticSweep(fresh_store(tmp_path), total_tokens=4096, top=1, random=1, d_model=8, n_head=1)
    sweep.metric_suffix = "_generated"
    sweep.add("crate", 1)
    study = gather(sweep.settings, sweep.inputs)
    tables = all_tables(study)
    by_depth = figures_scores.means_by_depth(study, tables["model_scores"])
    covered = figures_coverage.coverage(study, tables["layer_scores"])
    (figure, *_) = figures_layer_scores.layer_panels(study, tables["layer_scores"])
    assert figure.name == "layers_top_and_random_generated"
    for drawn in (by_depth, covered, figure):
        assert drawn is not None
        _, canvas = drawn.drawn
        texts = [text for marks in canvas.tips.values() for text, _ in marks]
        assert texts and not any(published.LABEL in text for text in texts)
    assert figures_coverage.coverage(study, [row | {"metric": "unheard of"} for row in tables["layer_scores"]]) is None


def test_the_published_ladder_is_drawn_beside_ours(tmp_path: Path) -> None:
    sweep = SyntheticSweep(fresh_store(tmp_path), total_tokens=4096, top=1, random=1, d_model=8, n_head=1)
    sweep.add("crate", 1)
    figure = figures_loss.published_ladder(gather(sweep.settings, sweep.inputs))
    assert figure is not None
    canvas = Canvas()
    with styled():
        drawing = figure.draw(canvas)
    shown = [line.get_ydata() for line in drawing.axes[0].get_lines() if line.get_marker() in "os"]
    for losses in published.LOSS.values():
        assert any(np.array_equal(np.asarray(y, float), list(losses.values())) for y in shown)
