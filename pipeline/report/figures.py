"""The report's figures in their order."""

from __future__ import annotations

from pipeline.report import figures_edits, figures_layers, figures_loss, figures_scores
from pipeline.report.study import Study
from pipeline.report.style import Figure
from pipeline.report.tables import Tables


def all_figures(study: Study, tables: Tables) -> list[Figure]:
    """Every figure for which there are data."""
    scores, means = tables.get("layer_scores", []), tables.get("model_scores", [])
    found = [
        figures_loss.scaling(study),
        figures_loss.published_ladder(study),
        figures_loss.loss_curves(study, tables.get("curves", [])),
        *figures_loss.ablations(study),
        figures_loss.domains(study, tables.get("domains", [])),
        figures_scores.means_by_depth(study, means),
        *figures_scores.layer_panels(study, scores),
        figures_scores.against_loss(study, means),
        figures_scores.against_tokens(study, means),
        figures_scores.coverage(study, scores),
        figures_layers.sparsity(study, tables.get("layer_statistics", [])),
        figures_layers.coding_rate(study, tables.get("layer_diagnostics", [])),
        figures_edits.steering_doses(study, tables.get("steering_doses", [])),
        figures_edits.autoencoders(study, tables.get("saes", [])),
        figures_edits.densities(study, tables.get("sae_densities", [])),
    ]
    return [figure for figure in found if figure]
