"""The figure of coverage: how many neurons a mean speaks of, and what became of the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.report.figures_scores import metrics_of
from pipeline.report.study import Rows, Study
from pipeline.report.style import PALETTE, Canvas, Figure
from pipeline.report.text import METRICS

LONGEST_BESIDE, LONGEST_NAME = 16, 44  # characters of a cell's name: beside one of three panels, and of one alone
OUTCOMES = {
    "n_scored": ("scored", "accent"),
    "n_too_few_excerpts": ("too few excerpts", "gpt2"),
    "n_silent": ("silent", "rule"),
    "n_constant_prediction": ("constant prediction", "crate-soft"),
    "n_unparsed": ("unparsed", "gpt2-soft"),
    "n_refused": ("refused", "lost"),
    "n_over_budget": ("over budget", "muted"),
}


def coverage(study: Study, rows: Rows) -> Figure | None:
    """What became of every neuron: scored, or why not."""
    rows = [row for row in rows if row["family"] == "code"]
    metrics = metrics_of(rows)
    names = [cell.name for cell in study.cells if any(row["cell"] == cell.name for row in rows)]
    if not names or not metrics:
        return None

    def draw(canvas: Canvas) -> Any:
        longest = min(LONGEST_NAME, max(map(len, names)))
        columns = 3 if longest <= LONGEST_BESIDE else 1
        drawing, panels = canvas.grid(len(metrics), columns, 0.9 + 0.25 * len(names), left=0.2 + 0.075 * longest)
        for axes, metric in zip(panels, metrics, strict=True):
            shares = _outcome_shares(rows, metric, names)
            left = [0.0] * len(names)
            for column, (label, shade) in OUTCOMES.items():
                values = [100 * shares[name][column] for name in names]
                if any(any(share[column] for share in _outcome_shares(rows, m, names).values()) for m in metrics):
                    axes.barh(range(len(names)), values, 0.7, left=left, color=PALETTE[shade], label=label)
                left = [a + b for a, b in zip(left, values, strict=True)]
            tips = [(f"{name}: {100 * shares[name]['n_scored']:.1f} % scored", f"#cell-{name}") for name in names]
            scored = [100 * shares[name]["n_scored"] for name in names]
            canvas.marks(axes, scored, list(range(len(names))), tips, marker="|", color=PALETTE["ink"], markersize=7)
            axes.set_yticks(range(len(names)), [_shortened(name) for name in names])
            axes.set_ylim(len(names) - 0.4, -0.6)
            axes.set_xlim(0, 100)
            axes.grid(axis="y", visible=False)
            axes.set_title(METRICS[metric])
            axes.set_xlabel("neurons, %")
        canvas.key(drawing, panels)
        return drawing

    said = "; ".join(
        f"{n} {METRICS[m]} {100 * _outcome_shares(rows, m, names)[n]['n_scored']:.1f} %" for m in metrics for n in names
    )
    return Figure(
        "coverage",
        "Coverage: what became of every neuron",
        "A mean speaks of the scored neurons only. A silent neuron fires on none of its excerpts, a constant prediction has no "
        "correlation; neither is a zero.",
        f"Share of neurons with a score: {said}.",
        draw,
    )


def _shortened(name: str) -> str:
    """A cell's name with its middle left out where it is too long to stand beside a panel."""
    half = LONGEST_NAME // 2
    return name if len(name) <= LONGEST_NAME else f"{name[: half - 1]}\N{HORIZONTAL ELLIPSIS}{name[-half:]}"


def _outcome_shares(rows: Rows, metric: str, names: Sequence[str]) -> dict[str, dict[str, float]]:
    found = {}
    for name in names:
        own = [row for row in rows if row["cell"] == name and row["metric"] == metric]
        total = sum(row["n_neurons"] for row in own) or 1
        found[name] = {column: sum(row[column] for row in own) / total for column in OUTCOMES}
    return found
