"""The report's figures in their order."""

from __future__ import annotations

from pipeline.report import (
    figures_coverage,
    figures_curves,
    figures_edits,
    figures_layer_scores,
    figures_layers,
    figures_loss,
    figures_scores,
)
from pipeline.report.study import Study
from pipeline.report.style import Figure
from pipeline.report.tables import Tables


def all_figures(study: Study, tables: Tables) -> list[Figure]:
    """Every figure for which there are data, from tables that tell each thing once.

    Weights kept along the way are in those that show how training went on.
    """
    whole = {name: study.of_models(rows) for name, rows in tables.items() if rows and "cell" in rows[0]}
    scores, means = whole.get("layer_scores", []), whole.get("model_scores", [])
    found = [
        figures_loss.scaling(study),
        figures_loss.published_ladder(study),
        figures_curves.loss_curves(study, whole.get("curves", [])),
        *figures_loss.ablations(study),
        figures_loss.domains(study, whole.get("domains", [])),
        figures_scores.means_by_depth(study, means),
        *figures_layer_scores.layer_panels(study, scores),
        figures_scores.against_loss(study, tables.get("model_scores", [])),
        figures_scores.against_tokens(study, tables.get("model_scores", [])),
        figures_coverage.coverage(study, tables.get("layer_scores", [])),
        figures_layers.sparsity(study, whole.get("layer_statistics", [])),
        figures_layers.coding_rate(study, whole.get("layer_diagnostics", [])),
        figures_edits.steering_effects(study, whole.get("steering_effects", [])),
        figures_edits.steering_doses(study, whole.get("steering_doses", [])),
        figures_edits.autoencoders(study, whole.get("saes", [])),
        figures_edits.densities(study, whole.get("sae_densities", [])),
    ]
    return [figure for figure in found if figure]
