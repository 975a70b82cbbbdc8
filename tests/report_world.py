"""Reports of made-up sweeps for tests: built once, read by many."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

from pipeline.config import RuntimeConfig
from pipeline.report.stage import STAGE, ReportSettings
from pipeline.stage import Context
from pipeline.tracking import TrackerSpec
from tests.synthetic_sweep import SyntheticSweep, fresh_store

VOID = {"meta", "link", "br", "hr", "img", "input", "col", "wbr"}


@dataclass(frozen=True)
class Built:
    folder: Path
    sweep: SyntheticSweep
    summary: dict

    @property
    def html(self) -> str:
        return (self.folder / "index.html").read_text("utf-8")


def small_sweep(folder: Path) -> SyntheticSweep:
    """Six models, with SAEs; one lacks its steering and SAEs, as if they had failed."""
    sweep = SyntheticSweep(fresh_store(folder), sae=True)
    for architecture in ("crate", "gpt2"):
        for n_layer in (1, 2, 3):
            lost = {
                "steer": "failed: out of memory",
                "features": "not run: gpt2-3l/sae failed",
                "interpret_features": "not run",
            }
            sweep.add(architecture, n_layer, missing=lost if (architecture, n_layer) == ("gpt2", 3) else None)
    return sweep


def build(sweep: SyntheticSweep, folder: Path, settings: ReportSettings | None = None) -> Built:
    """Run the report stage into a new folder."""
    folder.mkdir(parents=True)
    context = Context(
        store=sweep.store,
        runtime=RuntimeConfig(),
        run_name=sweep.name,
        step_name="report",
        fingerprint="0" * 32,
        tracker=TrackerSpec(),
    )
    return Built(folder, sweep, STAGE.run(settings or sweep.settings, sweep.inputs, folder, context))


class Page(HTMLParser):
    """What a test wants to know of a page's structure."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.mistakes: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if found.get("id"):
            self.ids.append(str(found["id"]))
        if str(found.get("href", "")).startswith("#"):
            self.targets.append(str(found["href"])[1:])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.mistakes.append(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def table(built: Built, name: str) -> list[list[str]]:
    """The cells of a table on the page, row by row, as text."""
    body = built.html.partition(f'id="table-{name}"')[2].partition("</table>")[0].partition("<tbody>")[2]
    rows = re.findall(r"<tr.*?</tr>", body, re.DOTALL)
    return [[Page(cell).text for cell in re.findall(r"<td.*?</td>", row, re.DOTALL)] for row in rows]


def figure_of(built: Built, name: str) -> str:
    """A figure's caption, key and words, without its marks."""
    html = built.html
    start = html.index(f'<figure id="fig-{name}">')
    return Page(re.sub(r"<svg.*?</svg>", "", html[start : html.index("</figure>", start)], flags=re.DOTALL)).text
