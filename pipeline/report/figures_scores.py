"""Figures of interpretability: scores by layer, by depth, against loss and training, and how many neurons they speak of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.report import published
from pipeline.report.figures_loss import hollow
from pipeline.report.looks import (
    colour,
    dashes,
    label_point,
    link_to,
    log_axis,
    marker,
)
from pipeline.report.replicas import over_seeds
from pipeline.report.study import ARCHITECTURES, Cell, Study
from pipeline.report.style import PALETTE, Canvas, Figure
from pipeline.report.text import METRIC_NOTES, METRICS, family_name, points

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LONGEST_BESIDE, LONGEST_NAME = 16, 44  # characters of a cell's name: beside one of three panels, and of one alone
BARS_UP_TO = 3  # layers: shallower models are drawn as bars, as the paper does
OUTCOMES = {
    "n_scored": ("scored", "accent"),
    "n_silent": ("silent", "rule"),
    "n_constant_prediction": ("constant prediction", "crate-soft"),
    "n_unparsed": ("unparsed", "gpt2-soft"),
    "n_refused": ("refused", "lost"),
    "n_over_budget": ("over budget", "muted"),
}
Rows = Sequence[dict[str, Any]]
Shifts = dict[tuple[str, bool], float]  # (architecture, neurons rather than features) -> from the layer's tick


def metrics_of(rows: Rows) -> list[str]:
    return [metric for metric in METRICS if any(row["metric"] == metric for row in rows)]


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

    said = "; ".join(
        f"{row['cell']} layer {row['layer']} {family_name(row['family'])} {points(row['mean'])}"
        for row in rows
        if row["mean"] is not None
    )
    return Figure(
        f"layers_{metric}",
        f"Scores by layer: {METRICS[metric]}",
        f"Mean {METRIC_NOTES[metric]}, times 100. Error bars are a tenth of the neurons' standard deviation, as in the paper. "
        f"Hollow marks: {published.LABEL}, with LLM judges.",
        f"{METRICS[metric]} scores times 100 by layer: {said}.",
        draw,
    )


def _series(study: Study, rows: Rows) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Rows by what is drawn as one line or bar: series of cells, and family."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["mean"] is not None:
            found.setdefault((study.by_name[row["cell"]].score_series, row["family"]), []).append(row)
    order = {cell.score_series: index for index, cell in enumerate(study.cells)}
    return dict(sorted(found.items(), key=lambda item: (item[0][1], order[item[0][0]])))


def _label(series: str, family: str) -> str:
    return series if family == "code" else f"{series} {family_name(family)}"


def _tip(row: dict[str, Any], cell: Cell) -> tuple[str, str]:
    interval = f" [{points(row['low'])}, {points(row['high'])}]" if row["low"] is not None else ""
    said = f"{_whose(row)} layer {row['layer']}, {family_name(row['family'])}: {points(row['mean'])}{interval}"
    return f"{said}, {row['n_scored']} of {row['n_neurons']} scored", link_to(cell)


def _whose(row: dict[str, Any]) -> str:
    return row["cell"] + (f" and {row['seeds'] - 1} more seeds" if row["seeds"] > 1 else "")


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


def means_by_depth(study: Study, rows: Rows) -> Figure | None:
    """Each metric's mean over layers against depth."""
    rows = over_seeds(study, [row for row in rows if row["family"] == "code"])
    metrics = metrics_of(rows)
    if not metrics:
        return None
    depths = sorted({study.by_name[row["cell"]].model.n_layer for row in rows})

    def draw(canvas: Canvas) -> Any:
        drawing, panels = canvas.grid(len(metrics), 3, 3.1, sharey=True)
        for axes, metric in zip(panels, metrics, strict=True):
            own = [row for row in rows if row["metric"] == metric]
            for name in dict.fromkeys(cell.score_series for cell in study.cells):
                _mean_series(canvas, axes, study, [r for r in own if study.by_name[r["cell"]].score_series == name])
            _published_means(canvas, axes, metric, depths)
            axes.set_title(METRICS[metric])
            axes.set_xlabel("layers")
            axes.set_xticks(depths)
            if len(depths) == 1:
                axes.set_xlim(depths[0] - 0.5, depths[0] + 0.5)
        panels[0].set_ylabel("mean score times 100")
        canvas.key(drawing, panels)
        return drawing

    said = "; ".join(
        f"{r['cell']} {METRICS[r['metric']]} {points(r['mean'])}, variance over layers {1e4 * r['variance']:.2f}"
        for r in rows
    )
    return Figure(
        "means_by_depth",
        "Interpretability against depth",
        "Mean over all layers. Thick bars: 95 % interval over neurons, or over seeds where there are several. Thin bars: one "
        "standard deviation over layers, the square root of the variance in the table. Hollow marks: "
        f"{published.LABEL}, with LLM judges and without the last layer of its deep models.",
        f"Mean scores times 100: {said}.",
        draw,
    )


def _mean_series(canvas: Canvas, axes: Axes, study: Study, rows: Rows) -> None:
    if not rows:
        return
    rows = sorted(rows, key=lambda row: study.by_name[row["cell"]].model.n_layer)
    cell = study.by_name[rows[0]["cell"]]
    shift = -0.05 if cell.architecture == "crate" else 0.05
    x = [study.by_name[row["cell"]].model.n_layer + shift for row in rows]
    y, shade = [100 * row["mean"] for row in rows], colour(cell)
    axes.plot(x, y, color=shade, alpha=0.45, linewidth=1.5, linestyle=dashes(study, cell))
    axes.errorbar(
        x, y, [100 * row["variance"] ** 0.5 for row in rows], fmt="none", ecolor=shade, linewidth=1, alpha=0.7
    )
    low = [100 * (row["mean"] - row["low"]) for row in rows]
    high = [100 * (row["high"] - row["mean"]) for row in rows]
    axes.errorbar(x, y, [low, high], fmt="none", ecolor=shade, linewidth=3.4, alpha=0.5)
    tips = [_mean_tip(row) for row in rows]
    style = marker(study, cell) | {
        "markeredgecolor": PALETTE["paper"],
        "markeredgewidth": 0.8,
        "label": cell.score_series,
    }
    canvas.marks(axes, x, y, tips, **style)


def _mean_tip(row: dict[str, Any]) -> tuple[str, str]:
    interval = f"[{points(row['low'])}, {points(row['high'])}]"
    return (
        f"{_whose(row)}: mean {points(row['mean'])} {interval}, variance {1e4 * row['variance']:.2f}",
        f"#cell-{row['cell']}",
    )


def _published_means(canvas: Canvas, axes: Axes, metric: str, depths: Sequence[int]) -> None:
    """The paper's means at the depths that this sweep has."""
    for architecture, table in published.TABLE.get(metric, {}).items():
        x = [depth for depth in depths if depth in table]
        if x:
            said = f"{published.LABEL}, {ARCHITECTURES[architecture]}"
            tips = [(f"{said} {n}L: mean {table[n][0]}, variance {table[n][1]}", "#fig-means_by_depth") for n in x]
            label = f"{ARCHITECTURES[architecture]}, {published.LABEL}"
            canvas.marks(axes, x, [table[n][0] for n in x], tips, **hollow(architecture), label=label)


def against_loss(study: Study, rows: Rows) -> Figure | None:
    """Mean score against validation loss: does a better model read better?"""
    cells = {cell.name: cell.val_loss for cell in study.cells if cell.val_loss is not None}
    return _against(
        study,
        [row for row in rows if row["cell"] in cells],
        "scores_against_loss",
        "Interpretability against loss",
        "Better models are to the left.",
        "validation loss, nats a token",
        lambda cell: float(cell.val_loss or 0),
        lambda cell: cell.score_series if len(study.models) == len(study.cells) else _trained(cell),
        logarithmic=False,
    )


def against_tokens(study: Study, rows: Rows) -> Figure | None:
    """Mean score against training tokens, where a sweep varies them."""
    if max(c.train_tokens for c in study.cells) < 1.5 * min(c.train_tokens for c in study.cells):
        return None
    return _against(
        study,
        rows,
        "scores_against_tokens",
        "Interpretability against training",
        "One line a size of model; where weights of several steps were read, it is one training.",
        "training tokens",
        lambda cell: float(cell.train_tokens),
        _trained,
        logarithmic=True,
    )


def _trained(cell: Cell) -> str:
    """What is the same of all weights of one training, and of trainings that differ in length or seed."""
    return f"{cell.series} {cell.model.n_layer} {cell.model.d_model}"


def _against(
    study: Study,
    rows: Rows,
    name: str,
    title: str,
    caption: str,
    axis: str,
    value_of: Callable[[Cell], float],
    line_of: Callable[[Cell], str],
    logarithmic: bool,
) -> Figure | None:
    rows = over_seeds(study, [row for row in rows if row["family"] == "code"])
    metrics = metrics_of(rows)
    if not metrics or len({row["cell"] for row in rows}) < 2:
        return None

    def draw(canvas: Canvas) -> Any:
        drawing, panels = canvas.grid(len(metrics), 3, 2.8, sharey=True)
        for axes, metric in zip(panels, metrics, strict=True):
            lines: dict[str, list[tuple[Cell, dict[str, Any]]]] = {}
            for row in (row for row in rows if row["metric"] == metric):
                cell = study.by_name[row["cell"]]
                lines.setdefault(line_of(cell), []).append((cell, row))
            for line in lines.values():
                line.sort(key=lambda pair: value_of(pair[0]))
                x, y = [value_of(cell) for cell, _ in line], [100 * row["mean"] for _, row in line]
                first = next((cell for cell, _ in line if cell.is_last), line[0][0])
                axes.plot(x, y, color=colour(first), alpha=0.35, linewidth=1.3, linestyle=dashes(study, first))
                tips = [
                    (f"{cell.name}: {points(row['mean'])} at {axis} {value_of(cell):.4g}", link_to(cell))
                    for cell, row in line
                ]
                canvas.marks(
                    axes, x, y, tips, **marker(study, first), markersize=5, label=ARCHITECTURES[first.architecture]
                )
                one_depth = len({cell.model.n_layer for cell, _ in line}) == 1
                for (cell, _), a, b in list(zip(line, x, y, strict=True))[-1 if one_depth else 0 :]:
                    if len(study.depths) <= 6:
                        label_point(axes, f"{cell.model.n_layer}L", a, b, colour(cell))
            if logarithmic:
                log_axis(axes, [value_of(study.by_name[row["cell"]]) for row in rows])
            axes.margins(x=0.1)
            axes.set_title(METRICS[metric])
            axes.set_xlabel(axis)
        panels[0].set_ylabel("mean score times 100")
        canvas.key(drawing, panels)
        return drawing

    said = "; ".join(f"{r['cell']} {METRICS[r['metric']]} {points(r['mean'])}" for r in rows)
    return Figure(name, title, caption, f"Mean scores times 100 against {axis}: {said}.", draw)


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
