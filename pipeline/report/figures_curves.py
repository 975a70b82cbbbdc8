"""The figure of training: loss against tokens seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pipeline.report.looks import (
    colour,
    dashes,
    depth_label,
    end_labels,
    labelled_depths,
    link_to,
    marker,
    strength,
)
from pipeline.report.study import ARCHITECTURES, Cell, Rows, Study
from pipeline.report.style import PALETTE, Canvas, Figure
from pipeline.report.text import amount

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def loss_curves(study: Study, rows: Rows) -> Figure | None:
    """Loss against tokens seen, a panel an architecture, deeper models darker."""
    curves = {cell.name: [row for row in rows if row["cell"] == cell.name] for cell in study.models}
    shown = [cell for cell in study.models if curves[cell.name]]
    if not shown:
        return None
    architectures = [name for name in study.architectures if any(cell.architecture == name for cell in shown)]
    several = len({cell.series for cell in shown}) > len(architectures)
    longest = max(row["tokens"] for cell in shown for row in curves[cell.name])

    def draw(canvas: Canvas) -> Any:
        drawing, panels = canvas.grid(len(architectures), 2, 3.3, legend=several, sharey=True)
        for axes, architecture in zip(panels, architectures, strict=True):
            own = [cell for cell in shown if cell.architecture == architecture]
            labelled = labelled_depths([cell.model.n_layer for cell in own])
            ends = [_curve(canvas, axes, study, cell, curves[cell.name]) for cell in own]
            side = _free_side(axes, study.unigram_entropy, ends)
            unigram_line(axes, study.unigram_entropy, "unigram entropy of all of val", side)
            axes.set_title(ARCHITECTURES[architecture])
            axes.set_xlabel("tokens seen")
            axes.xaxis.set_major_formatter(lambda value, _: amount(value) if value else "0")
            axes.set_xlim(0, 1.07 * longest)
            end_labels(
                axes, [end for end, cell in zip(ends, own, strict=True) if end and cell.model.n_layer in labelled]
            )
        panels[0].set_ylabel("loss, nats a token")
        if several:
            canvas.key(drawing, panels)
        return drawing

    finals = "; ".join(f"{cell.name} {cell.val_loss:.3f}" for cell in shown if cell.val_loss is not None)
    return Figure(
        "loss_curves",
        "Loss while training",
        "Marks and lines are validation loss, the faint lines the loss of the training batches; deeper models are darker.",
        f"Loss against tokens seen for {len(shown)} models. Final validation losses in nats a token: {finals}.",
        draw,
    )


def _curve(canvas: Canvas, axes: Axes, study: Study, cell: Cell, rows: Rows) -> tuple[float, float, str, str] | None:
    """Draw a model's curve; its end, with the label that belongs there."""
    shade, alpha = colour(cell), strength(study, cell)
    axes.plot([r["tokens"] for r in rows], [r["loss"] for r in rows], color=shade, alpha=0.25 * alpha, linewidth=1)
    points = [row for row in rows if row["val_loss"] is not None]
    if not points:
        return None
    x, y = [row["tokens"] for row in points], [row["val_loss"] for row in points]
    axes.plot(x, y, color=shade, alpha=alpha, linewidth=1.5, linestyle=dashes(study, cell))
    tips = [(f"{cell.name}: {b:.3f} after {amount(a)} tokens", link_to(cell)) for a, b in zip(x, y, strict=True)]
    canvas.marks(axes, x, y, tips, **marker(study, cell), alpha=alpha, markersize=3, label=cell.series)
    return x[-1], y[-1], depth_label(study, cell), shade


def _free_side(
    axes: Axes, entropy: float | None, ends: Sequence[tuple[float, float, str, str] | None]
) -> Literal["left", "right"]:
    """Where a text at this height is clear of the curves, which end at the right, with their labels."""
    low, high = axes.get_ylim()
    highest = max((end[1] for end in ends if end), default=low)
    return "right" if entropy is not None and highest < entropy - 0.06 * (high - low) else "left"


def unigram_line(axes: Axes, entropy: float | None, name: str, side: Literal["left", "right"] = "right") -> None:
    """The unigram entropy as a line, or as a note at the edge where it would push the data together."""
    if entropy is None:
        return
    low, high = axes.get_ylim()
    said = f"{name} {entropy:.2f}"
    style: dict[str, Any] = {"fontsize": 8.5, "color": PALETTE["muted"], "ha": side, "textcoords": "offset points"}
    x, inwards = (1, -2) if side == "right" else (0, 2)
    below = (
        side == "left" or entropy < axes.dataLim.ymin
    )  # where the data are above: curves that come down, models above it
    if low - 0.7 * (high - low) <= entropy <= high + 0.7 * (high - low):
        axes.axhline(entropy, color=PALETTE["muted"], linestyle=(0, (4, 3)), linewidth=1)
        if below:  # room for the words
            axes.set_ylim(bottom=min(low, entropy - 0.1 * (high - entropy)))
        axes.annotate(said, (x, entropy), (inwards, -11 if below else 4), xycoords=("axes fraction", "data"), **style)
    else:
        axes.annotate(f"{said} \N{UPWARDS ARROW}", (x, 1), (inwards, -4), xycoords="axes fraction", va="top", **style)
