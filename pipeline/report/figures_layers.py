"""Figures of what the layers are like, whoever judges them: sparsity, dead neurons, coding rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pipeline.report.looks import (
    colour,
    dashes,
    depth_label,
    end_labels,
    link_to,
    marker,
    strength,
)
from pipeline.report.study import ARCHITECTURES, Cell, Rows, Study
from pipeline.report.style import Canvas, Figure
from pipeline.report.text import read_on

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RATES = {"coding_rate": "After attention", "coding_rate_before": "What attention takes away"}


def sparsity(study: Study, rows: Rows) -> Figure | None:
    """Share of tokens on which a neuron fires, and of neurons that never did, by layer."""
    if not rows:
        return None
    return by_layer(
        study,
        rows,
        "sparsity",
        "Sparsity of the code, by layer",
        f"Mean share of a layer's neurons that are not zero at a token, and of those that always were, over {read_on(rows)}. "
        "Random-only scores punish dense neurons by construction: compare them at equal sparsity.",
        {
            "active neurons a token, %": lambda row: 100 * row["active"],
            "dead neurons, %": lambda row: 100 * row["dead"],
        },
    )


def coding_rate(study: Study, rows: Rows) -> Figure | None:
    """How far each layer's attention compresses its tokens: CRATE only, which has the subspaces to tell it by."""
    rows = [row for row in rows if row["coding_rate"] is not None]
    if not rows:
        return None
    names = [cell.name for cell in study.cells if any(row["cell"] == cell.name for row in rows)]
    several = _are_several(study, rows)

    def draw(canvas: Canvas) -> Any:
        drawing, panels = canvas.grid(2, 2, 2.8, legend=several)
        for axes, (column, title) in zip(panels, RATES.items(), strict=True):
            ends = []
            for cell in (study.by_name[name] for name in names):
                own = [row for row in rows if row["cell"] == cell.name]
                values = [row[column] if column == "coding_rate" else row[column] - row["coding_rate"] for row in own]
                ends.append(_layer_line(canvas, axes, study, cell, [row["layer"] for row in own], values, title))
            axes.set_title(title)
            axes.set_xticks(sorted({row["layer"] for row in rows}))
            axes.set_xlabel("layer")
            axes.margins(x=0.1)
            end_labels(axes, ends)
        panels[0].set_ylabel("nats a token")
        if several:
            canvas.key(drawing, panels)
        return drawing

    said = "; ".join(
        f"{r['cell']} layer {r['layer']} {r['coding_rate_before']:.3g} to {r['coding_rate']:.3g}" for r in rows
    )
    return Figure(
        "coding_rate",
        "Coding rate, by layer",
        "R^c of the tokens under the subspaces of a CRATE layer's attention, on a few validation windows. Attention is derived "
        "as a step that lowers it; training is plain cross entropy, so whether it does is a measurement.",
        f"Coding rate in nats a token, before and after attention: {said}.",
        draw,
    )


def by_layer(
    study: Study,
    rows: Rows,
    name: str,
    title: str,
    caption: str,
    values: dict[str, Callable[[dict[str, Any]], float]],
) -> Figure | None:
    """Values of every layer by their axis' label, a panel each and an architecture, a line a model."""
    architectures = [
        a for a in study.architectures if any(study.by_name[row["cell"]].architecture == a for row in rows)
    ]
    if not architectures:
        return None
    several = _are_several(study, rows)

    def draw(canvas: Canvas) -> Any:
        drawing, panels = canvas.grid(len(values) * len(architectures), 2, 2.8, legend=several)
        pairs = [(axis, architecture) for axis in values for architecture in architectures]
        for axes, (axis, architecture) in zip(panels, pairs, strict=True):
            ends, value_of = [], values[axis]
            for cell in study.of(architecture):
                own = [row for row in rows if row["cell"] == cell.name]
                if own:
                    x, y = [row["layer"] for row in own], [value_of(row) for row in own]
                    ends.append(_layer_line(canvas, axes, study, cell, x, y, axis))
            axes.set_title(ARCHITECTURES[architecture])
            axes.set_xticks(sorted({row["layer"] for row in rows}))
            axes.set_xlabel("layer")
            axes.margins(x=0.1)
            axes.set_ylim(0, 1.08 * max(map(value_of, rows)) or 1)
            axes.set_ylabel(axis)
            end_labels(axes, ends)
        if several:
            canvas.key(drawing, panels)
        return drawing

    said = {axis: [f"{row['cell']} layer {row['layer']} {of(row):.3g}" for row in rows] for axis, of in values.items()}
    return Figure(name, title, caption, " ".join(f"{axis}: {'; '.join(texts)}." for axis, texts in said.items()), draw)


def _are_several(study: Study, rows: Rows) -> bool:
    """Whether models of an architecture differ in more than size and seed, or were read in several ways: the key names each."""
    cells = [study.by_name[row["cell"]] for row in rows]
    return len({cell.score_series for cell in cells}) > len({cell.architecture for cell in cells})


def _layer_line(
    canvas: Canvas, axes: Axes, study: Study, cell: Cell, x: list[int], y: list[float], axis: str
) -> tuple[float, float, str, str]:
    """Draw a model's line; its end, with the label that belongs there."""
    alpha = strength(study, cell)
    axes.plot(x, y, color=colour(cell), alpha=alpha, linewidth=1.5, linestyle=dashes(study, cell))
    tips = [(f"{cell.name} layer {a}: {b:.3g} ({axis})", link_to(cell)) for a, b in zip(x, y, strict=True)]
    canvas.marks(axes, x, y, tips, **marker(study, cell), alpha=alpha, markersize=4.5, label=cell.score_series)
    return x[-1], y[-1], depth_label(study, cell), colour(cell)
