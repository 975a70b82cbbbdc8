"""Neurons for people: statistics of all of them, and a few of each layer with their excerpts.

Which few is stated, not picked: the best, the worst, the median by score, and some drawn by hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.records import NEURONS, Records
from pipeline.artifacts.scores import Scores, family_of
from pipeline.artifacts.tokens import TokenSplit
from pipeline.report.one_neuron import histogram, moments
from pipeline.report.study import Cell, Study
from pipeline.report.text import METRICS

TOP_TOKENS = 3  # of each neuron: the tokens at which it fired most
CHOICES = ("best", "worst", "median", "random")


@dataclass(frozen=True)
class Shown:
    """A neuron with excerpts: why it was chosen, what was said of it."""

    neuron: int
    why: str
    explanation: str | None
    moments: str
    histogram: str
    excerpts: list[
        dict[str, Any]
    ]  # {"start", "center", "ids": [...], "activations": [0..1 of the neuron's maximum here]}


@dataclass(frozen=True)
class Units:
    """The neurons of a cell (family `code`) or the features of its SAEs, with what was recorded and scored of them."""

    cell: Cell
    family: str
    records: Artifact
    scores: Artifact | None
    split: TokenSplit

    @cached_property
    def _records(self) -> Records:
        return Records(self.records)

    @cached_property
    def _statistics(self) -> pa.Table:
        columns = ["site", "layer", "neuron", "fraction_nonzero", "maximum"]
        return pq.read_table(self.records.file(NEURONS), columns=columns)

    @cached_property
    def sites(self) -> list[tuple[str, int, int]]:
        """(site, layer, neurons), by layer."""
        counts = self._statistics.group_by(["layer", "site"]).aggregate([([], "count_all")])
        rows = [(row["site"], row["layer"], row["count_all"]) for row in counts.to_pylist()]
        return sorted((row for row in rows if family_of(row[0]) == self.family), key=lambda row: (row[1], row[0]))

    @cached_property
    def _scores(self) -> pa.Table | None:
        return Scores(self.scores).neurons() if self.scores else None

    @cached_property
    def metrics(self) -> list[str]:
        there = set() if self._scores is None else set(pc.unique(self._scores["metric"]).to_pylist())
        return [metric for metric in METRICS if metric in there]

    def site_scores(self, site: str) -> dict[str, dict[str, np.ndarray]]:
        """By metric: `score` (neurons,), NaN where there is none, and `explanation` (neurons,)."""
        if self._scores is None:
            return {}
        n_neurons = next(n for name, _, n in self.sites if name == site)
        of_site = self._scores.filter(pc.equal(self._scores["site"], site))
        found = {}
        for metric in self.metrics:
            own = of_site.filter(pc.equal(of_site["metric"], metric))
            score, text = np.full(n_neurons, np.nan), np.full(n_neurons, None, object)
            place = own["neuron"].to_numpy()
            score[place] = own["score"].to_numpy()
            text[place] = own["explanation"].to_numpy()
            found[metric] = {"score": score, "explanation": text}
        return found

    def statistics(self, site: str) -> dict[str, np.ndarray]:
        """`fraction_nonzero`, `maximum` (neurons,) of a site, in the order of neurons."""
        table = self._statistics.filter(pc.equal(self._statistics["site"], site)).sort_by("neuron")
        return {name: table[name].to_numpy() for name in ("fraction_nonzero", "maximum")}

    def top_tokens(self, site: str, n_neurons: int) -> np.ndarray:
        """The first different tokens at which each neuron fired most, (neurons, TOP_TOKENS), -1 where there are fewer."""
        columns = ["neuron", "kind", "rank", "start", "center"]
        table = top_of(self._records.excerpt_rows(site, self._records.longest(), columns), 8)
        neuron, rank = table["neuron"].to_numpy(), table["rank"].to_numpy().astype(np.int64)
        tokens = self.val_ids[table["start"].to_numpy() + table["center"].to_numpy()].astype(np.int64)
        order = np.lexsort((rank, tokens, neuron))
        first = np.ones(len(order), bool)
        first[1:] = (neuron[order][1:] != neuron[order][:-1]) | (tokens[order][1:] != tokens[order][:-1])
        kept = order[first]
        kept = kept[np.lexsort((rank[kept], neuron[kept]))]
        place = np.arange(len(kept)) - np.searchsorted(neuron[kept], neuron[kept])
        found = np.full((n_neurons, TOP_TOKENS), -1, np.int64)
        within = place < TOP_TOKENS
        found[neuron[kept][within], place[within]] = tokens[kept][within]
        return found

    @cached_property
    def val_ids(self) -> np.ndarray:
        return self.split.read(0, self.split.n_tokens)

    def chosen(self, site: str, n_neurons: int, count: int, scores: np.ndarray) -> list[tuple[int, str]]:
        """About `count` neurons of a site with the reason of each, a quarter a reason; by hash where there is no score."""
        ranked = np.flatnonzero(~np.isnan(scores))
        ranked = ranked[np.lexsort((ranked, -scores[ranked]))]
        each = -(-count // len(CHOICES))
        middle = max(0, len(ranked) // 2 - each // 2)
        by_hash = sorted(
            range(n_neurons), key=lambda n: hashlib.sha256(f"{self.cell.name}/{site}/{n}".encode()).digest()
        )
        picks: dict[str, Any] = {
            "best": ranked[:each],
            "worst": ranked[::-1][:each],
            "median": ranked[middle : middle + each],
            "random": by_hash,
        }
        found: dict[int, str] = {}
        for why in CHOICES:
            new = [int(n) for n in picks[why] if int(n) not in found]
            found |= dict.fromkeys(new[: each if len(ranked) else count], why)
        return list(found.items())[:count]

    def shown(self, site: str, n_neurons: int, count: int, n_excerpts: int) -> list[Shown]:
        """The chosen neurons of a site with their strongest excerpts."""
        nothing = {"score": np.full(n_neurons, np.nan), "explanation": np.full(n_neurons, None, object)}
        scores = next(iter(self.site_scores(site).values()), nothing)
        chosen = self.chosen(site, n_neurons, count, scores["score"])
        neurons = [neuron for neuron, _ in chosen]
        columns = ["neuron", "kind", "rank", "start", "center", "activations"]
        table = top_of(self._records.excerpt_rows(site, self._records.longest(), columns, neurons), n_excerpts)
        table = table.filter(pc.is_in(table["neuron"], pa.array(neurons, pa.int32())))
        rows = sorted(table.to_pylist(), key=lambda row: (row["neuron"], row["rank"]))
        statistics = self._records.statistics(site).take(neurons).to_pylist()
        return [
            Shown(
                neuron,
                why,
                scores["explanation"][neuron],
                moments(told),
                histogram(told["histogram"]),
                self._excerpts([row for row in rows if row["neuron"] == neuron]),
            )
            for (neuron, why), told in zip(chosen, statistics, strict=True)
        ]

    def _excerpts(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        maximum = max((max(row["activations"], default=0.0) for row in rows), default=0.0) or 1.0
        return [
            {
                "start": row["start"],
                "center": row["center"],
                "ids": self.split.read(row["start"], len(row["activations"])).tolist(),
                "activations": [round(max(0.0, value) / maximum, 3) for value in row["activations"]],
            }
            for row in rows
        ]


def top_of(excerpts: pa.Table, count: int) -> pa.Table:
    """The first `count` top excerpts of every neuron."""
    return excerpts.filter(pc.and_(pc.equal(excerpts["kind"], "top"), pc.less(excerpts["rank"], count)))


def all_units(study: Study) -> Iterator[Units]:
    """Neurons of every cell, then the features of its SAEs, where they were recorded; what cells share, once."""
    splits = {text: TokenSplit(made, "val") for text, made in study.texts.items()}
    seen = set()
    for cell in (cell for cell in study.cells if cell.tokens):
        for records, scores in (("activations", "interpret"), ("features", "interpret_features")):
            own = cell.made_of(scores if scores in cell.artifacts else records), scores
            if records in cell.artifacts and own not in seen:
                seen.add(own)
                made = cell.artifacts[records]
                sites = pq.read_table(made.file("neurons.parquet"), columns=["site"])["site"].cast(pa.string())
                for family in dict.fromkeys(family_of(site) for site in pc.unique(sites).to_pylist()):
                    yield Units(cell, family, made, cell.artifacts.get(scores), splits[cell.text])
