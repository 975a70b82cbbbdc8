"""Two sweeps beside each other: the cells that both have, and how their losses and scores differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow.compute as pc

from pipeline.artifacts.evaluation import read_domains
from pipeline.artifacts.scores import Scores, family_of
from pipeline.artifacts.store import Artifact
from pipeline.errors import ArtifactError
from pipeline.report.text import METRICS

RESAMPLES, LEVELS = 1000, (0.025, 0.975)
LEAST_DOMAINS = 3
Run = Mapping[str, Artifact]  # "<cell>/<stage>" -> artifact


def compare(run_a: Run, run_b: Run, seed: int = 0) -> list[dict[str, Any]]:
    """Differences B minus A, a row a common cell and measure: {"cell", "measure", "a", "b", "difference", "low", "high", "note"}.

    Scores are times 100, with 95 % bootstrap intervals over neurons: of pairs where both runs judged the same trained model,
    of two samples otherwise. A layer without a scored neuron in either run is left out of both means. The intervals of losses
    are over the domains of the validation text, drawn anew, where there are enough; what another seed would give is told by
    replicas. Raises ArtifactError when no cell is in both.
    """
    cells = sorted(
        {name.partition("/")[0] for name in run_a if "/" in name}
        & {name.partition("/")[0] for name in run_b if "/" in name}
    )
    if not cells:
        raise ArtifactError("these two runs have no cell in common", fix="Compare sweeps whose grids share a point.")
    return [row for cell in cells for row in [*_losses(cell, run_a, run_b, seed), *_scores(cell, run_a, run_b, seed)]]


def _losses(cell: str, run_a: Run, run_b: Run, seed: int) -> list[dict[str, Any]]:
    made = [run.get(f"{cell}/evaluate") for run in (run_a, run_b)]
    if made[0] is None or made[1] is None:
        return []
    rows = []
    for measure, column, weight in (("val_loss", "loss", "n_tokens"), ("bits_per_byte", "bits_per_byte", "n_bytes")):
        a, b = (float(artifact.summary[measure]) for artifact in made if artifact)
        if made[0].fingerprint == made[1].fingerprint:
            low, high, note = None, None, "same artifact"
        else:
            low, high, note = _domain_interval(made[0], made[1], column, weight, np.random.default_rng(seed))
        rows.append(_row(cell, measure, a, b, low, high, note))
    return rows


def _domain_interval(
    a: Artifact, b: Artifact, column: str, weight: str, rng: np.random.Generator
) -> tuple[float | None, float | None, str]:
    """Of the difference, over domains drawn anew, each with its weight; why there is none otherwise."""
    tables = [read_domains(made).sort_by("domain") for made in (a, b)]
    texts = [(table["domain"].to_pylist(), table[weight].to_pylist()) for table in tables]
    if texts[0] != texts[1]:
        return None, None, "no interval: measured on other text"
    if len(texts[0][0]) < LEAST_DOMAINS:
        return None, None, f"no interval: fewer than {LEAST_DOMAINS} domains"
    losses_a, losses_b = (table[column].to_numpy(zero_copy_only=False).astype(float) for table in tables)
    weights = np.array(texts[0][1], float)
    drawn = rng.integers(0, len(weights), (RESAMPLES, len(weights)))
    means = ((losses_b - losses_a) * weights)[drawn].sum(1) / weights[drawn].sum(1)
    low, high = np.quantile(means, LEVELS)
    return float(low), float(high), f"over {len(weights)} domains"


def _scores(cell: str, run_a: Run, run_b: Run, seed: int) -> list[dict[str, Any]]:
    made = [run.get(f"{cell}/interpret") for run in (run_a, run_b)]
    if made[0] is None or made[1] is None:
        return []
    scores = [_by_metric(artifact) for artifact in made if artifact]
    trained = [run.get(f"{cell}/pretrain") for run in (run_a, run_b)]
    paired = trained[0] is not None and trained[1] is not None and trained[0].fingerprint == trained[1].fingerprint
    judges = [Scores(artifact).judge for artifact in made if artifact]
    note = "" if judges[0] == judges[1] else f"other judges: {judges[0]}; {judges[1]}"
    rng = np.random.default_rng(seed)
    return [
        _score_row(cell, metric, scores[0][metric], scores[1][metric], paired, note, rng)
        for metric in METRICS
        if metric in scores[0] and metric in scores[1]
    ]


def _by_metric(artifact: Artifact) -> dict[str, dict[int, np.ndarray]]:
    """metric -> layer -> scores times 100 by neuron, NaN where there is none."""
    table = Scores(artifact).neurons()
    found: dict[str, dict[int, np.ndarray]] = {}
    for metric in pc.unique(table["metric"]).to_pylist():
        of_metric = table.filter(pc.equal(table["metric"], metric))
        for site, layer in dict.fromkeys(
            zip(of_metric["site"].to_pylist(), of_metric["layer"].to_pylist(), strict=True)
        ):
            if family_of(site) == "code":
                own = of_metric.filter(pc.equal(of_metric["site"], site)).sort_by("neuron")
                found.setdefault(metric, {})[layer] = 100 * own["score"].to_numpy().astype(float)
    return found


def _score_row(
    cell: str,
    metric: str,
    a: dict[int, np.ndarray],
    b: dict[int, np.ndarray],
    paired: bool,
    note: str,
    rng: np.random.Generator,
) -> dict[str, Any]:
    layers = sorted(a.keys() & b.keys())
    pairs = [(a[n], b[n]) for n in layers if not (np.isnan(a[n]).all() or np.isnan(b[n]).all())]
    if len(pairs) < len(layers):
        lost = f"{len(layers) - len(pairs)} of {len(layers)} layers have no scored neuron in one of the runs"
        note = "; ".join(filter(None, (note, lost)))
    if not pairs:
        return _row(cell, metric, None, None, None, None, note)
    if paired and all(len(x) == len(y) for x, y in pairs):
        drawn = [_paired_means(x, y, rng) for x, y in pairs]
        note = "; ".join(filter(None, (note, "pairs of neurons")))
    else:
        drawn = [_means(y, rng) - _means(x, rng) for x, y in pairs]
    low, high = np.nanquantile(np.mean(drawn, axis=0), LEVELS)
    means = [float(np.mean([np.nanmean(pair[which]) for pair in pairs])) for which in (0, 1)]
    return _row(cell, metric, means[0], means[1], float(low), float(high), note)


def _means(scores: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Means (resamples,) of the scored neurons drawn anew."""
    scored = scores[~np.isnan(scores)]
    return scored[rng.integers(0, len(scored), (RESAMPLES, len(scored)))].mean(1)


def _paired_means(a: np.ndarray, b: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Differences of means (resamples,) when the same neurons are drawn from both; NaN where one has none that is scored."""
    drawn = rng.integers(0, len(a), (RESAMPLES, len(a)))
    return _scored_means(b[drawn]) - _scored_means(a[drawn])


def _scored_means(scores: np.ndarray) -> np.ndarray:
    """(resamples, neurons) -> (resamples,), over the neurons that have a score."""
    counts = (~np.isnan(scores)).sum(1)
    return np.where(counts > 0, np.nansum(scores, axis=1) / np.maximum(counts, 1), np.nan)


def _row(
    cell: str, measure: str, a: float | None, b: float | None, low: float | None, high: float | None, note: str
) -> dict[str, Any]:
    return {
        "cell": cell,
        "measure": measure,
        "a": a,
        "b": b,
        "difference": None if a is None or b is None else b - a,
        "low": low,
        "high": high,
        "note": note,
    }
