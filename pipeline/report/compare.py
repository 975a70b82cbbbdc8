"""Two sweeps beside each other: the cells that both have, and how their losses and scores differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import intervals
from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.evaluation import read_domains
from pipeline.artifacts.scores import Scores, family_of
from pipeline.errors import ArtifactError
from pipeline.naming import flat
from pipeline.report.text import METRICS

RESAMPLES = 1000
LOSSES = (("val_loss", "loss", "n_tokens"), ("bits_per_byte", "bits_per_byte", "n_bytes"))
MADE_BY = {
    "val_loss": ("pretrain", "evaluate"),
    "score": ("pretrain", "activations", "interpret"),
}  # what a measure rests on
Run = Mapping[str, Artifact]  # "<cell>/<stage>" -> artifact
LayerScores = dict[
    int, np.ndarray
]  # layer -> scores times 100 of the neurons that were asked for, NaN where there is none


def compare(run_a: Run, run_b: Run, seed: int = 0) -> list[dict[str, Any]]:
    """Differences B minus A, a row a common cell and measure: {"cell", "measure", "a", "b", "difference", "low", "high", "note"}.

    Scores are times 100. `low` and `high` are 95 % intervals: of scores over neurons, of pairs where both runs asked the same
    neurons of the same model; of losses over the domains of the text. Neither says what another seed would give, which is for
    replicas. `note` names the units, all settings that differ, and why an interval or a difference is missing: losses on other
    text have none. Raises ArtifactError when no cell is in both.
    """
    cells = sorted(
        {name.partition("/")[0] for name in run_a if "/" in name}
        & {name.partition("/")[0] for name in run_b if "/" in name}
    )
    if not cells:
        raise ArtifactError("these two runs have no cell in common", fix="Compare sweeps whose grids share a point.")
    return [row for cell in cells for row in [*_losses(cell, run_a, run_b, seed), *_scores(cell, run_a, run_b, seed)]]


def _losses(cell: str, run_a: Run, run_b: Run, seed: int) -> list[dict[str, Any]]:
    a, b = run_a.get(f"{cell}/evaluate"), run_b.get(f"{cell}/evaluate")
    if a is None or b is None:
        return []
    unlike, text = _unlike(cell, run_a, run_b, MADE_BY["val_loss"]), _other_text(a, b)
    rows = []
    for measure, column, weight in LOSSES:
        values = float(a.summary[measure]), float(b.summary[measure])
        low, high, note = None, None, text or "same artifact"
        if not text and a.fingerprint != b.fingerprint:
            low, high, note = _domain_interval(a, b, column, weight, np.random.default_rng(seed))
        row = _row(cell, measure, *values, low, high, _joined(note, unlike))
        rows.append(row | {"difference": None} if text.startswith("other text") else row)
    return rows


def _other_text(a: Artifact, b: Artifact) -> str:
    """In what the texts of two evaluations differ; empty where both took the same tokens of every domain."""
    tables = [read_domains(made).sort_by("domain").select(["domain", "n_tokens", "n_bytes"]) for made in (a, b)]
    if tables[0] == tables[1]:
        return ""
    tokens = [made.manifest.inputs.get("tokens") for made in (a, b)]
    if tokens[0] and tokens[0] == tokens[1]:
        counts = [f"{pc.sum(table['n_tokens']).as_py():,}" for table in tables]
        return f"no interval: {counts[0]} and {counts[1]} tokens of the same text"
    return "other text: the losses have no difference"


def _domain_interval(
    a: Artifact, b: Artifact, column: str, weight: str, rng: np.random.Generator
) -> tuple[float | None, float | None, str]:
    """Of the difference of two losses on the same text, over its domains, each with its weight; why there is none otherwise."""
    tables = [read_domains(made).sort_by("domain") for made in (a, b)]
    losses_a, losses_b = (table[column].to_numpy(zero_copy_only=False).astype(float) for table in tables)
    weights = tables[0][weight].to_numpy().astype(float)
    differences, weights = (losses_b - losses_a)[weights > 0], weights[weights > 0]
    if len(weights) < intervals.FEWEST_DOMAINS:
        return None, None, f"no interval: fewer than {intervals.FEWEST_DOMAINS} domains"
    low, high = intervals.over_domains(differences, weights, rng)
    if low is None:
        return None, None, f"no interval: the same difference in all {len(weights)} domains"
    return low, high, f"over {len(weights)} domains of this text; another seed is not in it"


def _scores(cell: str, run_a: Run, run_b: Run, seed: int) -> list[dict[str, Any]]:
    made = [run.get(f"{cell}/interpret") for run in (run_a, run_b)]
    if made[0] is None or made[1] is None:
        return []
    a, b = (_by_metric(artifact) for artifact in made if artifact)
    unlike = _unlike(cell, run_a, run_b, MADE_BY["score"])
    judges = [Scores(artifact).judge for artifact in made if artifact]
    if judges[0] != judges[1]:
        unlike = _joined(f"other judges: {judges[0]}; {judges[1]}", unlike)
    same = made[0].fingerprint == made[1].fingerprint
    rng, rows = np.random.default_rng(seed), []
    for metric in (metric for metric in METRICS if metric in a and metric in b):
        paired = _same_model(cell, run_a, run_b) and _asked(a[metric]) == _asked(b[metric])
        scores = [{n: _column(table, "score") for n, table in found[metric].items()} for found in (a, b)]
        note = _joined(_unlike_excerpts(a[metric], b[metric]), unlike)
        row = _score_row(cell, metric, scores[0], scores[1], paired, note, rng)
        rows.append(row | {"low": None, "high": None, "note": "same artifact"} if same else row)
    return rows


def _same_model(cell: str, run_a: Run, run_b: Run) -> bool:
    """Whether both runs read the same weights: of one training, at the same step."""
    read = []
    for run in (run_a, run_b):
        trained, records = run.get(f"{cell}/pretrain"), run.get(f"{cell}/activations")
        read.append((trained and trained.fingerprint, flat(_settings(records)).get("checkpoint_step", "last")))
    return read[0] == read[1] and read[0][0] is not None


def _settings(made: Artifact | None) -> dict[str, Any]:
    return made.manifest.settings if made else {}


def _unlike(cell: str, run_a: Run, run_b: Run, stages: tuple[str, ...]) -> str:
    """Every setting in which the steps behind a measure differ, by dotted key; other tokens, and other versions of a step."""
    said = []
    for stage in stages:
        a, b = run_a.get(f"{cell}/{stage}"), run_b.get(f"{cell}/{stage}")
        if a is None or b is None:
            continue
        values = [flat(_settings(made)) for made in (a, b)]
        for key in sorted(values[0].keys() | values[1].keys()):
            if values[0].get(key) != values[1].get(key):
                said.append(f"other {key}: {values[0].get(key)}; {values[1].get(key)}")
        if a.manifest.inputs.get("tokens") != b.manifest.inputs.get("tokens"):
            said.append("other tokens")
        if a.manifest.version != b.manifest.version:
            said.append(f"{stage} of other versions: {a.manifest.version}; {b.manifest.version}")
    return "; ".join(dict.fromkeys(said))


def _by_metric(artifact: Artifact) -> dict[str, dict[int, pa.Table]]:
    """metric -> layer -> the rows of its neurons, in the neurons' order."""
    table = Scores(artifact).neurons()
    found: dict[str, dict[int, pa.Table]] = {}
    for metric in pc.unique(table["metric"]).to_pylist():
        of_metric = table.filter(pc.equal(table["metric"], metric))
        for site, layer in dict.fromkeys(
            zip(of_metric["site"].to_pylist(), of_metric["layer"].to_pylist(), strict=True)
        ):
            if family_of(site) == "code":
                own = of_metric.filter(pc.equal(of_metric["site"], site)).sort_by("neuron")
                found.setdefault(metric, {})[layer] = own
    return found


def _asked(layers: dict[int, pa.Table]) -> dict[int, list[int]]:
    """Which neurons were to be scored, by layer, in the order of their scores."""
    return {layer: table["neuron"].to_pylist() for layer, table in layers.items()}


def _unlike_excerpts(*layers_of: dict[int, pa.Table]) -> str:
    """How many excerpts a scored neuron of either run has on average; empty where these are equally many."""
    scored = [pa.concat_tables(layers.values()).filter(pc.field("score").is_valid()) for layers in layers_of]
    means = [pc.mean(table["n_excerpts"]).as_py() for table in scored]
    said = [f"{mean:.1f}" for mean in means if mean is not None]
    return f"a score is of {said[0]} and of {said[1]} excerpts on average" if len(set(said)) > 1 else ""


def _column(table: pa.Table, name: str) -> np.ndarray:
    return 100 * table[name].to_numpy().astype(float)


def _score_row(
    cell: str, metric: str, a: LayerScores, b: LayerScores, paired: bool, note: str, rng: np.random.Generator
) -> dict[str, Any]:
    """Means over layers and their difference. `paired`: the arrays of a layer hold the same neurons, in the same order.

    Of pairs, both means are of the neurons that are scored in both runs. A layer without such a neuron is left out.
    """
    layers = sorted(a.keys() & b.keys())
    coverage = f"scored: {_coverage([a[n] for n in layers])} and {_coverage([b[n] for n in layers])}"
    pairs = [_scored(a[n], b[n], paired) for n in layers]
    pairs = [(x, y) for x, y in pairs if len(x) and len(y)]
    lost = f"{len(layers) - len(pairs)} of {len(layers)} layers have no scored neuron in one of the runs"
    note = _joined(lost if len(pairs) < len(layers) else "", note)
    if not pairs:
        return _row(cell, metric, None, None, None, None, _joined(coverage, note))
    samples = [[x for x, _ in pairs], [y for _, y in pairs]]
    means = [float(np.mean([own.mean() for own in sample])) for sample in samples]
    if paired:
        found = _over_layers([y - x for x, y in pairs], rng)
        both = sum(len(x) for x, _ in pairs)
        units = f"pairs of neurons, scored in both: {both} of {sum(len(a[n]) for n in layers)}"
    else:
        found = intervals.difference(_over_layers(samples[1], rng), _over_layers(samples[0], rng))
        units = "two samples of neurons; another seed is not in it"
    why = "" if found else f"no interval: fewer than {intervals.FEWEST_NEURONS} neurons, or all alike"
    low, high = found.interval if found else (None, None)
    return _row(cell, metric, means[0], means[1], low, high, _joined(units, coverage, why, note))


def _scored(a: np.ndarray, b: np.ndarray, paired: bool) -> tuple[np.ndarray, np.ndarray]:
    """Scores that are none NaN: of pairs, where both are there."""
    there_a, there_b = ~np.isnan(a), ~np.isnan(b)
    return (a[there_a & there_b], b[there_a & there_b]) if paired else (a[there_a], b[there_b])


def _over_layers(samples: list[np.ndarray], rng: np.random.Generator) -> intervals.Estimate | None:
    each = [
        intervals.of_resamples(float(own.mean()), intervals.bootstrap_means(own, RESAMPLES, rng), len(own))
        for own in samples
    ]
    return intervals.over_layers(each, [len(own) for own in samples])


def _coverage(layers: list[np.ndarray]) -> str:
    asked, scored = sum(map(len, layers)), sum(int((~np.isnan(own)).sum()) for own in layers)
    return f"{scored} of {asked}"


def _joined(*notes: str) -> str:
    return "; ".join(filter(None, notes))


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
