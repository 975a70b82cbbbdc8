"""Figures of validation loss against size, compute, domain and whatever a sweep varies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.report import published
from pipeline.report.cells import SHAPE_KEYS, canonical_text
from pipeline.report.figures_curves import unigram_line
from pipeline.report.looks import (
    colour,
    dashes,
    hollow,
    label_point,
    labelled_depths,
    link_to,
    log_axis,
    marker,
    strength,
)
from pipeline.report.replicas import mean_and_half
from pipeline.report.series import AXES, FITTED, Series, all_series
from pipeline.report.study import ARCHITECTURES, TRAINING, Cell, Rows, Study, tokens_said
from pipeline.report.style import PALETTE, Canvas, Figure
from pipeline.report.text import amount

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def scaling(study: Study) -> Figure | None:
    """Validation loss against parameters, non-embedding parameters and training FLOPs, with the fitted laws there are."""
    shown = study.measured
    if not shown:
        return None

    def draw(canvas: Canvas) -> Any:
        drawing, panels = canvas.grid(len(AXES), 3, 3.1, titles=False, sharey=True)
        for axes, axis in zip(panels, AXES, strict=True):
            for series in all_series(study, axis):
                _law(axes, series)
                _size_series(canvas, axes, study, series)
            log_axis(axes, [AXES[axis](cell) for cell in shown])
            unigram_line(axes, study.measured_entropy, "unigram entropy of these tokens")
            axes.set_xlabel(axis)
        panels[0].set_ylabel("validation loss, nats a token")
        canvas.key(drawing, panels)
        return drawing

    said = "; ".join(
        f"{c.name}: {c.val_loss:.3f} at {amount(c.size.total_without_positions)} parameters after {amount(c.train_tokens)} tokens"
        for c in shown
    )
    return Figure(
        "scaling",
        "Validation loss against size and compute",
        "Every mark is one trained model. Parameters count the token table once and no positions. FLOPs are true ones: CRATE "
        "uses each dictionary entry several times a token, so equal parameters are not equal compute. Lines join means over "
        "seeds of models that saw the same number of tokens (against FLOPs: the best ones at their compute), bars are their "
        f"95 % intervals. Where it is identified, the dotted line is the fitted law with its 95 % band.{_unequal_tokens(study)}",
        f"Validation loss against size: {said}.",
        draw,
    )


def _law(axes: Axes, series: Series) -> None:
    """The fitted law and its band; only where the law is of this axis alone."""
    if series.axis not in FITTED or series.law is None:
        return
    x = np.geomspace(series.sizes.min() / 1.1, series.sizes.max() * 1.1, 60)
    shade = PALETTE[series.architecture]
    low, high = series.law.interval(x)
    axes.fill_between(x, low, high, color=shade, alpha=0.13, linewidth=0)
    axes.plot(x, series.law.predict(x), color=shade, linestyle=(0, (1.2, 1.6)), linewidth=1.2)


def _size_series(canvas: Canvas, axes: Axes, study: Study, series: Series, labels: bool = True) -> None:
    first = series.cells[0]
    if series.law is None or series.axis not in FITTED:
        for sizes, means in series.lines:
            axes.plot(sizes, means, color=colour(first), alpha=0.45, linewidth=1.5, linestyle=dashes(study, first))
    for size, mean, half in series.replicas:
        axes.errorbar(size, mean, half, color=colour(first), linewidth=1.2, capsize=3, alpha=0.8)
    tips = [
        (
            f"{cell.name}: {cell.val_loss:.3f} nats at {amount(size)} {series.axis}, {amount(cell.train_tokens)} tokens",
            link_to(cell),
        )
        for cell, size in zip(series.cells, series.sizes, strict=True)
    ]
    style = marker(study, first) | {"markeredgecolor": PALETTE["paper"], "markeredgewidth": 0.8, "label": series.name}
    canvas.marks(axes, series.sizes.tolist(), series.losses.tolist(), tips, **style)
    labelled = labelled_depths([cell.model.n_layer for cell in series.cells])
    for cell, size, loss in zip(series.cells, series.sizes, series.losses, strict=True):
        if labels and cell.model.n_layer in labelled and cell.seed == first.seed:
            label_point(axes, f"{cell.model.n_layer}L", size, loss, colour(cell))


def published_ladder(study: Study) -> Figure | None:
    """Our models beside the paper's own ladder."""
    shown = study.measured
    if not shown:
        return None
    axes_shown = list(AXES)[:2]

    def draw(canvas: Canvas) -> Any:
        drawing, panels = canvas.grid(len(axes_shown), 2, 2.9, titles=False, sharey=True)
        for axes, axis in zip(panels, axes_shown, strict=True):
            sizes = [AXES[axis](cell) for cell in shown]
            for architecture, losses in published.LOSS.items():
                sizes += _published_series(canvas, axes, architecture, losses, axis)
            for series in all_series(study, axis):
                _size_series(canvas, axes, study, series, labels=False)
            log_axis(axes, sizes)
            axes.set_xlabel(axis)
        panels[0].set_ylabel("validation loss, nats a token")
        canvas.key(drawing, panels)
        return drawing

    return Figure(
        "published_ladder",
        "Beside the published ladder",
        f"Hollow marks: {published.LABEL}, trained on the Pile for up to 157 billion tokens, losses read off its figure. Ours "
        f"saw {tokens_said(shown)}. Other text, other amounts of training and another context length move a loss, and its "
        "slope over size: what can be compared are the signs of the gaps at equal size, of ours where an interval tells them.",
        "Published validation losses: "
        + "; ".join(
            f"{ARCHITECTURES[a]} " + ", ".join(f"{n}L {v}" for n, v in losses.items())
            for a, losses in published.LOSS.items()
        )
        + ".",
        draw,
    )


def _unequal_tokens(study: Study) -> str:
    """A caution where the models of a figure saw unequal numbers of tokens, which no axis of it tells."""
    if not study.tokens_vary:
        return ""
    said = tokens_said(study.models)
    return f" The models saw {said}: between marks of unequal numbers, a difference is one of training as well."


def _published_series(
    canvas: Canvas, axes: Axes, architecture: str, losses: dict[int, float], axis: str
) -> list[float]:
    stands_for = [Cell("", {"model": published.model(architecture, n).__dict__}, {}, {}) for n in losses]
    x = [AXES[axis](cell) for cell in stands_for]
    shade = PALETTE[architecture]
    axes.plot(x, list(losses.values()), color=shade, alpha=0.3, linewidth=1, linestyle=(0, (4, 3)))
    tips = [
        (f"{published.LABEL}, {ARCHITECTURES[architecture]} {n}L: {loss:.2f}", "#fig-published_ladder")
        for n, loss in losses.items()
    ]
    name = f"{ARCHITECTURES[architecture]}, {published.LABEL}"
    canvas.marks(axes, x, list(losses.values()), tips, **hollow(architecture), label=name)
    return x


def domains(study: Study, rows: Rows) -> Figure | None:
    """Loss by domain, a mark a model."""
    names = sorted({row["domain"] for row in rows})
    if len(names) < 2:
        return None

    def draw(canvas: Canvas) -> Any:
        drawing, panels = canvas.grid(
            1, 1, 0.7 + 0.3 * len(names), titles=False, left=0.3 + 0.075 * max(map(len, names))
        )
        axes = panels[0]
        for cell in study.models:
            own = {row["domain"]: row["loss"] for row in rows if row["cell"] == cell.name}
            x, y = list(own.values()), [len(names) - 1 - names.index(name) for name in own]
            saw = f"{amount(cell.train_tokens)} tokens"
            tips = [(f"{cell.name}, {name}: {loss:.3f} nats, {saw}", link_to(cell)) for name, loss in own.items()]
            style = marker(study, cell) | {"alpha": strength(study, cell), "markeredgewidth": 0, "label": cell.series}
            canvas.marks(axes, x, y, tips, **style)
        axes.set_yticks(range(len(names)), list(reversed(names)))
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.set_xlabel("validation loss, nats a token")
        canvas.key(drawing, panels)
        return drawing

    said = "; ".join(f"{row['cell']} {row['domain']} {row['loss']:.3f}" for row in rows)
    return Figure(
        "domains",
        "Loss by domain",
        f"Every mark is one model; deeper models are darker.{_unequal_tokens(study)}",
        f"Validation loss by domain: {said}.",
        draw,
    )


def ablations(study: Study) -> list[Figure]:
    """One figure for each numeric setting of the training that the sweep varies: final loss against it."""
    keys = {key for cell in study.measured for key in cell.reading if key.startswith(TRAINING)} - {*SHAPE_KEYS}
    return [_ablation(study, key, lines) for key in sorted(keys) if (lines := _lines_over(study, key))]


def _lines_over(study: Study, key: str) -> list[list[Cell]]:
    """Models that are alike in all but a numeric setting and the seed, measured on the same text, where two values have one."""
    lines: dict[str, list[Cell]] = {}
    for cell in study.measured:
        if isinstance(cell.reading.get(key), int | float):
            others = {other: value for other, value in cell.training.items() if other != key}
            lines.setdefault(canonical_text([others, cell.measure, cell.val_text]), []).append(cell)
    return [line for line in lines.values() if len({cell.reading[key] for cell in line}) > 1]


def _ablation(study: Study, key: str, lines: list[list[Cell]]) -> Figure:
    name, cells = key.rpartition(".")[2], [cell for line in lines for cell in line]
    architectures = [a for a in study.architectures if any(cell.architecture == a for cell in cells)]

    def draw(canvas: Canvas) -> Any:
        drawing, panels = canvas.grid(len(architectures), 2, 2.9, legend=False, sharey=True)
        for axes, architecture in zip(panels, architectures, strict=True):
            for line in lines:
                if line[0].architecture == architecture:
                    _ablation_line(canvas, axes, study, key, line)
            values = [cell.reading[key] for cell in cells]
            if min(values) > 0 and max(values) / min(values) >= 3:
                log_axis(axes, values)
            axes.set_title(ARCHITECTURES[architecture])
            axes.set_xlabel(name)
        panels[0].set_ylabel("validation loss, nats a token")
        return drawing

    said = "; ".join(f"{cell.name} {cell.val_loss:.3f}" for cell in cells)
    return Figure(
        f"ablation_{key.replace('.', '_')}",
        f"Loss against {name}",
        f"What else the sweep varies: {key}. One line a depth and whatever else varies, through the means over seeds; bars "
        "are their 95 % intervals. What another seed would give of a mark without a bar is not known.",
        f"Validation loss against {key}: {said}.",
        draw,
    )


def _ablation_line(canvas: Canvas, axes: Axes, study: Study, key: str, line: list[Cell]) -> None:
    """A mark a model, and a line through the means of replicas."""
    first, name, losses = line[0], key.rpartition(".")[2], {}  # type: Cell, str, dict[float, list[float]]
    for cell in line:
        losses.setdefault(cell.reading[key], []).append(float(cell.val_loss or 0))
    shade, alpha, values = PALETTE[first.architecture], strength(study, first), sorted(losses)
    means = [float(np.mean(losses[value])) for value in values]
    axes.plot(values, means, color=shade, alpha=alpha)
    for value, (mean, half) in ((value, mean_and_half(losses[value])) for value in values):
        axes.errorbar(value, mean, half, color=shade, linewidth=1.2, capsize=3, alpha=alpha)
    tips = [(f"{cell.name}: {cell.val_loss:.3f} nats at {name} {cell.reading[key]:g}", link_to(cell)) for cell in line]
    x, y = [cell.reading[key] for cell in line], [float(cell.val_loss or 0) for cell in line]
    canvas.marks(axes, x, y, tips, marker="o", color=shade, alpha=alpha)
    others = {k: v for k, v in first.reading.items() if k.startswith(TRAINING) and k not in (key, *SHAPE_KEYS)}
    said = [f"{first.model.n_layer}L", *(f"{k.rpartition('.')[2]} {v}" for k, v in others.items())]
    label_point(axes, ", ".join(said), values[-1], means[-1], shade)
