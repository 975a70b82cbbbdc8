"""Figures of training and of validation loss against size and compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.report.study import ARCHITECTURES, Cell, Study
from pipeline.report.style import MARKERS, PALETTE, Canvas, Figure
from pipeline.report.text import amount

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZES: tuple[tuple[str, Callable[[Cell], float]], ...] = (
    ("parameters", lambda cell: cell.size.total_without_positions),
    ("non-embedding parameters", lambda cell: cell.size.non_embedding),
    ("training FLOPs", lambda cell: cell.train_flops),
)


def link_to(cell: Cell) -> str:
    return f"#cell-{cell.name}"


def loss_curves(study: Study, rows: Sequence[dict[str, Any]]) -> Figure | None:
    """Loss against tokens seen, a panel an architecture, deeper models darker."""
    curves = {cell.name: [row for row in rows if row["cell"] == cell.name] for cell in study.cells}
    shown = [cell for cell in study.cells if curves[cell.name]]
    if not shown:
        return None
    architectures = [name for name in study.architectures if any(cell.architecture == name for cell in shown)]

    def draw(canvas: Canvas) -> Any:
        drawing, panels = canvas.grid(len(architectures), 2, 3.3, sharey=True)
        for axes, architecture in zip(panels, architectures, strict=True):
            for cell in (cell for cell in shown if cell.architecture == architecture):
                _curve(canvas, axes, cell, curves[cell.name], _depth_alpha(study, cell))
            _unigram_line(axes, study.unigram_entropy)
            axes.set_title(ARCHITECTURES[architecture])
            axes.set_xlabel("tokens seen")
            axes.xaxis.set_major_formatter(lambda value, _: amount(value))
            axes.set_xlim(0, 1.09 * max(row["tokens"] for cell in shown for row in curves[cell.name]))
        panels[0].set_ylabel("loss, nats a token")
        return drawing

    finals = "; ".join(f"{cell.name} {cell.val_loss:.3f}" for cell in shown if cell.val_loss is not None)
    return Figure(
        "loss_curves",
        "Loss while training",
        "Points are validation loss, faint lines the loss of the training batches; deeper models are darker.",
        f"Loss against tokens seen for {len(shown)} models. Final validation losses in nats a token: {finals}.",
        draw,
    )


def _curve(canvas: Canvas, axes: Axes, cell: Cell, rows: Sequence[dict[str, Any]], alpha: float) -> None:
    colour = PALETTE[cell.architecture]
    axes.plot([r["tokens"] for r in rows], [r["loss"] for r in rows], color=colour, alpha=0.28 * alpha, linewidth=1)
    points = [row for row in rows if row["val_loss"] is not None]
    if not points:
        return
    x, y = [row["tokens"] for row in points], [row["val_loss"] for row in points]
    axes.plot(x, y, color=colour, alpha=alpha)
    tips = [(f"{cell.name}: {b:.3f} after {amount(a)} tokens", link_to(cell)) for a, b in zip(x, y, strict=True)]
    canvas.marks(axes, x, y, tips, marker=MARKERS[cell.architecture], color=colour, alpha=alpha, markersize=3.5)
    axes.annotate(
        f"{cell.model.n_layer}L",
        (x[-1], y[-1]),
        (5, 0),
        textcoords="offset points",
        va="center",
        fontsize=8.5,
        color=colour,
    )


def _depth_alpha(study: Study, cell: Cell) -> float:
    rank = study.depths.index(cell.model.n_layer)
    return 1.0 if len(study.depths) == 1 else 0.4 + 0.6 * rank / (len(study.depths) - 1)


def _unigram_line(axes: Axes, entropy: float | None) -> None:
    """The unigram entropy as a line, or as a note at the edge where it would push the data together."""
    if entropy is None:
        return
    low, high = axes.get_ylim()
    said = f"unigram entropy {entropy:.2f}"
    style: dict[str, Any] = {"fontsize": 8.5, "color": PALETTE["muted"], "ha": "right"}
    if low - 0.6 * (high - low) <= entropy <= high + 0.6 * (high - low):
        axes.axhline(entropy, color=PALETTE["muted"], linestyle=(0, (4, 3)), linewidth=1)
        axes.annotate(
            said, (1, entropy), (-2, 3), xycoords=("axes fraction", "data"), textcoords="offset points", **style
        )
    else:
        axes.annotate(
            f"{said} \N{UPWARDS ARROW}",
            (1, 1),
            (-2, -10),
            xycoords="axes fraction",
            textcoords="offset points",
            **style,
        )


def scaling(study: Study) -> Figure | None:
    """Validation loss against parameters, non-embedding parameters and training FLOPs."""
    shown = [cell for cell in study.cells if cell.val_loss is not None]
    if not shown:
        return None
    series = list(dict.fromkeys(cell.series for cell in shown))

    def draw(canvas: Canvas) -> Any:
        drawing, panels = canvas.grid(len(SIZES), 3, 3.3, sharey=True)
        for axes, (label, size_of) in zip(panels, SIZES, strict=True):
            for name in series:
                _size_series(canvas, axes, [cell for cell in shown if cell.series == name], label, size_of)
            _log_size_axis(axes, [size_of(cell) for cell in shown])
            _unigram_line(axes, study.unigram_entropy)
            axes.set_xlabel(label)
        panels[0].set_ylabel("validation loss, nats a token")
        panels[0].legend(loc="lower left")
        return drawing

    said = "; ".join(
        f"{c.name}: {c.val_loss:.3f} at {amount(c.size.total_without_positions)} parameters" for c in shown
    )
    return Figure(
        "scaling",
        "Validation loss against size and compute",
        "Parameters count the token table once and no positions. FLOPs are true ones: CRATE uses each dictionary entry several "
        "times a token, so equal parameters are not equal compute.",
        f"Validation loss falls with size as follows. {said}.",
        draw,
    )


def _size_series(
    canvas: Canvas, axes: Axes, cells: Sequence[Cell], label: str, size_of: Callable[[Cell], float]
) -> None:
    cells = sorted(cells, key=size_of)
    colour, x = PALETTE[cells[0].architecture], [size_of(cell) for cell in cells]
    y = [float(cell.val_loss or np.nan) for cell in cells]
    means = {size: float(np.mean([b for a, b in zip(x, y, strict=True) if a == size])) for size in dict.fromkeys(x)}
    axes.plot(list(means), list(means.values()), color=colour, alpha=0.45)
    tips = [
        (f"{cell.name}: {cell.val_loss:.3f} nats at {amount(size)} {label}", link_to(cell))
        for cell, size in zip(cells, x, strict=True)
    ]
    style = {
        "marker": MARKERS[cells[0].architecture],
        "color": colour,
        "markeredgecolor": PALETTE["paper"],
        "label": cells[0].series,
    }
    canvas.marks(axes, x, y, tips, **style)


def _log_size_axis(axes: Axes, sizes: Sequence[float]) -> None:
    """A log axis with ticks that people can read, also where it spans less than a decade."""
    from matplotlib.ticker import FixedLocator, NullLocator

    low, high = min(sizes), max(sizes)
    axes.set_xscale("log")
    room = max((high / low) ** 0.08, 1.03)
    axes.set_xlim(low / room, high * room)
    axes.xaxis.set_major_locator(FixedLocator(log_ticks(low / room, high * room)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: amount(value))


def log_ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers within a range."""
    for mantissas in (
        (1,),
        (1, 3),
        (1, 2, 5),
        (1, 1.5, 2, 3, 5, 7),
        tuple(np.arange(1, 10, 0.5)),
        tuple(np.arange(1, 10, 0.1)),
    ):
        decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
        found = [float(m) * 10.0**d for d in decades for m in mantissas if low <= float(m) * 10.0**d <= high]
        if len(found) >= 3:
            step = -(-len(found) // 6)
            return found[::step]
    return [low, high]
