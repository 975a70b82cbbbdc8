"""Figures of interpretability: mean scores by depth, against loss and training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.report import published
from pipeline.report.cells import CHECKPOINT_KEY, TOKENS_KEY, canonical_text
from pipeline.report.looks import colour, dashes, hollow, label_point, link_to, log_axis, marker
from pipeline.report.replicas import over_seeds
from pipeline.report.study import ARCHITECTURES, Cell, Rows, Study
from pipeline.report.style import PALETTE, Canvas, Figure
from pipeline.report.text import METRICS, points

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def metrics_of(rows: Rows) -> list[str]:
    return [metric for metric in METRICS if any(row["metric"] == metric for row in rows)]


def whose(row: dict[str, Any]) -> str:
    return row["cell"] + (f" and {row['seeds'] - 1} more seeds" if row["seeds"] > 1 else "")


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
        "Mean over the layers that were read and have a score. Thick bars: 95 % interval, over seeds where there are several; "
        "of a single seed over its neurons, which says nothing of another training; none where these are too few. Thin bars: one "
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
    for place, row in zip(x, rows, strict=True):
        if row["low"] is not None:
            axes.vlines(place, 100 * row["low"], 100 * row["high"], color=shade, linewidth=3.4, alpha=0.5)
    tips = [_mean_tip(row) for row in rows]
    style = marker(study, cell) | {
        "markeredgecolor": PALETTE["paper"],
        "markeredgewidth": 0.8,
        "label": cell.score_series,
    }
    canvas.marks(axes, x, y, tips, **style)


def _mean_tip(row: dict[str, Any]) -> tuple[str, str]:
    interval = f" [{points(row['low'])}, {points(row['high'])}]" if row["low"] is not None else ""
    return (
        f"{whose(row)}: mean {points(row['mean'])}{interval}, variance {1e4 * row['variance']:.2f}",
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
    losses = {cell.training_id: cell.val_loss for cell in study.measured}
    loss_of = {c.name: losses.get(c.training_id) if c.is_last else c.val_loss for c in study.cells}
    return _against(
        study,
        [row for row in rows if loss_of[row["cell"]] is not None],
        "scores_against_loss",
        "Interpretability against loss",
        "Lower losses are to the left. One line what the key names; losses of unlike text, tokens or measurement, and scores of "
        "unlike reading, do not tell which model is better.",
        "validation loss, nats a token",
        lambda row: float(np.mean([loss_of[name] for name in row["cells"]])),  # of the seeds that have the scores
        _trained if study.earlier else _kind,
        _untimed if study.earlier else _kind,
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
        lambda row: float(study.by_name[row["cell"]].train_tokens),
        _trained,
        _untimed,
        logarithmic=True,
    )


def _trained(cell: Cell) -> str:
    """What is the same of all weights of one training, and of trainings that differ in length or seed."""
    return canonical_text([cell.model.n_layer, cell.model.d_model, _untimed(cell)])


def _untimed(cell: Cell) -> str:
    """All that tells it apart but its size and how long it was trained."""
    others = {key: value for key, value in cell.reading.items() if key not in (TOKENS_KEY, CHECKPOINT_KEY)}
    return cell.named(others, cell.loss_note)


def _kind(cell: Cell) -> str:
    return cell.named(cell.reading, cell.loss_note)


def _against(
    study: Study,
    rows: Rows,
    name: str,
    title: str,
    caption: str,
    axis: str,
    value_of: Callable[[dict[str, Any]], float],
    line_of: Callable[[Cell], str],
    label_of: Callable[[Cell], str],
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
                line.sort(key=lambda pair: value_of(pair[1]))
                x, y = [value_of(row) for _, row in line], [100 * row["mean"] for _, row in line]
                first = next((cell for cell, _ in line if cell.is_last), line[0][0])
                axes.plot(x, y, color=colour(first), alpha=0.35, linewidth=1.3, linestyle=dashes(study, first))
                tips = [
                    (f"{cell.name}: {points(row['mean'])} at {axis} {value_of(row):.4g}", link_to(cell))
                    for cell, row in line
                ]
                canvas.marks(axes, x, y, tips, **marker(study, first), markersize=5, label=label_of(first))
                one_depth = len({cell.model.n_layer for cell, _ in line}) == 1
                for (cell, _), a, b in list(zip(line, x, y, strict=True))[-1 if one_depth else 0 :]:
                    if len(study.depths) <= 6:
                        label_point(axes, f"{cell.model.n_layer}L", a, b, colour(cell))
            if logarithmic:
                log_axis(axes, [value_of(row) for row in rows])
            axes.margins(x=0.1)
            axes.set_title(METRICS[metric])
            axes.set_xlabel(axis)
        panels[0].set_ylabel("mean score times 100")
        canvas.key(drawing, panels)
        return drawing

    said = "; ".join(f"{r['cell']} {METRICS[r['metric']]} {points(r['mean'])}" for r in rows)
    return Figure(name, title, caption, f"Mean scores times 100 against {axis}: {said}.", draw)
