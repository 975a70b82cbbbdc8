"""Figures of interpretability by layer: a panel a depth, as the paper's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.report import published
from pipeline.report.figures_scores import metrics_of, whose
from pipeline.report.looks import colour, dashes, hollow, link_to, marker
from pipeline.report.replicas import over_seeds
from pipeline.report.study import ARCHITECTURES, Cell, Rows, Study
from pipeline.report.style import PALETTE, Canvas, Figure
from pipeline.report.text import METRICS, family_name, points, scored_on

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BARS_UP_TO = 3  # layers: shallower models are drawn as bars, as the paper does
Shifts = dict[tuple[str, bool], float]  # (architecture, neurons rather than features) -> from the layer's tick


def layer_panels(study: Study, rows: Rows) -> list[Figure]:
    """One figure a metric: a panel a depth, scores by layer, error bars a tenth of the neurons' standard deviation."""
    rows = over_seeds(study, rows)
    return [
        _layer_panels(study, [row for row in rows if row["metric"] == metric], metric) for metric in metrics_of(rows)
    ]


def _layer_panels(study: Study, rows: Rows, metric: str) -> Figure:
    depths = sorted({study.by_name[row["cell"]].model.n_layer for row in rows}, reverse=True)
    deep, shallow = [d for d in depths if d > BARS_UP_TO], [d for d in reversed(depths) if d <= BARS_UP_TO]

    def draw(canvas: Canvas) -> Any:
        drawing, panels = canvas.grid(len(depths), 3, 2.6, sharey=True)
        for axes, depth in zip(panels, deep + shallow, strict=True):
            own = [row for row in rows if study.by_name[row["cell"]].model.n_layer == depth]
            shifts = (_bars if depth in shallow else _lines)(canvas, axes, study, own)
            _published_layers(canvas, axes, metric, depth, shifts)
            axes.axhline(0, color=PALETTE["muted"], linewidth=0.8)
            axes.set_title(f"{depth} layer{'s' if depth > 1 else ''}")
            axes.set_xticks(range(depth), [str(layer) for layer in range(depth)])
            axes.set_xlim(-0.6, depth - 0.4)
            axes.grid(axis="x", visible=False)
            axes.set_xlabel("layer")
        panels[0].set_ylabel("score times 100")
        canvas.key(drawing, panels)
        return drawing

    told = [
        part
        for cell in study.cells
        for stage in ("interpret", "interpret_features")
        if stage in cell.artifacts
        for metrics in cell.artifacts[stage].summary["excerpts"].values()
        for part in metrics.get(metric, [])
    ]
    said = "; ".join(
        f"{row['cell']} layer {row['layer']} {family_name(row['family'])} {points(row['mean'])}"
        for row in rows
        if row["mean"] is not None
    )
    return Figure(
        f"layers_{metric}",
        f"Scores by layer: {METRICS[metric]}",
        f"Mean {scored_on(metric, told)}, times 100. Error bars are a tenth of the neurons' standard deviation, as in the paper. "
        f"Hollow marks: {published.LABEL}, with LLM judges.",
        f"{METRICS[metric]} scores times 100 by layer: {said}.",
        draw,
    )


def _series(study: Study, rows: Rows) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Rows by what is drawn as one line or bar: series of cells, and family."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["mean"] is not None:
            found.setdefault((study.by_name[row["cell"]].series_of(row["family"]), row["family"]), []).append(row)
    order = {cell.name: index for index, cell in enumerate(study.cells)}
    return dict(sorted(found.items(), key=lambda item: (item[0][1], order[item[1][0]["cell"]])))


def _label(series: str, family: str) -> str:
    return series if family == "code" else f"{series} {family_name(family)}"


def _tip(row: dict[str, Any], cell: Cell) -> tuple[str, str]:
    interval = f" [{points(row['low'])}, {points(row['high'])}]" if row["low"] is not None else ""
    said = f"{whose(row)} layer {row['layer']}, {family_name(row['family'])}: {points(row['mean'])}{interval}"
    return f"{said}, {row['n_scored']} of {row['n_neurons']} scored", link_to(cell)


def _lines(canvas: Canvas, axes: Axes, study: Study, rows: Rows) -> Shifts:
    """Draw lines over layers; how far from the layer each architecture's marks stand: not at all."""
    for (series, family), own in _series(study, rows).items():
        cell = study.by_name[own[0]["cell"]]
        x, y = [row["layer"] for row in own], [100 * row["mean"] for row in own]
        shade = colour(cell, family)
        axes.plot(x, y, color=shade, alpha=0.6, linestyle=dashes(study, cell), linewidth=1.5)
        axes.errorbar(x, y, [10 * (row["std"] or 0) for row in own], fmt="none", ecolor=shade, alpha=0.5, linewidth=1)
        tips = [_tip(row, study.by_name[row["cell"]]) for row in own]
        canvas.marks(
            axes, x, y, tips, **marker(study, cell) | {"color": shade}, markersize=4.5, label=_label(series, family)
        )
    return {}


def _bars(canvas: Canvas, axes: Axes, study: Study, rows: Rows) -> Shifts:
    """Draw bars around each layer; how far from it each architecture's first bar of neurons and of SAE features stands."""
    series = _series(study, rows)
    width = 0.84 / max(1, len(series))
    shifts: Shifts = {}
    for place, ((name, family), own) in enumerate(series.items()):
        shift = (place - (len(series) - 1) / 2) * width
        shifts.setdefault((study.by_name[own[0]["cell"]].architecture, family == "code"), shift)
        x = [row["layer"] + shift for row in own]
        y = [100 * row["mean"] for row in own]
        shade = colour(study.by_name[own[0]["cell"]], family)
        axes.bar(x, y, 0.9 * width, color=shade, label=_label(name, family))
        axes.errorbar(
            x, y, [10 * (r["std"] or 0) for r in own], fmt="none", ecolor=PALETTE["ink"], alpha=0.55, linewidth=1
        )
        tips = [_tip(row, study.by_name[row["cell"]]) for row in own]
        canvas.marks(axes, x, y, tips, marker="o", color=PALETTE["ink"], alpha=0.7, markersize=2.6)
    return shifts


def _published_layers(canvas: Canvas, axes: Axes, metric: str, depth: int, shifts: Shifts) -> None:
    """The paper's layer scores of models of this depth, as its figure shows them, at our models' and SAEs' places."""
    for architecture in ARCHITECTURES:
        y = published.plotted(metric, architecture, depth)
        if y:
            x = [layer + shifts.get((architecture, True), 0.0) for layer in range(len(y))]
            said = f"{published.LABEL}, {ARCHITECTURES[architecture]} {depth}L"
            tips = [(f"{said} layer {layer}: {value}", f"#fig-layers_{metric}") for layer, value in enumerate(y)]
            style = hollow(architecture) | ({"markerfacecolor": PALETTE["paper"]} if shifts else {})
            label = f"{ARCHITECTURES[architecture]}, {published.LABEL}"
            _outline(axes, x, y, style, shown=bool(shifts))
            canvas.marks(axes, x, list(y), tips, **style, markersize=5, label=label, zorder=5)
        features = published.SAE_LAYERS.get(metric, {}).get(architecture, {}).get(depth, ())
        if features and (architecture, False) in shifts:
            x = [layer + shifts[architecture, False] for layer in range(depth)]
            label = f"{ARCHITECTURES[architecture]} SAE 16x, {published.LABEL}"
            tips = [
                (f"{label}, {depth}L layer {n}: {value}", f"#fig-layers_{metric}") for n, value in enumerate(features)
            ]
            style = hollow(architecture) | {"marker": "D", "markeredgecolor": PALETTE[f"{architecture}-soft"]}
            style["markerfacecolor"] = PALETTE["paper"]
            _outline(axes, x, features, style, shown=True)
            canvas.marks(axes, x, list(features), tips, **style, markersize=4.5, label=label, zorder=5)


def _outline(axes: Axes, x: Sequence[float], y: Sequence[float], style: dict[str, Any], shown: bool) -> None:
    """A dark rim, without which a hollow mark would be lost on a bar of its own colour."""
    if shown:
        rim = {"marker": style["marker"], "color": PALETTE["ink"], "markeredgewidth": 0}
        axes.plot(x, y, linestyle="none", **rim, markersize=7.5, zorder=4.9)
