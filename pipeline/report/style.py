"""How figures look, once: colours, type, and the sheet on which panels stand.

A figure is a row or grid of equal panels. In the files it is one picture; inside the page every panel is an SVG of its own
(`svg.py`), so that they stand beside each other on a screen and below each other on a phone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

PALETTE = {
    "crate": "#c2410d",
    "gpt2": "#1d5fa6",
    "crate-soft": "#e8a27c",
    "gpt2-soft": "#8db8e2",
    "ink": "#1c2430",
    "muted": "#66707f",
    "rule": "#d9dee5",
    "accent": "#0f766e",
    "lost": "#a11226",
    "paper": "#fefefe",
}
MARKERS = {"crate": "o^Dv<>", "gpt2": "sPXphd"}  # by architecture, one a variant
DASHES: tuple[Any, ...] = ("solid", (0, (5, 2)), (0, (1.2, 1.6)), (0, (6, 2, 1.2, 2)))
WIDTH, SINGLE_WIDTH = 9.2, 6.2  # inches: of the page's column; of a figure with one panel
LEFT, RIGHT, BOTTOM = 0.56, 0.12, 0.52  # inches around the axes of every panel
TITLE, NO_TITLE, KEY = 0.32, 0.10, 0.30  # inches above them; above all panels for the legend
DPI = 150
GLYPHS = {"o": "●○", "s": "■□", "^": "▲△", "D": "◆◇", "v": "▼▽", "<": "◀◁", ">": "▶▷", "P": "✚✚", "X": "✖✖"}
RC: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: searchable, in the page's own type
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "axes.edgecolor": PALETTE["muted"],
    "axes.labelcolor": PALETTE["muted"],
    "axes.titlecolor": PALETTE["ink"],
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": PALETTE["rule"],
    "grid.linewidth": 0.7,
    "text.color": PALETTE["ink"],
    "xtick.color": PALETTE["muted"],
    "ytick.color": PALETTE["muted"],
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
    "figure.facecolor": PALETTE["paper"],
    "axes.facecolor": "none",
    "savefig.facecolor": PALETTE["paper"],
}


@dataclass
class Canvas:
    """One drawing in the making: its sheet, and the hover texts of its marks."""

    width: float = WIDTH  # inches, as everything here
    key_height: float = 0.0
    panel_height: float = 0.0
    columns: int = 1
    n_panels: int = 0
    tips: dict[str, list[tuple[str, str]]] = field(default_factory=dict)  # gid -> (text, link) of each mark, as drawn
    legend: list[tuple[str, str, str]] = field(default_factory=list)  # (glyph, colour, text)

    def grid(
        self,
        n_panels: int,
        columns: int,
        panel_height: float = 2.9,
        *,
        legend: bool = True,
        titles: bool = True,
        left: float = LEFT,
        **kwargs: Any,
    ) -> tuple[Drawing, list[Axes]]:
        """A drawing with so many panels, at most `columns` beside each other.

        With `legend`, room is left above them for `key`; with `titles`, for a title a panel. All panels have their own ticks.
        """
        from matplotlib.figure import Figure as Drawing

        self.n_panels, self.columns, self.panel_height = n_panels, min(n_panels, columns), panel_height
        self.width = SINGLE_WIDTH if self.columns == 1 else WIDTH
        self.key_height = KEY * legend
        n_rows, top = -(-n_panels // self.columns), TITLE if titles else NO_TITLE
        width, height = self.width / self.columns, n_rows * panel_height + self.key_height
        drawing = Drawing(figsize=(self.width, height))
        panels = drawing.subplots(n_rows, self.columns, squeeze=False, **kwargs)
        for spare in panels.flat[n_panels:]:
            spare.remove()
        for axes in panels.flat[:n_panels]:
            axes.tick_params(labelleft=True, labelbottom=True)
        drawing.subplots_adjust(
            left=left / self.width,
            right=1 - RIGHT / self.width,
            top=1 - (self.key_height + top) / height,
            bottom=BOTTOM / height,
            wspace=(left + RIGHT) / (width - left - RIGHT),
            hspace=(top + BOTTOM) / (panel_height - top - BOTTOM),
        )
        return drawing, list(panels.flat[:n_panels])

    def key(self, drawing: Drawing, panels: Sequence[Axes]) -> None:
        """One legend for all panels, in a row above them."""
        found: dict[str, Any] = {}
        for axes in panels:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                found.setdefault(label, handle)
        self.legend = [(*_glyph(handle), label) for label, handle in found.items()]
        drawing.legend(
            list(found.values()),
            list(found),
            loc="upper left",
            bbox_to_anchor=(0.12 / self.width, 1.0),
            ncols=6,
            borderpad=0,
            borderaxespad=0.2,
            columnspacing=1.6,
            handletextpad=0.5,
            handlelength=1.5,
        )

    def boxes(self) -> list[tuple[float, float, float, float]]:
        """Of every panel: x, y, width, height in points, from the upper left."""
        width, height, above = 72 * self.width / self.columns, 72 * self.panel_height, 72 * self.key_height
        places = [divmod(panel, self.columns) for panel in range(self.n_panels)]
        return [(column * width, above + row * height, width, height) for row, column in places]

    def marks(
        self, axes: Axes, x: Sequence[float], y: Sequence[float], tips: Sequence[tuple[str, str]], **kwargs: Any
    ) -> None:
        """Markers whose hover texts and links are `tips`."""
        gid = f"marks-{len(self.tips)}"
        self.tips[gid] = list(tips)
        (line,) = axes.plot(x, y, linestyle="none", clip_on=False, **kwargs)
        line.set_gid(gid)


def _glyph(handle: Any) -> tuple[str, str]:
    """A legend's handle as a character and a colour."""
    if not hasattr(handle, "get_marker"):  # bars
        return "■", _hex(handle[0].get_facecolor())
    glyphs = GLYPHS.get(handle.get_marker(), "●○")
    if handle.get_markerfacecolor() != handle.get_color():
        return glyphs[1], handle.get_markeredgecolor()
    return glyphs[0], handle.get_color()


def _hex(colour: Any) -> str:
    from matplotlib.colors import to_hex

    return to_hex(colour)


@dataclass(frozen=True)
class Figure:
    """One figure of the report: `draw` makes it on a canvas; `alt` tells its content in words."""

    name: str
    title: str
    caption: str
    alt: str
    draw: Callable[[Canvas], Drawing]

    def write(self, folder: Path) -> None:
        """`<name>.png` and `<name>.svg`."""
        folder.mkdir(parents=True, exist_ok=True)
        drawing, _ = self.drawn
        with styled():
            metadata = {"Software": None, "Title": self.title}
            drawing.savefig(folder / f"{self.name}.png", dpi=DPI, metadata=metadata, pil_kwargs={"compress_level": 4})
        (folder / f"{self.name}.svg").write_bytes(self.svg)

    @functools.cached_property
    def drawn(self) -> tuple[Drawing, Canvas]:
        canvas = Canvas()
        with styled():
            return self.draw(canvas), canvas

    @functools.cached_property
    def svg(self) -> bytes:
        from pipeline.report.svg import to_svg

        return to_svg(self.drawn[0], self.name)


@contextmanager
def styled() -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context(RC):
        yield
