"""Every number of the report as tables: one row a cell, layer, score, token. Written as Parquet and as CSV."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from pipeline.artifacts import evaluation, saes, steering
from pipeline.artifacts.checkpoint import read_curve
from pipeline.artifacts.scores import Scores, family_of
from pipeline.report.replicas import scored_by
from pipeline.report.scaling import fit_rows, offset_rows
from pipeline.report.study import Cell, Study

Rows = list[dict[str, Any]]
Tables = dict[str, Rows]
SCORING = ("interpret", "interpret_features")
NULLS = ("null_other", "null_shuffled", "null_empty")  # what chance scores
MADE_BY = {  # whose artifacts a table tells of; of scores, it follows from the family
    "curves": "pretrain",
    "domains": "evaluate",
    "layer_diagnostics": "evaluate",
    "next_words": "evaluate",
    "layer_statistics": "activations",
    "saes": "sae",
    "sae_densities": "sae",
    "steering_effects": "steer",
    "steering_doses": "steer",
    "steering_lossless": "steer",
}
CURVE_POINTS = 300  # a curve's points, at most, in the table and the figure


def all_tables(study: Study) -> Tables:
    """Every table by name; one without rows is left out."""
    tables: Tables = {
        "cells": [cell_row(cell) for cell in study.cells],
        "fits": fit_rows(study),
        "offsets": offset_rows(study),
        "curves": study.of_models(_each(study, "pretrain", curve_rows)),
        "text": text_rows(study),
        "domains": _each(study, "evaluate", lambda cell, made: evaluation.read_domains(made).to_pylist()),
        "layer_diagnostics": _each(study, "evaluate", lambda cell, made: evaluation.read_layers(made).to_pylist()),
        "next_words": _each(study, "evaluate", next_word_rows),
        "layer_scores": [
            *_each(study, "interpret", layer_score_rows),
            *_each(study, "interpret_features", layer_score_rows),
        ],
        "model_scores": [
            *_each(study, "interpret", model_score_rows),
            *_each(study, "interpret_features", model_score_rows),
        ],
        "layer_statistics": _each(study, "activations", layer_statistic_rows),
        "saes": _each(study, "sae", sae_rows),
        "sae_densities": _each(study, "sae", density_rows),
        "steering_effects": _each(study, "steer", lambda cell, made: steering.read_effects(made).to_pylist()),
        "steering_doses": _each(study, "steer", lambda cell, made: steering.read_doses(made).to_pylist()),
        "steering_lossless": _each(study, "steer", lossless_rows),
    }
    return {name: rows for name, rows in tables.items() if rows}


def each_once(study: Study, tables: Tables) -> Tables:
    """The tables without what they tell a second time: an artifact that several cells share stands under the first of them."""
    found = {name: study.once(MADE_BY[name], rows) if name in MADE_BY else rows for name, rows in tables.items()}
    for name in ("layer_scores", "model_scores"):
        rows = tables.get(name, [])
        by_stage = {stage: [row for row in rows if scored_by(row["family"]) == stage] for stage in SCORING}
        if rows:
            found[name] = [row for stage, own in by_stage.items() for row in study.once(stage, own)]
    distinct = {cell.name for cell in (*study.models, *study.earlier)}
    return found | {"cells": [row for row in tables["cells"] if row["cell"] in distinct]}


def write_tables(tables: Tables, folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, rows in tables.items():
        keys = list(dict.fromkeys(key for row in rows for key in row))
        rows = [{key: _flat(value) for key, value in row.items()} for row in rows]
        table = pa.table({key: pa.array([row.get(key) for row in rows]) for key in keys})
        table = pa.table(
            {key: table[key].cast(pa.float64()) if table[key].type == pa.null() else table[key] for key in keys}
        )
        pq.write_table(table, folder / f"{name}.parquet")
        pcsv.write_csv(table, folder / f"{name}.csv")


def _flat(value: Any) -> Any:
    """CSV knows no lists: they become `0 3 5`."""
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else value


def _each(study: Study, stage: str, rows_of: Any) -> Rows:
    return [
        {"cell": cell.name, **row}
        for cell in study.cells
        if stage in cell.artifacts
        for row in rows_of(cell, cell.artifacts[stage])
    ]


def cell_row(cell: Cell) -> dict[str, Any]:
    measured = cell.artifacts["evaluate"].summary if "evaluate" in cell.artifacts else {}
    return {
        "cell": cell.name,
        "architecture": cell.architecture,
        "series": cell.series,
        "n_layer": cell.model.n_layer,
        "d_model": cell.model.d_model,
        "seed": cell.seed,
        "n_params": cell.size.total_without_positions,
        "n_params_non_embedding": cell.size.non_embedding,
        "train_tokens": cell.train_tokens,
        "epochs": cell.epochs,
        "train_flops": cell.train_flops,
        "val_loss": cell.val_loss,
        "loss_note": cell.loss_note,
        "bits_per_byte": measured.get("bits_per_byte"),
        "fingerprint": cell.artifacts["pretrain"].fingerprint if "pretrain" in cell.artifacts else None,
        **cell.varying,
    }


def text_rows(study: Study) -> Rows:
    """What the tokens stage counted: a row a split and domain, and one of the whole split. `text` tells several texts apart."""
    counts = ("n_tokens", "n_bytes", "n_documents")
    rows: Rows = []
    for text, made in study.texts.items():
        named = {"text": text} if len(study.texts) > 1 else {}
        for split in (name for name in ("train", "val", "test") if name in made.summary):
            facts = made.summary[split]
            for domain, own in {"all": facts, **facts["domains"]}.items():
                rows.append({**named, "split": split, "domain": domain, **{name: own[name] for name in counts}})
    return rows


def curve_rows(cell: Cell, made: Any) -> Rows:
    """The training curve, thinned: `loss` is the mean over the steps since the row before; every evaluation is kept."""
    curve = read_curve(made)
    tokens, loss = curve["tokens"].to_numpy(), curve["loss"].to_numpy()
    val_loss = curve["val_loss"].to_pylist()
    stride = max(1, len(tokens) // CURVE_POINTS)
    rows: Rows = []
    since = 0
    for index in range(len(tokens)):
        if (index + 1) % stride == 0 or index == len(tokens) - 1 or val_loss[index] is not None:
            mean = float(np.mean(loss[since : index + 1]))
            rows.append({"tokens": int(tokens[index]), "loss": mean, "val_loss": val_loss[index]})
            since = index + 1
    return rows


def next_word_rows(cell: Cell, made: Any) -> Rows:
    return [
        {"prompt": sample["prompt"], "rank": rank, "token": word["token"], "probability": word["probability"]}
        for sample in evaluation.read_next_words(made)
        for rank, word in enumerate(sample["words"])
    ]


def layer_score_rows(cell: Cell, made: Any) -> Rows:
    scores = Scores(made)
    return [
        {"family": family_of(row["site"]), **row, "coverage": row["n_scored"] / row["n_neurons"], "judge": scores.judge}
        for row in scores.layers().to_pylist()
        if row["n_neurons"]
    ]


def model_score_rows(cell: Cell, made: Any) -> Rows:
    """A row a family and metric; its nulls are means over the layers that have them, of so many neurons."""
    told = {"judge": made.summary["judge"], "protocol": made.summary["protocol"]}
    layers = Scores(made).layers().to_pylist()
    rows: Rows = []
    for family, metrics in made.summary["families"].items():
        for metric, values in metrics.items():
            own = [row for row in layers if family_of(row["site"]) == family and row["metric"] == metric]
            nulls = {name: [row[name] for row in own if row[name] is not None] for name in NULLS}
            means = {name: float(np.mean(there)) if there else None for name, there in nulls.items()}
            counts = {f"n_{name}": sum(row[f"n_{name}"] for row in own) for name in NULLS}
            rows.append({"family": family, "metric": metric, **values, **means, **counts, **told})
    return rows


def sae_rows(cell: Cell, made: Any) -> Rows:
    """As measured, with the loss that each adds; `rare` is null where too few tokens were read to tell it from `dead`."""
    rows = saes.read_measures(made).to_pylist()
    for row in rows:
        row["delta_loss"] = row["loss_spliced"] - row["loss_clean"]
        row["rare"] = row["rare"] if row["n_tokens"] * saes.RARE_FREQUENCY >= 1 else None
    return rows


def lossless_rows(cell: Cell, made: Any) -> Rows:
    """As the steering artifact has them, with the held-out loss that each costs: none where every logit keeps its bits."""
    measured = (
        {row["site"]: row["delta_loss"] for row in sae_rows(cell, cell.artifacts["sae"])}
        if "sae" in cell.artifacts
        else {}
    )
    return [
        row
        | {
            "delta_loss": 0.0
            if row["max_logit_change"] == 0
            else measured.get(row["site"])
            if row["what"] == "splice"
            else None
        }
        for row in steering.read_lossless(made).to_pylist()
    ]


def density_rows(cell: Cell, made: Any) -> Rows:
    """How many features fire how often: by half decades of the share of tokens, without the dead ones."""
    n_tokens = {row["site"]: row["n_tokens"] for row in saes.read_measures(made).to_pylist()}
    table = saes.read_densities(made)
    rows: Rows = []
    for site, seen in n_tokens.items():
        fired = table.filter(pc.equal(table["site"], site))["n_fired"].to_numpy()
        decades = np.log10(fired[fired > 0] / seen)
        for bin_, features in zip(*np.unique(np.floor(2 * decades) / 2, return_counts=True), strict=True):
            rows.append({"site": site, "log10_share_from": float(bin_), "n_features": int(features)})
    return rows


def layer_statistic_rows(cell: Cell, made: Any) -> Rows:
    """Per layer: how sparse its code is, how peaked its neurons are, how many never fired."""
    columns = ["layer", "fraction_nonzero", "kurtosis", "maximum"]
    table = pq.read_table(made.file("neurons.parquet"), columns=columns)
    rows: Rows = []
    for layer in sorted(pc.unique(table["layer"]).to_pylist()):
        own = table.filter(pc.equal(table["layer"], layer))
        fractions = own["fraction_nonzero"].to_numpy()
        kurtosis = own["kurtosis"].to_numpy().astype(np.float64)
        finite = kurtosis[np.isfinite(kurtosis)]
        rows.append(
            {
                "layer": layer,
                "n_neurons": len(fractions),
                "n_tokens": made.summary["tokens"],  # that were read
                "active": float(fractions.mean()),
                "active_median": float(np.median(fractions)),
                "dead": float((fractions == 0).mean()),
                "kurtosis_median": float(np.median(finite)) if len(finite) else None,
            }
        )
    return rows
