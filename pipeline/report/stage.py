"""Stage `report`: everything a sweep made, as one page, figures and tables.

The report is a pure function of the artifacts and of what is missing: no clock, no throughput. Provenance (when, where, with
which versions) is quoted from the manifests in the settings of each cell, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.artifacts.artifact import Artifact
from pipeline.config import ReportConfig
from pipeline.stage import Context, Stage, Summary


@dataclass(frozen=True)
class Outcome:
    """What became of one planned cell."""

    cell: str
    settings: dict[str, Any]  # its whole resolved configuration
    missing: dict[str, str] = field(default_factory=dict)  # stage -> why it has no artifact
    tokens: str = "tokens"  # the step of the text that it reads


@dataclass(frozen=True)
class ReportSettings:
    name: str  # of the sweep
    report: ReportConfig
    outcomes: tuple[Outcome, ...] = ()


def run(settings: ReportSettings, inputs: Mapping[str, Artifact], out_folder: Path, context: Context) -> Summary:
    """`inputs` are named `<cell>/<stage>`; each cell's text as its `Outcome.tokens` says."""
    from pipeline.report.figures import all_figures
    from pipeline.report.findings import findings
    from pipeline.report.page import write_page
    from pipeline.report.study import gather
    from pipeline.report.tables import all_tables, each_once, write_tables

    study = gather(settings, inputs)
    tables = all_tables(study)
    write_tables(tables, out_folder / "tables")
    shown = each_once(study, tables)
    figures = all_figures(study, shown)
    progress = context.progress(len(figures) + 1, "figures")
    for done, figure in enumerate(figures, 1):
        figure.write(out_folder / "figures")
        progress.update(done)
    told = findings(study, tables)
    write_page(out_folder / "index.html", study, shown, figures, told)
    progress.update(len(figures) + 1)
    return {
        "cells": len(study.cells),
        "missing": sum(len(cell.missing) for cell in study.cells),
        "findings": [finding.plain for finding in told],
    }


STAGE = Stage("report", 4, "sweep", (), ReportSettings, run)
