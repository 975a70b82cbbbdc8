"""What the page's neuron browser holds: numbers of every neuron as packed columns, and excerpts of the shown few."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.artifacts.vocabulary import token_strings
from pipeline.report.neurons import TOP_TOKENS, Units, all_units
from pipeline.report.pairs import deepest_pair
from pipeline.report.study import ARCHITECTURES, Study
from pipeline.report.text import METRICS, family_name, is_of_autoencoder

NO_SCORE, NO_TOKEN = -32768, 65535
GALLERY = 2  # neurons an architecture that stand in the page itself, for print and for pages without scripts


@dataclass(frozen=True)
class UnitPage:
    """The units of one cell and family: `head` describes `columns`, `shown` has the excerpts."""

    head: dict[str, Any]
    columns: bytes  # int16 scores a metric, uint16 active share, uint16 top tokens, float32 maxima; all layers one after another
    shown: list[dict[str, Any]]


@dataclass(frozen=True)
class Browser:
    pages: list[UnitPage]
    n_units: int  # neurons and features; those that were read in several ways count once
    vocabulary: dict[int, str]  # of every token id that occurs
    gallery: list[dict[str, Any]]


def browser(study: Study) -> Browser:
    pages, used, counts = [], set(), {}  # type: list[UnitPage], set[int], dict[tuple[str, str], int]
    for units in all_units(study):
        page, tokens = unit_page(study, units)
        pages.append(page)
        used |= tokens
        of = "sae" if is_of_autoencoder(units.family) else "pretrain"
        counts.setdefault((units.cell.made_of(of), units.family), sum(page.head["neurons"]))
    strings = token_strings() if used else []
    vocabulary = {token: strings[token] if token < len(strings) else f"<{token}>" for token in sorted(used)}
    return Browser(pages, sum(counts.values()), vocabulary, gallery(study, pages))


def unit_page(study: Study, units: Units) -> tuple[UnitPage, set[int]]:
    """The page of one family of one cell, and the token ids on it."""
    report = study.settings.report
    columns: dict[str, list[np.ndarray]] = {}
    shown, used = [], set()
    for site, layer, n_neurons in units.sites:
        scores, statistics, tokens = units.site_scores(site), units.statistics(site), units.top_tokens(site, n_neurons)
        for metric in units.metrics:
            columns.setdefault(metric, []).append(_small(scores[metric]["score"]))
        columns.setdefault("active", []).append(np.round(65535 * statistics["fraction_nonzero"]).astype("<u2"))
        columns.setdefault("tokens", []).append(np.where(tokens < 0, NO_TOKEN, tokens).astype("<u2").reshape(-1))
        columns.setdefault("maximum", []).append(statistics["maximum"].astype("<f4"))
        used |= set(np.unique(tokens[tokens >= 0]).tolist())
        for neuron in units.shown(site, n_neurons, report.neurons_per_layer, report.excerpts):
            by_metric = {
                m: None if np.isnan(v["score"][neuron.neuron]) else round(v["score"][neuron.neuron], 4)
                for m, v in scores.items()
            }
            shown.append(
                {
                    "layer": layer,
                    **neuron.__dict__,
                    "scores": by_metric,
                    "active": float(statistics["fraction_nonzero"][neuron.neuron]),
                }
            )
            used |= {token for excerpt in neuron.excerpts for token in excerpt["ids"]}
    head = {
        "cell": units.cell.name,
        "family": units.family,
        "label": f"{units.cell.name}, {family_name(units.family)}",
        "architecture": units.cell.architecture,
        "metrics": units.metrics,
        "layers": [layer for _, layer, _ in units.sites],
        "neurons": [n for _, _, n in units.sites],
        "topTokens": TOP_TOKENS,
    }
    order = [*units.metrics, "active", "tokens", "maximum"]
    data = b"".join(np.concatenate(columns[name]).tobytes() for name in order if name in columns)
    return UnitPage(head, data, shown), used


def _small(scores: np.ndarray) -> np.ndarray:
    """Correlations in thousandths, as int16."""
    return np.where(np.isnan(scores), NO_SCORE, np.round(1000 * np.nan_to_num(scores))).astype("<i2")


def gallery(study: Study, pages: list[UnitPage]) -> list[dict[str, Any]]:
    """The best-scored shown neurons of a model of each architecture: of two that are alike, else of the deepest of each."""
    found, pages = [], [page for page in pages if page.head["family"] == "code"]
    cells = {page.head["cell"]: study.by_name[page.head["cell"]] for page in pages}
    pair = deepest_pair([cell for cell in cells.values() if cell.is_last], "scores")
    alike = (pair.crate[0].name, pair.gpt2[0].name) if pair else tuple(cells)
    for architecture, name in ARCHITECTURES.items():
        own = [page for page in pages if page.head["architecture"] == architecture and page.head["cell"] in alike]
        if not own:
            continue
        deepest = max(own, key=lambda page: (cells[page.head["cell"]].is_last, cells[page.head["cell"]].model.n_layer))
        metric = next(iter(deepest.head["metrics"]), None)
        ranked = sorted(deepest.shown, key=lambda neuron: -(neuron["scores"].get(metric) or -1.0))
        found.append(
            {
                "architecture": architecture,
                "name": name,
                "alike": pair.equal if pair else "",
                "head": deepest.head,
                "metric": METRICS.get(metric or "", ""),
                "metric_key": metric,
                "neurons": ranked[:GALLERY],
            }
        )
    return found
