"""The page and its tables: whole, safe, self-contained, the same every time."""

from __future__ import annotations

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv as pcsv
import pyarrow.parquet as pq
import pytest

from pipeline.artifacts.token_shards import ShardWriter
from pipeline.report.figures_edits import steering_effects
from pipeline.report.neurons import all_units
from pipeline.report.page import HERE
from pipeline.report.study import gather
from pipeline.report.tables import all_tables
from tests.report_world import Built, Page, build, figure_of, table
from tests.synthetic_sweep import SyntheticSweep, fresh_store

HOSTILE = '</script><img src=x onerror="window.hacked=1">&'


@pytest.fixture(scope="module")
def page(built_report: Built) -> Page:
    return Page(built_report.html)


def test_the_page_is_well_formed_and_its_links_lead_somewhere(page: Page) -> None:
    assert page.mistakes == []
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert set(page.targets) <= set(page.ids)


def test_the_page_needs_nothing_else(built_report: Built, page: Page) -> None:
    loaded = [
        a.get("src") or a.get("href") for tag, a in page.tags if tag in ("script", "img", "link", "iframe", "source")
    ]
    assert [name for name in loaded if name and not name.startswith("data:")] == []
    assert "http://" not in built_report.html.replace("http://www.w3.org/", "")
    assert "https://" not in built_report.html
    assert "@import" not in built_report.html
    assert not re.search(r"url\((?!#)", built_report.html)


def test_what_is_missing_stands_above_the_answer(built_report: Built, page: Page) -> None:
    text = page.text
    assert text.index("3 steps are missing") < text.index("validation loss, nats a token, CRATE : GPT-2")
    assert "failed: out of memory" in text
    assert built_report.summary["missing"] == 3


def test_every_number_of_a_model_leads_to_its_settings_and_fingerprint(built_report: Built, page: Page) -> None:
    rows = re.findall(
        r'<td class="num"[^>]*>(?:<a href="#cell-([^"]+)"[^>]*>)?', built_report.html.partition('id="table-cells"')[2]
    )
    assert rows
    names = {outcome.cell for outcome in built_report.sweep.outcomes}
    assert {name for name in rows if name} == names
    for name in names:
        assert built_report.sweep.inputs[f"{name}/pretrain"].fingerprint in page.text


def test_the_judge_stands_wherever_scores_are_shown(page: Page) -> None:
    assert page.text.count("token table (offline, no LLM)") >= 3
    assert "not comparable with published ones" in page.text


def test_figures_have_words_and_files(built_report: Built, page: Page) -> None:
    drawn = {str(a["id"]).removeprefix("fig-") for tag, a in page.tags if tag == "figure"}
    for ending in ("png", "svg"):
        assert {path.stem for path in (built_report.folder / "figures").glob(f"*.{ending}")} == drawn
    assert page.text.count("In words") == len(drawn) >= 12
    labels = [a for tag, a in page.tags if a.get("class") == "drawing"]
    assert all(a.get("role") == "group" and a.get("aria-label") for a in labels)


def test_marks_carry_their_values_as_links(page: Page) -> None:
    marks = [a for tag, a in page.tags if a.get("class") == "mark"]
    assert all(a.get("data-tip") and a.get("aria-label") == a["data-tip"] for a in marks)
    assert any(str(a["data-tip"]).startswith("crate-3l: ") for a in marks)
    assert any("Bai & Ma 2025, GPT-2 2L layer 1: 4.1" in str(a["data-tip"]) for a in marks)


def test_lossless_and_lossy_stand_side_by_side(built_report: Built) -> None:
    """Of both architectures: neurons of neither are reconstructed."""
    assert "CRATE's own code needs no" not in figure_of(built_report, "autoencoders")
    rows = table(built_report, "lossless")
    assert ["crate-1l", "code-l0", "7", "clamp", "0", "0", "0", "lossless"] in rows
    assert ["crate-1l", "code-l0-1x", "all", "splice", "0.31", "0.02", "+0.1000", "lossy"] in rows


def test_an_offset_without_an_interval_has_no_sign(built_report: Built) -> None:
    rows = table(built_report, "offsets")
    assert rows and all("no interval" in row[-1] and not row[-2].startswith(("+", "-")) for row in rows)


def test_the_figure_of_effects_shows_tokens_with_their_changes(page: Page) -> None:
    tips = [str(a["data-tip"]) for tag, a in page.tags if a.get("class") == "mark"]
    said = "logit 0.00 to 2.00, probability 0.01 to 0.3"
    assert f"crate-1l L0 neuron 7: clamp 8, “ pro0”: {said}" in tips
    assert "“ pro0” +2" in page.text and "“ sup3”" in page.text


def test_models_take_turns_in_the_figure_of_effects(built_report: Built) -> None:
    study = gather(built_report.sweep.settings, built_report.sweep.inputs)
    row = {"site": "code-l0-4x", "layer": 0, "neuron": 3, "how": "ablate", "value": 0.0, "kind": "promoted"}
    row |= {"text": "中$x_$\n", "logit_before": 0.0, "logit_after": 1.0}
    rows = [row | {"cell": cell, "edit": edit} for cell in ("crate-1l", "gpt2-1l") for edit in range(20)]
    figure = steering_effects(study, rows)
    assert figure is not None
    assert "crate-1l L0 feature 3: ablate: “\\u4e2d$x_$\\n” +1" in figure.alt
    assert figure.alt.count("crate-1l") == figure.alt.count("gpt2-1l") == 6
    assert steering_effects(study, []) is None


def test_shown_neurons_carry_moments_and_histogram(built_report: Built) -> None:
    packed = re.findall(r'data-shown="([^"]+)"', built_report.html)
    shown = [entry for text in packed for entry in json.loads(gzip.decompress(base64.b64decode(text)))]
    assert shown and all("skewness 4, kurtosis " in entry["moments"] for entry in shown)
    assert {entry["histogram"].partition(",")[0] for entry in shown} == {"0 % below 0"}


def test_all_next_words_are_shown(built_report: Built) -> None:
    words = built_report.html.partition('id="words"')[2].partition("</section>")[0]
    assert all(part.count("<li") == 10 for part in words.split("<ol>")[1:])


def test_scores_stand_beside_what_chance_scores_and_name_their_protocol(built_report: Built, page: Page) -> None:
    row = next(row for row in table(built_report, "scores") if row[:3] == ["gpt2-2l", "neurons", "Anthropic"])
    assert row[-3:] == ["0.1 of 984", "0.0 of 984", "-"]
    assert "Protocol: corrected" in page.text


def test_the_text_is_counted_by_domain(built_report: Built, page: Page) -> None:
    rows = table(built_report, "text")
    for split in ("train", "val"):
        whole, *domains = [row for row in rows if row[0] == split]
        assert whole[1] == "all" and len(domains) >= 2
        for column in (2, 3, 4):
            assert number(whole[column]) == sum(number(row[column]) for row in domains)
    assert "41 documents were read" in page.text and "2 taken out" in page.text and "1 not JSON" in page.text


def number(text: str) -> int:
    return int(text.replace(",", ""))


def test_what_is_dead_or_sparse_is_so_on_a_number_of_tokens(page: Page) -> None:
    assert re.search(r"not zero at a token, and of those that always were, over [\d.]+[kM]? tokens", page.text)
    assert (
        "Both and the variance are over 16.4k tokens of the held-out text, losses and KL over 16.4k tokens" in page.text
    )


def test_dead_neurons_and_the_features_densities_are_drawn(built_report: Built, page: Page) -> None:
    tips = [str(a["data-tip"]) for tag, a in page.tags if a.get("class") == "mark"]
    assert any("(dead neurons, %)" in tip for tip in tips)
    assert "crate-1l code-l0-1x: 2 features fire on 3.2 % of tokens or more" in tips
    densities = all_tables(gather(built_report.sweep.settings, built_report.sweep.inputs))["sae_densities"]
    assert [row["n_features"] for row in densities if row["cell"] == "crate-1l"] == [1, 2]


def test_published_scores_of_features_stand_at_our_features_bars(page: Page) -> None:
    tips = [str(a["data-tip"]) for tag, a in page.tags if a.get("class") == "mark"]
    assert "GPT-2 SAE 16x, Bai & Ma 2025, 2L layer 1: 10.7" in tips


def test_the_autoencoders_table_says_how_much_loss_they_cost(built_report: Built) -> None:
    assert "+0.1000" in table(built_report, "saes")[0]


def test_rare_features_are_not_told_from_dead_ones_on_few_tokens(built_report: Built) -> None:
    rows = pq.read_table(built_report.folder / "tables/saes.parquet").to_pylist()
    assert rows and all(row["n_tokens"] < 100_000 and row["rare"] is None and row["dead"] is not None for row in rows)


def test_tables_lie_beside_the_page_in_both_formats(built_report: Built) -> None:
    folder = built_report.folder / "tables"
    tables = all_tables(gather(built_report.sweep.settings, built_report.sweep.inputs))
    assert (
        {path.stem for path in folder.glob("*.csv")} == {path.stem for path in folder.glob("*.parquet")} == set(tables)
    )
    for name, rows in tables.items():
        parquet, csv = pq.read_table(folder / f"{name}.parquet"), pcsv.read_csv(folder / f"{name}.csv")
        assert parquet.num_rows == csv.num_rows == len(rows)
        assert parquet.column_names == csv.column_names
    losses = pq.read_table(folder / "cells.parquet")["val_loss"].to_pylist()
    assert losses == [
        built_report.sweep.inputs[f"{cell}/evaluate"].summary["val_loss"] for cell in cells_in_order(built_report)
    ]


def cells_in_order(built: Built) -> list[str]:
    return [cell.name for cell in gather(built.sweep.settings, built.sweep.inputs).cells]


def test_equal_artifacts_make_equal_pages(built_report: Built, tmp_path: Path) -> None:
    again = build(built_report.sweep, tmp_path / "again")
    for path in sorted(built_report.folder.rglob("*")):
        if path.is_file():
            assert (again.folder / path.relative_to(built_report.folder)).read_bytes() == path.read_bytes(), path.name


def test_a_sweep_in_which_everything_failed_still_has_a_report(tmp_path: Path) -> None:
    sweep = SyntheticSweep(fresh_store(tmp_path / "store"))
    stages = ("pretrain", "evaluate", "activations", "interpret", "steer")
    sweep.add("crate", 1, missing=dict.fromkeys(stages, f"failed: {HOSTILE}"))
    del sweep.inputs["tokens"]
    built = build(sweep, tmp_path / "report")
    page = Page(built.html)
    assert page.mistakes == []
    assert "5 steps are missing" in page.text
    assert HOSTILE in page.text
    assert HOSTILE not in built.html


def test_texts_from_models_and_people_are_only_texts(tmp_path: Path) -> None:
    sweep = SyntheticSweep(fresh_store(tmp_path / "store"), total_tokens=4096, top=1, random=1, d_model=8, n_head=1)
    sweep.hostile = HOSTILE
    sweep.add("gpt2", 1)
    settings = sweep.settings
    report = settings.report.model_copy(update={"title": HOSTILE})
    built = build(sweep, tmp_path / "report", type(settings)(settings.name, report, settings.outcomes))
    page = Page(built.html)
    assert page.mistakes == []
    assert page.text.count(HOSTILE) >= 3  # title, prompt, next word, sample, explanation
    assert "<img" not in built.html
    assert HOSTILE not in built.html


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["ink", "muted", "crate", "gpt2", "accent", "lost"])
def test_text_stands_out_from_its_background(scheme: int, name: str) -> None:
    """WCAG AA: 4.5 to 1 for text."""
    block = re.findall(r":root \{(.*?)\}", (HERE / "page.css").read_text("utf-8"), re.DOTALL)[scheme]
    colours = {
        key: (value if len(value) == 7 else "#" + "".join(2 * c for c in value[1:]))
        for key, value in re.findall(r"--([\w-]+): (#\w+)", block)
    }
    for background in ("paper", "card"):
        light, dark = sorted((luminance(colours[name]), luminance(colours[background])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, f"{name} on {background}"


def test_each_text_of_a_grid_is_told_and_each_cell_reads_its_own(tmp_path: Path) -> None:
    """Two texts, of other entropies and other tokens: no number of the one stands for a cell of the other."""
    sweep = SyntheticSweep(fresh_store(tmp_path / "store"), total_tokens=4096, top=1, random=1, d_model=8, n_head=1)

    def other_text(folder: Path) -> dict[str, Any]:
        writer = ShardWriter(folder / "val" / "00000")
        writer.add(np.full(100_000, 11, np.uint16), 300_000, "dots", "made-up", 1)  # of one token, whatever is read
        writer.close()
        counts = {"n_tokens": 100_000, "n_documents": 1, "n_bytes": 300_000}
        told = {"documents_in": 7, "duplicates": 0, "duplicates_dropped": 0, "bad": {}, "unigram_entropy": 50.0}
        return told | {"val": counts | {"domains": {"dots": counts}}}

    sweep.inputs["tokens-val_fraction0.6"] = sweep.publish("tokens", "other", other_text)
    sweep.add("crate", 1)
    other = sweep.add("crate", 1, text="tokens-val_fraction0.6", tokens__val_fraction=0.6)
    study = gather(sweep.settings, sweep.inputs)
    assert {cell.name: cell.unigram_entropy for cell in study.cells} == {"crate-1l": 6.93, other: 50.0}
    assert study.unigram_entropy is None and len({cell.series for cell in study.cells}) == 2
    rows = all_tables(study)["text"]
    assert {row["text"] for row in rows} == {"tokens", "tokens-val_fraction0.6"}
    assert [row["n_tokens"] for row in rows if (row["text"], row["domain"]) == ("tokens-val_fraction0.6", "all")] == [
        100_000
    ]
    ids = {units.cell.name: set(units.val_ids.tolist()) for units in all_units(study)}
    assert ids[other] == {11} and len(ids["crate-1l"]) > 100
    built = build(sweep, tmp_path / "report")
    page = Page(built.html)
    assert page.mistakes == [] and "7 documents were read" in page.text and "41 documents were read" in page.text
    assert {row[0] for row in table(built, "text")} == {"tokens", "tokens-val_fraction0.6"}
