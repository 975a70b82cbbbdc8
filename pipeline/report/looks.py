"""How a model looks in every figure: its colour by architecture, its marker and dashes by variant, its strength by depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.report.study import Cell, Study
from pipeline.report.style import DASHES, MARKERS, PALETTE
from pipeline.report.text import amount

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABEL_POINTS = 9.5  # points between two labels
MOST_LABELLED = 4  # depths beside each other that get a label each; of more, the first and the last


def link_to(cell: Cell) -> str:
    return f"#cell-{cell.name}"


def colour(cell: Cell, family: str = "code") -> str:
    return PALETTE[cell.architecture if family == "code" else f"{cell.architecture}-soft"]


def marker(study: Study, cell: Cell) -> dict[str, Any]:
    """Style of a model's mark."""
    kinds = MARKERS[cell.architecture]
    return {"marker": kinds[study.readings.index(cell.reading_of_features) % len(kinds)], "color": colour(cell)}


def hollow(architecture: str) -> dict[str, Any]:
    """Style of a published mark."""
    shape = "o" if architecture == "crate" else "s"
    return {
        "marker": shape,
        "markerfacecolor": "none",
        "markeredgecolor": PALETTE[architecture],
        "markeredgewidth": 1.1,
    }


def dashes(study: Study, cell: Cell) -> Any:
    return DASHES[study.readings.index(cell.reading_of_features) % len(DASHES)]


def strength(study: Study, cell: Cell) -> float:
    """Opacity: deeper is darker."""
    rank = study.depths.index(cell.model.n_layer)
    return 1.0 if len(study.depths) == 1 else 0.4 + 0.6 * rank / (len(study.depths) - 1)


def labelled_depths(depths: Sequence[int]) -> set[int]:
    depths = sorted(set(depths))
    return set(depths) if len(depths) <= MOST_LABELLED else {depths[0], depths[-1]}


def depth_label(study: Study, cell: Cell) -> str:
    """The label of a model's line; of replicas, only the first has one."""
    return f"{cell.model.n_layer}L" if cell.seed == min(other.seed for other in study.cells) else ""


def end_labels(axes: Axes, labels: Sequence[tuple[float, float, str, str]]) -> None:
    """Texts to the right of the ends of lines, (x, y, text, colour) each, moved up or down until none covers another."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    labels = [label for label in labels if label[2]]
    heights = [float(axes.transData.transform((x, y))[1]) * 72 / figure.dpi for x, y, _, _ in labels]
    order = sorted(range(len(labels)), key=lambda index: heights[index])
    placed = [heights[index] for index in order]
    for _ in range(40):  # neighbours push each other apart
        for low in range(len(placed) - 1):
            overlap = LABEL_POINTS - (placed[low + 1] - placed[low])
            if overlap > 0:
                placed[low] -= overlap / 2
                placed[low + 1] += overlap / 2
    for index, height in zip(order, placed, strict=True):
        x, y, text, shade = labels[index]
        offset = (6, height - heights[index])
        axes.annotate(
            text,
            (x, y),
            offset,
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=shade,
            annotation_clip=False,
        )


def label_point(axes: Axes, text: str, x: float, y: float, shade: str) -> None:
    """A text above a mark."""
    side: dict[str, Any] = {"xytext": (0, 8.5), "ha": "center"}
    axes.annotate(
        text, (x, y), textcoords="offset points", va="center", fontsize=8.5, color=shade, annotation_clip=False, **side
    )


def log_axis(axes: Axes, values: Sequence[float]) -> None:
    """A log axis with ticks that people can read, also where it spans less than a decade."""
    from matplotlib.ticker import FixedLocator, NullLocator

    low, high = min(values), max(values)
    room = max((high / low) ** 0.08, 1.03)
    axes.set_xscale("log")
    axes.set_xlim(low / room, high * room)
    axes.xaxis.set_major_locator(FixedLocator(log_ticks(low / room, high * room)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: amount(value))


def log_ticks(low: float, high: float) -> list[float]:
    """Two to five round numbers within a range."""
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
        if len(found) >= 2:
            return found[:: -(-len(found) // 5)]
    return [low, high]
