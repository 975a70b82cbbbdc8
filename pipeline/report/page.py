"""The page: one HTML file that needs nothing else, from the study, its tables and its figures."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from pipeline.naming import flat
from pipeline.report.browser import browser
from pipeline.report.findings import Finding
from pipeline.report.study import ARCHITECTURES, Cell, Study
from pipeline.report.style import Figure
from pipeline.report.svg import panels, themed
from pipeline.report.tables import Tables
from pipeline.report.text import METRICS, amount, family_name, points, ranges, read_on, unit_kind

HERE = Path(__file__).parent


def write_page(path: Path, study: Study, tables: Tables, figures: Sequence[Figure], told: Sequence[Finding]) -> None:
    """Write `index.html`. Equal arguments give equal bytes."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"amount": amount, "points": points, "pack": packed, "ranges": ranges, "read_on": read_on}
    drawn = {figure.name: figure for figure in figures}
    text = environment.get_template("page.html.j2").render(
        study=study,
        report=study.settings.report,
        tables=tables,
        figures=drawn,
        panels={name: panels(figure) for name, figure in drawn.items()},
        themed=themed,
        findings=told,
        missing=missing(study),
        browser=browser(study),
        prompts=prompts(study, tables),
        score_table=score_table(study, tables),
        steering=steering(study, tables),
        settings_of=settings_of,
        architectures=ARCHITECTURES,
        metrics=METRICS,
        family_name=family_name,
        unit_kind=unit_kind,
        css=(HERE / "page.css").read_text("utf-8"),
        script=(HERE / "page.js").read_text("utf-8"),
    )
    path.write_text(text, encoding="utf-8")


def packed(value: Any) -> str:
    """Bytes, or anything as JSON, gzipped and in base64: the page unpacks it when it is looked at."""
    data = value if isinstance(value, bytes) else json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    return base64.b64encode(gzip.compress(data, 6, mtime=0)).decode("ascii")


def missing(study: Study) -> list[dict[str, Any]]:
    """What failed or was not run, reasons first: a failed stage, then what could not be made without it."""
    found = [
        {"cell": cell, "stage": stage, "reason": reason}
        for cell in study.cells
        for stage, reason in cell.missing.items()
    ]
    return sorted(found, key=lambda row: row["reason"].startswith("not run"))


def prompts(study: Study, tables: Tables) -> list[dict[str, Any]]:
    """Next words by prompt: [{"prompt", "cells": [{"cell", "words": [{"token", "probability"}]}]}]."""
    rows = tables.get("next_words", [])
    cells = {cell.name: cell for cell in study.cells}
    return [
        {
            "prompt": prompt,
            "cells": [
                {"cell": cells[name], "words": [row for row in rows if row["cell"] == name and row["prompt"] == prompt]}
                for name in dict.fromkeys(row["cell"] for row in rows)
            ],
        }
        for prompt in dict.fromkeys(row["prompt"] for row in rows)
    ]


def score_table(study: Study, tables: Tables) -> list[dict[str, Any]]:
    """The models' scores, one metric after the other, so that models stand below each other."""
    rows = [row | {"architecture": study.by_name[row["cell"]].architecture} for row in tables.get("model_scores", [])]
    return [row for metric in METRICS for row in rows if row["metric"] == metric]


def steering(study: Study, tables: Tables) -> list[dict[str, Any]]:
    """Edits by cell: what each promotes and suppresses, and the sample under it."""
    from pipeline.artifacts.steering import read_samples

    rows, found = tables.get("steering_effects", []), []
    named = {row["cell"] for row in rows}  # of cells that share their steering, the first
    for cell in (cell for cell in study.cells if "steer" in cell.artifacts and cell.name in named):
        samples = read_samples(cell.artifacts["steer"])
        edits = []
        for steered in samples["steered"]:
            own = [row for row in rows if row["cell"] == cell.name and row["edit"] == steered["edit"]]
            by_kind = {
                kind: [row for row in own if row["kind"] == kind] for kind in ("promoted", "suppressed", "likely")
            }
            edits.append(steered | by_kind)
        found.append({"cell": cell, "prompt": samples["prompt"], "plain": samples["plain"], "edits": edits})
    return found


def settings_of(cell: Cell) -> dict[str, dict[str, Any]]:
    """A cell's resolved configuration by section; what stands alone is under `cell`."""
    sections: dict[str, dict[str, Any]] = {"cell": {}}
    for key, value in cell.settings.items():
        if isinstance(value, dict):
            sections[key] = flat(value)
        else:
            sections["cell"][key] = value
    return {name: values for name, values in sections.items() if values}
