"""How figures look, once: colours, type, and the way from a matplotlib figure to themed SVG that lives inside the page.

A figure is drawn with the colours of PALETTE. In the files they stay as they are; inside the page each becomes a CSS
variable, so that one drawing serves light and dark. Marks that were given hover texts become links with those texts.
"""

from __future__ import annotations

import functools
import html
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
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
WIDE, NARROW = 9.2, 4.1  # inches; the page's column, and a phone's
DPI = 160
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
    """One drawing in the making: its width, and the hover texts of its marks."""

    wide: bool
    tips: dict[str, list[tuple[str, str]]] = field(
        default_factory=dict
    )  # gid -> (text, link) of each mark in drawing order

    @property
    def width(self) -> float:
        return WIDE if self.wide else NARROW

    def grid(
        self,
        n_panels: int,
        columns: int,
        row_height: float = 2.9,
        *,
        narrow_columns: int = 1,
        legend: bool = True,
        titles: bool = True,
        **kwargs: Any,
    ) -> tuple[Drawing, list[Axes]]:
        """A drawing with so many panels: `columns` beside each other where it is wide, `narrow_columns` on a phone.

        With `legend`, room is left above the panels for `key`; with `titles`, for a title a panel.
        """
        from matplotlib.figure import Figure as Drawing

        n_columns = min(n_panels, columns if self.wide else narrow_columns)
        n_rows = -(-n_panels // n_columns)
        above = (0.30 if self.wide else 0.55) * legend + (0.32 if titles else 0.1)
        height = n_rows * row_height + above
        drawing = Drawing(figsize=(self.width, height))
        panels = drawing.subplots(n_rows, n_columns, squeeze=False, **kwargs)
        for spare in panels.flat[n_panels:]:
            spare.remove()
        width = self.width / n_columns
        drawing.subplots_adjust(
            left=0.56 / self.width,
            right=1 - 0.10 / self.width,
            top=1 - above / height,
            bottom=0.52 / height,
            wspace=0.52 / (width - 0.52),
            hspace=0.92 / (row_height - 0.92),
        )
        return drawing, list(panels.flat[:n_panels])

    def key(self, drawing: Drawing, panels: Sequence[Axes]) -> None:
        """One legend for all panels, in a row above them."""
        found: dict[str, Any] = {}
        for axes in panels:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                found.setdefault(label, handle)
        columns = 6 if self.wide else 2
        left = 0.56 / self.width
        drawing.legend(
            list(found.values()),
            list(found),
            loc="upper left",
            bbox_to_anchor=(left, 1.0),
            ncols=columns,
            borderpad=0,
            borderaxespad=0.2,
            columnspacing=1.6,
            handletextpad=0.5,
            handlelength=1.5,
        )

    def marks(
        self, axes: Axes, x: Sequence[float], y: Sequence[float], tips: Sequence[tuple[str, str]], **kwargs: Any
    ) -> None:
        """Markers whose hover texts and links are `tips`."""
        gid = f"marks-{len(self.tips)}"
        self.tips[gid] = list(tips)
        (line,) = axes.plot(x, y, linestyle="none", clip_on=False, **kwargs)
        line.set_gid(gid)


@dataclass(frozen=True)
class Figure:
    """One figure of the report: `draw` makes it for a canvas; `alt` tells its content in words."""

    name: str
    title: str
    caption: str
    alt: str
    draw: Callable[[Canvas], Drawing]

    def write(self, folder: Path) -> None:
        """`<name>.png` and `<name>.svg`."""
        folder.mkdir(parents=True, exist_ok=True)
        with styled():
            drawing, _ = self._wide
            drawing.savefig(folder / f"{self.name}.png", dpi=DPI, metadata={"Software": None, "Title": self.title})
        (folder / f"{self.name}.svg").write_bytes(self._wide_svg)

    @functools.cached_property
    def _wide(self) -> tuple[Drawing, Canvas]:
        canvas = Canvas(wide=True)
        with styled():
            return self.draw(canvas), canvas

    @functools.cached_property
    def _wide_svg(self) -> bytes:
        return to_svg(self._wide[0], self.name)

    def inline(self) -> dict[str, str]:
        """The wide and the narrow drawing as themed SVG elements."""
        narrow = Canvas(wide=False)
        with styled():
            drawing = self.draw(narrow)
            narrow_svg = to_svg(drawing, f"{self.name}-narrow")
        return {
            "wide": themed(self._wide_svg, f"{self.name}-w", self._wide[1].tips),
            "narrow": themed(narrow_svg, f"{self.name}-n", narrow.tips),
        }


@contextmanager
def styled() -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context(RC):
        yield


def to_svg(drawing: Drawing, salt: str) -> bytes:
    """SVG with the same bytes for the same drawing."""
    import matplotlib

    buffer = BytesIO()
    with matplotlib.rc_context({**RC, "svg.hashsalt": salt}):
        drawing.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def themed(svg: bytes, prefix: str, tips: dict[str, list[tuple[str, str]]]) -> str:
    """SVG for the inside of a page: CSS variables for colours, unique ids, links with texts for marks."""
    text = svg.decode("utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    width, height = (float(v) for v in re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text).groups())  # type: ignore[union-attr]
    body = text[text.index(">") + 1 : text.rindex("</svg>")]
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="patch_1">.*?</g>', "", body, count=1, flags=re.DOTALL)  # the background is the page's own
    for gid, marks in tips.items():
        body = _linked(body, gid, marks)
    body = re.sub(r' id="([^"]+)"', lambda m: f' id="{prefix}-{m[1]}"', body)
    body = re.sub(r'(href="#|url\(#)(?!cell-)([^")]+)', lambda m: f"{m[1]}{prefix}-{m[2]}", body)
    for name, colour in PALETTE.items():
        body = body.replace(colour, f"var(--{name})")
    body = re.sub(r"; font-family: [^;\"]*", "", body)  # the page's own type
    body = re.sub(r' transform="rotate\(-?0 [^"]*\)"', "", body)
    body = body.replace("xlink:href", "href")
    body = re.sub(r"\n\s*", "\n", body)
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" aria-hidden="true">{body}</svg>'
    )


def _linked(body: str, gid: str, marks: list[tuple[str, str]]) -> str:
    """Wrap the n-th mark of the group `gid` in a link with its text."""
    start = body.find(f'<g id="{gid}">')
    if start < 0:
        return body
    end = _group_end(body, start)
    texts = iter(marks)

    def link(match: re.Match[str]) -> str:
        text, target = next(texts)
        said = html.escape(text, quote=True)
        return f'<a href="{html.escape(target, quote=True)}" class="mark" data-tip="{said}" aria-label="{said}">{match[0]}</a>'

    return body[:start] + re.sub(r"<use [^>]*/>", link, body[start:end]) + body[end:]


def _group_end(body: str, start: int) -> int:
    """Where the group that begins at `start` is closed."""
    depth = 0
    for match in re.compile(r"<g\b[^>]*?(/?)>|</g>").finditer(body, start):
        if match[0] == "</g>":
            depth -= 1
        elif not match[1]:
            depth += 1
        if depth == 0:
            return match.end()
    return len(body)
