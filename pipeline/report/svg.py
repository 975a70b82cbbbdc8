"""From a matplotlib figure to SVG inside the page: one element a panel, coloured by CSS variables, its marks links.

A figure is drawn with the colours of PALETTE. In the files they stay as they are; inside the page each becomes a CSS variable,
so that one drawing serves light and dark. Marks that were given hover texts become links with those texts.
"""

from __future__ import annotations

import html
import re
from io import BytesIO
from typing import TYPE_CHECKING

from pipeline.report.style import PALETTE, RC, Figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

COLOURS = {value: f"var(--{name})" for name, value in PALETTE.items()}


def to_svg(drawing: Drawing, salt: str) -> bytes:
    """SVG with the same bytes for the same drawing."""
    import matplotlib

    buffer = BytesIO()
    with matplotlib.rc_context({**RC, "svg.hashsalt": salt}):
        drawing.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def panels(figure: Figure) -> list[str]:
    """The panels of a figure as SVG elements."""
    canvas, body = figure.drawn[1], _body(figure.svg)
    body = re.sub(r' id="([^"]+)"', lambda m: f' id="{figure.name}-{m[1]}"', body)  # ids are the whole page's
    body = re.sub(r'(href="#|url\(#)([^")]+)', lambda m: f"{m[1]}{figure.name}-{m[2]}", body)
    for gid, marks in canvas.tips.items():
        body = _linked(body, f"{figure.name}-{gid}", marks)
    clips = "".join(re.findall(r"<defs>\s*<clipPath.*?</defs>", body, re.DOTALL))
    found = []
    for number, (x, y, width, height) in enumerate(canvas.boxes(), 1):
        start = body.index(f'<g id="{figure.name}-axes_{number}">')
        inside = body[start : _group_end(body, start)]
        view = f"{x:g} {y:g} {width:g} {height:g}"
        size = f'width="{width:g}" height="{height:g}"'
        found.append(f'<svg viewBox="{view}" {size} aria-hidden="true">{inside}{clips if number == 1 else ""}</svg>')
    return found


def themed(colour: str) -> str:
    """A colour of the palette as its CSS variable."""
    return COLOURS.get(colour, colour)


def _body(svg: bytes) -> str:
    """What is inside the svg element, shorter and in the page's own colours and type."""
    text = svg.decode("utf-8")
    text = text[text.index("<svg") :]
    text = text[text.index(">") + 1 : text.rindex("</svg>")]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"; font-family: [^;\"]*", "", text)
    text = re.sub(r' transform="rotate\(-?0 [^"]*\)"', "", text)
    text = re.sub("|".join(COLOURS), lambda m: COLOURS[m[0]], text)
    text = re.sub(r"(\d\.\d\d)\d+", r"\1", text)  # hundredths of a point are fine enough
    return re.sub(r"\s*\n\s*", "\n", text.replace("xlink:href", "href"))


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
