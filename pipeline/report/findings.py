"""The answer in short: the few sentences that a reader should leave with, computed from the tables, whoever wins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.report.study import ARCHITECTURES, Cell, Study
from pipeline.report.tables import Tables
from pipeline.report.text import METRICS, amount


@dataclass(frozen=True)
class Finding:
    """One sentence with the number it turns on, and the cells it speaks of."""

    number: str
    label: str
    plain: str
    cells: tuple[str, ...]
    tone: str = "ink"  # a colour of the palette: whose point it is


def findings(study: Study, tables: Tables) -> list[Finding]:
    found = [_loss_gap(study), *_score_gaps(study, tables), _against_unigram(study)]
    return [finding for finding in found if finding]


def deepest_pair(study: Study, cells: list[Cell]) -> tuple[list[Cell], list[Cell]] | None:
    """CRATE's and GPT-2's cells (replicas) of the deepest shape that both have, the longest trained, first variant each."""
    shapes = [
        {(cell.model.d_model, cell.model.n_layer) for cell in cells if cell.architecture == architecture}
        for architecture in ("crate", "gpt2")
    ]
    both = shapes[0] & shapes[1]
    if not both:
        return None
    shape = max(both)
    alike = [cell for cell in cells if (cell.model.d_model, cell.model.n_layer) == shape]
    alike.sort(key=lambda cell: -cell.train_tokens)
    crate = [cell for cell in alike if cell.architecture == "crate"]
    gpt2 = [cell for cell in alike if cell.architecture == "gpt2"]
    return [c for c in crate if c.reading == crate[0].reading], [c for c in gpt2 if c.reading == gpt2[0].reading]


def _loss_gap(study: Study) -> Finding | None:
    pair = deepest_pair(study, [cell for cell in study.models if cell.val_loss is not None])
    if pair is None:
        return None
    crate, gpt2 = (float(np.mean([cell.val_loss for cell in cells])) for cells in pair)
    depth, gap = pair[0][0].model.n_layer, crate - gpt2
    ratio = pair[0][0].size.non_embedding / pair[1][0].size.non_embedding
    lower = "GPT-2" if gap > 0 else "CRATE"
    plain = (
        f"At {_layers(depth)} {lower}'s validation loss is {abs(gap):.3f} nats lower "
        f"({crate:.3f} for CRATE, {gpt2:.3f} for GPT-2); "
        f"CRATE has {ratio:.2f} of GPT-2's non-embedding parameters there."
    )
    cells = tuple(cell.name for cells in pair for cell in cells)
    return Finding(f"{gap:+.3f}", "nats a token, CRATE minus GPT-2", plain, cells, "gpt2" if gap > 0 else "crate")


def _score_gaps(study: Study, tables: Tables) -> list[Finding]:
    """For the first metric there is: means and variances over layers at the deepest shape that both have."""
    rows = [row for row in tables.get("model_scores", []) if row["family"] == "code" and row["mean"] is not None]
    metric = next((metric for metric in METRICS if any(row["metric"] == metric for row in rows)), None)
    by_cell = {row["cell"]: row for row in rows if row["metric"] == metric}
    pair = deepest_pair(study, [cell for cell in study.models if cell.name in by_cell])
    if pair is None or metric is None:
        return []
    means = [float(np.mean([100 * by_cell[c.name]["mean"] for c in cells])) for cells in pair]
    variances = [float(np.mean([1e4 * by_cell[c.name]["variance"] for c in cells])) for cells in pair]
    depth, cells = pair[0][0].model.n_layer, tuple(cell.name for cells in pair for cell in cells)
    apart = _apart([by_cell[cell.name] for cell in pair[0]], [by_cell[cell.name] for cell in pair[1]])
    better = "crate" if means[0] > means[1] else "gpt2"
    judge = " Judge: " + "; ".join(study.judges) + "."
    said = (
        f"the neurons of {ARCHITECTURES[better]} are the better explained ones"
        if apart
        else "neither model's neurons are clearly better explained"
    )
    found = [
        Finding(
            f"{means[0]:.1f} : {means[1]:.1f}",
            f"{METRICS[metric]} score times 100, CRATE : GPT-2",
            f"At {_layers(depth)} {said}: {means[0]:.1f} for CRATE, {means[1]:.1f} for GPT-2.{judge}",
            cells,
            better if apart else "muted",
        )
    ]
    if depth > 1:
        steadier = "CRATE" if variances[0] < variances[1] else "GPT-2"
        plain = (
            f"{steadier}'s layers differ less from each other: variance over layers {variances[0]:.2f} for CRATE, "
            f"{variances[1]:.2f} for GPT-2."
        )
        tone = steadier.lower().replace("-", "")
        found.append(
            Finding(
                f"{variances[0]:.2g} : {variances[1]:.2g}", "variance over layers, CRATE : GPT-2", plain, cells, tone
            )
        )
    return found


def _apart(crate: list[dict[str, Any]], gpt2: list[dict[str, Any]]) -> bool:
    """Whether two mean scores differ by more than chance: their 95 % intervals over neurons, joined as normal ones."""
    means = [np.mean([row["mean"] for row in rows]) for rows in (crate, gpt2)]
    half = [np.mean([(row["high"] - row["low"]) / 2 for row in rows]) / len(rows) ** 0.5 for rows in (crate, gpt2)]
    return bool(abs(means[0] - means[1]) > np.hypot(*half))


def _against_unigram(study: Study) -> Finding | None:
    losses = [cell for cell in study.models if cell.val_loss is not None and cell.unigram_entropy is not None]
    if not losses:
        return None
    below = [cell for cell in losses if float(cell.val_loss or 0) < float(cell.unigram_entropy or 0)]
    entropies = sorted({float(cell.unigram_entropy or 0) for cell in losses})
    entropy = " to ".join(f"{value:.3f}" for value in dict.fromkeys((entropies[0], entropies[-1])))
    tokens = [cell.train_tokens for cell in losses]
    saw = f"{amount(min(tokens))} to {amount(max(tokens))}" if min(tokens) < max(tokens) else amount(max(tokens))
    plain = (
        f"{len(below)} of {len(losses)} models end below the unigram entropy of the validation text, "
        f"{entropy} nats: they use context. They saw {saw} tokens."
    )
    return Finding(
        f"{len(below)} / {len(losses)}",
        "models below the unigram entropy",
        plain,
        tuple(cell.name for cell in losses),
        "accent",
    )


def _layers(depth: int) -> str:
    return f"{depth} layer{'s' if depth > 1 else ''}"
