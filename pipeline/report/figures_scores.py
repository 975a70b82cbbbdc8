"""Figures of interpretability: scores by layer and by depth, and how sparse the neurons are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.report.figures_loss import link_to
from pipeline.report.study import ARCHITECTURES, Cell, Study
from pipeline.report.style import MARKERS, PALETTE, Canvas, Figure
from pipeline.report.text import METRIC_NOTES, METRICS, family_name, points

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BARS_UP_TO = 3  # layers: shallower models are drawn as bars, as the paper does
Rows = Sequence[dict[str, Any]]


def layer_panels(study: Study, rows: Rows) -> list[Figure]:
    """One figure a metric: a panel a depth, scores by layer, error bars a tenth of the neurons' standard deviation."""
    metrics = [metric for metric in METRICS if any(row["metric"] == metric for row in rows)]
    return [_layer_panels(study, [row for row in rows if row["metric"] == metric], metric) for metric in metrics]


def _layer_panels(study: Study, rows: Rows, metric: str) -> Figure:
    by_name = {cell.name: cell for cell in study.cells}
    depths = sorted({by_name[row["cell"]].model.n_layer for row in rows}, reverse=True)
    deep, shallow = [d for d in depths if d > BARS_UP_TO], [d for d in reversed(depths) if d <= BARS_UP_TO]

    def draw(canvas: Canvas) -> Any:
        drawing, panels = canvas.grid(len(deep) + len(shallow), 3, 2.7, sharey=True)
        for axes, depth in zip(panels, deep + shallow, strict=True):
            own = [row for row in rows if by_name[row["cell"]].model.n_layer == depth]
            (_bars if depth in shallow else _lines)(canvas, axes, own, by_name)
            axes.axhline(0, color=PALETTE["muted"], linewidth=0.8)
            axes.set_title(f"{depth} layer{'s' if depth > 1 else ''}")
            axes.set_xticks(range(depth), [str(layer) for layer in range(depth)])
            axes.grid(axis="x", visible=False)
            axes.set_xlabel("layer")
            axes.set_ylabel("score times 100")
        panels[0].legend(loc="best")
        return drawing

    said = "; ".join(
        f"{row['cell']} layer {row['layer']} {family_name(row['family'])} {points(row['mean'])}"
        for row in rows
        if row["mean"] is not None
    )
    return Figure(
        f"layers_{metric}",
        f"Scores by layer: {METRICS[metric]}",
        f"Mean {METRIC_NOTES[metric]}, times 100. Error bars are a tenth of the neurons' standard deviation, as in the paper.",
        f"{METRICS[metric]} scores times 100 by layer. {said}.",
        draw,
    )


def _series(rows: Rows, by_name: dict[str, Cell]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Rows by what is drawn as one line or bar: series of cells, and family."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["mean"] is not None:
            found.setdefault((by_name[row["cell"]].series, row["family"]), []).append(row)
    order = {cell.series: index for index, cell in enumerate(by_name.values())}
    return dict(sorted(found.items(), key=lambda item: (item[0][1], order[item[0][0]])))


def _colour(cell: Cell, family: str) -> str:
    return PALETTE[cell.architecture if family == "code" else f"{cell.architecture}-soft"]


def _label(series: str, family: str) -> str:
    return series if family == "code" else f"{series} {family_name(family)}"


def _tip(row: dict[str, Any], cell: Cell) -> tuple[str, str]:
    interval = f" [{points(row['low'])}, {points(row['high'])}]" if row["low"] is not None else ""
    said = f"{cell.name} layer {row['layer']}, {family_name(row['family'])}: {points(row['mean'])}{interval}"
    return f"{said}, {row['n_scored']} of {row['n_neurons']} scored", link_to(cell)


def _lines(canvas: Canvas, axes: Axes, rows: Rows, by_name: dict[str, Cell]) -> None:
    for (series, family), own in _series(rows, by_name).items():
        cell = by_name[own[0]["cell"]]
        x, y = [row["layer"] for row in own], [100 * row["mean"] for row in own]
        colour = _colour(cell, family)
        axes.plot(x, y, color=colour, alpha=0.6)
        axes.errorbar(x, y, [10 * (row["std"] or 0) for row in own], fmt="none", ecolor=colour, alpha=0.5, linewidth=1)
        tips = [_tip(row, by_name[row["cell"]]) for row in own]
        canvas.marks(axes, x, y, tips, marker=MARKERS[cell.architecture], color=colour, label=_label(series, family))


def _bars(canvas: Canvas, axes: Axes, rows: Rows, by_name: dict[str, Cell]) -> None:
    series = _series(rows, by_name)
    width = 0.8 / max(1, len(series))
    for place, ((name, family), own) in enumerate(series.items()):
        cell = by_name[own[0]["cell"]]
        x = [row["layer"] + (place - (len(series) - 1) / 2) * width for row in own]
        y = [100 * row["mean"] for row in own]
        axes.bar(x, y, 0.92 * width, color=_colour(cell, family), label=_label(name, family))
        axes.errorbar(
            x, y, [10 * (row["std"] or 0) for row in own], fmt="none", ecolor=PALETTE["ink"], alpha=0.7, linewidth=1
        )
        tips = [_tip(row, by_name[row["cell"]]) for row in own]
        canvas.marks(axes, x, y, tips, marker="o", color=PALETTE["ink"], markersize=2.5)


def means_by_depth(study: Study, rows: Rows) -> Figure | None:
    """Each metric's mean over layers against depth; the band is one standard deviation over layers."""
    by_name = {cell.name: cell for cell in study.cells}
    rows = [row for row in rows if row["mean"] is not None and row["family"] == "code"]
    metrics = [metric for metric in METRICS if any(row["metric"] == metric for row in rows)]
    if not metrics:
        return None

    def draw(canvas: Canvas) -> Any:
        drawing, panels = canvas.grid(len(metrics), 3, 3.2, sharey=True)
        for axes, metric in zip(panels, metrics, strict=True):
            own = [row for row in rows if row["metric"] == metric]
            for name in dict.fromkeys(cell.series for cell in study.cells):
                _mean_series(canvas, axes, [row for row in own if by_name[row["cell"]].series == name], by_name)
            axes.set_title(METRICS[metric])
            axes.set_xlabel("layers")
            axes.set_xticks(sorted({by_name[row["cell"]].model.n_layer for row in own}))
        panels[0].set_ylabel("mean score times 100")
        panels[0].legend(loc="best")
        return drawing

    said = "; ".join(f"{row['cell']} {METRICS[row['metric']]} {points(row['mean'])}" for row in rows)
    return Figure(
        "means_by_depth",
        "Interpretability against depth",
        "Mean over all layers; thick bars are 95 % intervals over neurons, thin ones one standard deviation over layers.",
        f"Mean scores times 100: {said}.",
        draw,
    )


def _mean_series(canvas: Canvas, axes: Axes, rows: Rows, by_name: dict[str, Cell]) -> None:
    if not rows:
        return
    rows = sorted(rows, key=lambda row: by_name[row["cell"]].model.n_layer)
    cell = by_name[rows[0]["cell"]]
    shift = -0.06 if cell.architecture == "crate" else 0.06
    x = [by_name[row["cell"]].model.n_layer + shift for row in rows]
    y, colour = [100 * row["mean"] for row in rows], PALETTE[cell.architecture]
    axes.plot(x, y, color=colour, alpha=0.45)
    axes.errorbar(
        x, y, [100 * row["variance"] ** 0.5 for row in rows], fmt="none", ecolor=colour, linewidth=1, alpha=0.7
    )
    low = [100 * (row["mean"] - row["low"]) for row in rows]
    high = [100 * (row["high"] - row["mean"]) for row in rows]
    axes.errorbar(x, y, [low, high], fmt="none", ecolor=colour, linewidth=3.2, alpha=0.55)
    tips = [_mean_tip(row) for row in rows]
    canvas.marks(
        axes,
        x,
        y,
        tips,
        marker=MARKERS[cell.architecture],
        color=colour,
        markeredgecolor=PALETTE["paper"],
        label=cell.series,
    )


def _mean_tip(row: dict[str, Any]) -> tuple[str, str]:
    interval = f"[{points(row['low'])}, {points(row['high'])}]"
    return (
        f"{row['cell']}: mean {points(row['mean'])} {interval}, variance {1e4 * row['variance']:.2f}",
        f"#cell-{row['cell']}",
    )


def sparsity(study: Study, rows: Rows) -> Figure | None:
    """Share of tokens on which a neuron fires, by layer."""
    if not rows:
        return None
    by_name = {cell.name: cell for cell in study.cells}
    architectures = [a for a in study.architectures if any(by_name[row["cell"]].architecture == a for row in rows)]

    def draw(canvas: Canvas) -> Any:
        drawing, panels = canvas.grid(len(architectures), 2, 2.8, sharey=True)
        for axes, architecture in zip(panels, architectures, strict=True):
            for cell in study.of(architecture):
                own = [row for row in rows if row["cell"] == cell.name]
                if not own:
                    continue
                x, y = [row["layer"] for row in own], [100 * row["active"] for row in own]
                alpha = 0.35 + 0.65 * (study.depths.index(cell.model.n_layer) + 1) / len(study.depths)
                axes.plot(x, y, color=PALETTE[architecture], alpha=alpha)
                tips = [
                    (f"{cell.name} layer {a}: a neuron fires on {b:.1f} % of tokens", link_to(cell))
                    for a, b in zip(x, y, strict=True)
                ]
                canvas.marks(axes, x, y, tips, marker=MARKERS[architecture], color=PALETTE[architecture], alpha=alpha)
                axes.annotate(
                    f"{cell.model.n_layer}L",
                    (x[-1], y[-1]),
                    (6, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8.5,
                    color=PALETTE[architecture],
                )
            axes.set_title(ARCHITECTURES[architecture])
            axes.set_xticks(sorted({row["layer"] for row in rows}))
            axes.set_xlabel("layer")
            axes.set_ylim(bottom=0)
            axes.margins(x=0.12)
        panels[0].set_ylabel("active neurons a token, %")
        return drawing

    said = "; ".join(f"{row['cell']} layer {row['layer']} {100 * row['active']:.1f} %" for row in rows)
    return Figure(
        "sparsity",
        "Sparsity of the code, by layer",
        "Mean share of a layer's neurons that are above zero at a token. Random-only scores punish dense neurons by "
        "construction: compare them at equal sparsity.",
        f"Share of neurons above zero at a token: {said}.",
        draw,
    )
