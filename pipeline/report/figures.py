"""The report's figures in their order."""

from __future__ import annotations

from pipeline.report import figures_loss, figures_scores
from pipeline.report.study import Study
from pipeline.report.style import Figure
from pipeline.report.tables import Tables


def all_figures(study: Study, tables: Tables) -> list[Figure]:
    """Every figure for which there are data."""
    found = [
        figures_loss.scaling(study),
        figures_loss.loss_curves(study, tables.get("curves", [])),
        *figures_scores.layer_panels(study, tables.get("layer_scores", [])),
        figures_scores.means_by_depth(study, tables.get("model_scores", [])),
        figures_scores.sparsity(study, tables.get("layer_statistics", [])),
    ]
    return [figure for figure in found if figure]
