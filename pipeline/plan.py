"""`--plan`: what would be kept and made and why, how large and how long, before anything is spent."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict, replace
from typing import Any

from rich.console import Console
from rich.table import Table

from crate_model.flops import count_parameters, six_n_flops_per_token, train_flops_per_token
from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.store import Store
from pipeline.config import RuntimeConfig
from pipeline.config_load import Cell
from pipeline.dag import Plan, stage_in, training_flops, why_made
from pipeline.forecast.assumed import CORES, Assumed
from pipeline.forecast.room import ZERO_STAGES, gpu_bytes, stored_bytes
from pipeline.forecast.sweep import forecast
from pipeline.forecast.table import as_json
from pipeline.interpret.estimate import judge_plan
from pipeline.progress import amount, duration
from pipeline.tokens.estimate import estimate

JUDGED = ("interpret", "interpret_features")


def plan_rows(plan: Plan, store: Store, kept: dict[str, Artifact], assumed: Assumed) -> dict[str, Any]:
    """The plan as JSON: `cells` (one object a model), `steps` (what is kept or made, and why), `tokens` (the first text),
    `texts` (each, by its step), and for the machine that is assumed the `forecast` and the `totals` of what is yet to be made.
    """
    texts = {
        name: estimate(plan.config_of(step).tokens, os.cpu_count() or 1, kept.get(name))
        for name, step in plan.steps.items()
        if step.stage.name == "tokens"
    }
    loaded = plan.loaded
    if assumed.device == CORES:  # each is a worker of its own
        loaded = replace(loaded, config=loaded.config.model_copy(update={"runtime": RuntimeConfig()}))
    text_bytes = {name: _text_bytes(text) for name, text in texts.items()}
    found = forecast(loaded, assumed.machine, assumed.rates, kept, text_bytes)
    rate = assumed.machine.peak_flops * assumed.rates.train_utilisation
    made_by = plan.made_by
    cells = [
        _cell_row(plan, cell, kept, rate, found.workers_per_cell)
        | {"epochs": _epochs(cell, texts[plan.texts[cell.name]])}
        for cell in plan.cells
    ]
    steps = [
        {
            "name": name,
            "fingerprint": step.fingerprint,
            "status": "kept" if name in kept else "make" if made_by[name] == name else "shared",
            "why": "" if name in kept else why_made(step, store) if made_by[name] == name else f"is {made_by[name]}",
        }
        for name, step in plan.steps.items()
    ]
    return {
        "name": plan.name,
        "points": plan.points_told,
        "store": store.place,
        "assumed": assumed.said,
        "device": assumed.device,
        "training_flops_per_second": rate,
        "tokens": next(iter(texts.values())),
        "texts": texts,
        "cells": cells,
        "steps": steps,
        "forecast": as_json(found),
        "totals": _totals(cells, sum(text["stored_bytes"] for name, text in texts.items() if name not in kept)),
    }


def _cell_row(plan: Plan, cell: Cell, kept: dict[str, Artifact], rate: float, workers: int) -> dict[str, Any]:
    config, model, names = cell.config, cell.config.model, [step.name for step in plan.of_cell(cell.name)]
    made = [name for name in names if name not in kept]
    to_make = [name.partition("/")[2] for name in made]
    own = [name.partition("/")[2] for name in made if plan.made_by[name] == name]  # and not an equal cell's
    stored, windows = stored_bytes(config), config.runtime.micro_batch or 1
    precision = config.pretrain.precision
    return {
        "name": cell.name,
        "architecture": model.architecture,
        "n_layer": model.n_layer,
        "d_model": model.d_model,
        **count_parameters(model).as_told,
        "train_flops_per_token": train_flops_per_token(model),
        "six_n_flops_per_token": six_n_flops_per_token(model),
        "train_tokens": config.pretrain.tokens_seen,
        "train_flops": training_flops(cell),
        "training_seconds": training_flops(cell) / rate if "pretrain" in own else 0.0,
        "gpu_bytes": {f"zero_{n}": gpu_bytes(model, precision, n, workers, windows) for n in ZERO_STAGES},
        "judge": asdict(judge_plan(config)) if any(stage in JUDGED for stage in own) else None,
        "disk_bytes": sum(stored[stage] for stage in own if stage in stored),
        "training_checkpoint_bytes": stored["training_checkpoints"] if "pretrain" in own else 0,
        "status": "kept" if not made else "make" if len(made) == len(names) else "partly made",
        "to_make": to_make,
        "shared": [stage for stage in to_make if stage not in own],
    }


def _epochs(cell: Cell, text: dict[str, Any]) -> float | None:
    """How often a training would see its text: above 1, tokens are repeated. None where that is not known, or no training is."""
    config = cell.config
    if "splits" in text:
        there = text["splits"]["train"]["n_tokens"]
    else:  # files of their own for val are in the estimate, too
        there = 0 if config.tokens.val else text["tokens"] * (1 - config.tokens.val_fraction)
    return config.pretrain.tokens_seen / there if there and not config.pretrain.checkpoint else None


def _text_bytes(text: dict[str, Any]) -> int:
    return text.get("text_bytes") or sum(split["n_bytes"] for split in text.get("splits", {}).values())


def _totals(cells: list[dict[str, Any]], tokens_bytes: int) -> dict[str, Any]:
    trained = [cell for cell in cells if "pretrain" in set(cell["to_make"]) - set(cell["shared"])]
    judges = [cell["judge"] for cell in cells if cell["judge"]]
    most = max((cell["training_checkpoint_bytes"] for cell in cells), default=0)
    return {
        "train_flops": sum(cell["train_flops"] for cell in trained),
        "disk_bytes": sum(cell["disk_bytes"] for cell in cells) + tokens_bytes,
        "training_checkpoint_bytes": most,
        "judge_calls": sum(j["explanations"] + j["simulations"] + j["simulations_of_controls"] for j in judges),
        "judge_tokens_in": sum(judge["tokens_in"] for judge in judges),
        "judge_tokens_out": sum(judge["tokens_out"] for judge in judges),
        "judge_price": sum(judge["price"] for judge in judges),
        "judged_by_llm": any(judge["by_llm"] for judge in judges),
    }


def print_plan(rows: dict[str, Any], console: Console) -> None:
    table = Table(title=f"Plan of {rows['name']}", title_justify="left")
    sizes = (
        "parameters",
        "non-embedding",
        "FLOPs a token",
        "6N says",
        "tokens",
        "epochs",
        "training",
        "GB, ZeRO 0 to 3",
    )
    for column in ("cell", *sizes, "status"):
        table.add_column(column, justify="left" if column in ("cell", "status") else "right")
    for cell in rows["cells"]:
        status = cell["status"] + ("" if cell["status"] != "partly made" else ": makes " + ", ".join(cell["to_make"]))
        status += f" ({', '.join(cell['shared'])} with a cell above)" if cell["shared"] else ""
        table.add_row(
            cell["name"],
            f"{cell['n_params']:,}",
            f"{cell['n_params_non_embedding']:,}",
            amount(cell["train_flops_per_token"]),
            amount(cell["six_n_flops_per_token"]),
            amount(cell["train_tokens"]),
            "-" if cell["epochs"] is None else f"{cell['epochs']:.2g}",
            duration(cell["training_seconds"]) if cell["training_seconds"] else "-",
            " ".join(f"{n_bytes / 1e9:.2g}" for n_bytes in cell["gpu_bytes"].values()),
            status,
        )
    console.print(table)
    if rows["points"]:
        console.print(rows["points"], highlight=False)
    made = [step for step in rows["steps"] if step["status"] == "make"]
    counts = Counter(step["status"] for step in rows["steps"])
    shared = f", {counts['shared']} shared with other cells" if counts["shared"] else ""
    console.print(
        f"{counts['kept']} of {len(rows['steps'])} steps are kept, {counts['make']} would be made{shared}, then the report."
    )
    reasons: dict[str, list[str]] = {}
    for step in made:
        reasons.setdefault(step["why"], []).append(step["name"])
    for why, names in reasons.items():
        console.print(f"  {why}: {_by_stage(names)}", highlight=False)
    for line in _told(rows):
        console.print(line, highlight=False)


def _by_stage(names: list[str]) -> str:
    """Step names in short; `--json` has them one by one."""
    counts = Counter(map(stage_in, names))
    return ", ".join(stage if count == 1 else f"{stage} x {count}" for stage, count in counts.items())


def _by_cell(names: list[str]) -> str:
    return ", ".join(dict.fromkeys(name.partition("/")[0] for name in names))


def _told(rows: dict[str, Any]) -> list[str]:
    """Tokens, judge, disk, time and what they rest on, a line each."""
    totals, found = rows["totals"], rows["forecast"]
    lines = [line for name, text in rows["texts"].items() for line in _text_told(name, text)]
    if totals["judge_calls"]:
        price = f", price {totals['judge_price']:,.2f}" if totals["judge_price"] else ""
        sent = f": {amount(totals['judge_tokens_in'])} tokens in, {amount(totals['judge_tokens_out'])} out{price}"
        lines.append(
            f"Judge: {amount(totals['judge_calls'])} calls" + (sent if totals["judged_by_llm"] else ", by no LLM")
        )
    lines.append(
        f"Disk: {_gb(totals['disk_bytes'])} of artifacts at most, and {_gb(totals['training_checkpoint_bytes'])} for each "
        "training under way"
    )
    lines.append(f"Training: {totals['train_flops']:.3g} true FLOPs")
    lines.append(
        f"All stages: {found['hours']:.3g} hours, {found['gpu_hours']:.3g} {rows['device']}-hours "
        f"({found['gpu_hours_at_work']:.3g} of them at work); longest chain: {_by_cell(found['critical_path'])}"
    )
    return [*lines, f"Assumed: {rows['assumed']}; rates and fixed costs of pipeline/forecast"]


def _text_told(name: str, text: dict[str, Any]) -> list[str]:
    """A text that is made already by split and domain; else what its making takes."""
    title = name.capitalize()
    if "splits" in text:
        return [
            f"{title}, {split}: {_tokens_and_bytes(counts)} of {counts['n_documents']:,} documents ("
            + "; ".join(f"{domain} {_tokens_and_bytes(own)}" for domain, own in counts["domains"].items())
            + ")"
            for split, counts in text["splits"].items()
        ]
    problem = f" ({text['problem']}: reckoned with tokens.expected_text_bytes)" if text["problem"] else ""
    made = f"{amount(text['tokens'])} of {_gb(text['text_bytes'])} of text, {_gb(text['stored_bytes'])} stored"
    hours = f"{duration(3600 * text['hours'])} on {text['cores']} cores like these"
    return [f"{title}: about {made}, {hours}{problem}"]


def _tokens_and_bytes(counts: dict[str, int]) -> str:
    return f"{amount(counts['n_tokens'])}, {_gb(counts['n_bytes'])}"


def _gb(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.3g} GB"
