"""`--plan`: what would be kept and made and why, how large and how long, before anything is spent."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.table import Table

from crate_model.flops import count_parameters, six_n_flops_per_token, train_flops_per_token
from pipeline.artifacts.store import Artifact, Store
from pipeline.dag import Plan, training_flops, why_made
from pipeline.progress import amount, duration

TYPICAL_UTILISATION = 0.4  # of this machine's matrix-product rate, where the store holds no measured training yet


def plan_rows(plan: Plan, store: Store, kept: dict[str, Artifact]) -> dict[str, Any]:
    """The plan as JSON: `cells` (one object a model) and `steps` (what is kept or made, and why)."""
    rate = training_rate(store)
    cells = []
    for cell in plan.cells:
        model, names = cell.config.model, [step.name for step in plan.of_cell(cell.name)]
        size = count_parameters(model)
        made = [name for name in names if name not in kept]
        trains = f"{cell.name}/pretrain" in made
        cells.append(
            {
                "name": cell.name,
                "architecture": model.architecture,
                "n_layer": model.n_layer,
                "d_model": model.d_model,
                "n_params": size.total_without_positions,
                "n_params_non_embedding": size.non_embedding,
                "train_flops_per_token": train_flops_per_token(model),
                "six_n_flops_per_token": six_n_flops_per_token(model),
                "train_tokens": cell.config.pretrain.total_tokens,
                "training_seconds": training_flops(cell) / rate if trains else 0.0,
                "status": "kept" if not made else "make" if len(made) == len(names) else "partly made",
                "to_make": [name.partition("/")[2] for name in made],
            }
        )
    steps = [
        {
            "name": step.name,
            "fingerprint": step.fingerprint,
            "status": "kept" if step.name in kept else "make",
            "why": "" if step.name in kept else why_made(step, store),
        }
        for step in plan.steps.values()
    ]
    return {
        "name": plan.name,
        "store": store.place,
        "training_flops_per_second": rate,
        "cells": cells,
        "steps": steps,
    }


def training_rate(store: Store) -> float:
    """True training FLOPs a second: of the newest training in this store, else guessed from a short matrix product."""
    measured = [
        (facts["started"], facts["training_flops_per_second"])
        for artifact in store.all_of("pretrain")
        if "training_flops_per_second" in (facts := artifact.manifest.provenance)
    ]
    return max(measured)[1] if measured else TYPICAL_UTILISATION * _matrix_product_rate()


def _matrix_product_rate() -> float:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    n, dtype = (8192, torch.bfloat16) if device == "cuda" else (1024, torch.float32)
    a = torch.randn(n, n, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        (a @ a).sum().item()
        best = min(best, time.perf_counter() - started)
    return 2 * n**3 / best


def print_plan(rows: dict[str, Any], console: Console) -> None:
    table = Table(title=f"Plan of {rows['name']}", title_justify="left")
    for column in ("cell", "parameters", "non-embedding", "FLOPs a token", "6N says", "tokens", "training", "status"):
        table.add_column(column, justify="left" if column in ("cell", "status") else "right")
    for cell in rows["cells"]:
        status = cell["status"] + ("" if cell["status"] != "partly made" else ": makes " + ", ".join(cell["to_make"]))
        table.add_row(
            cell["name"],
            f"{cell['n_params']:,}",
            f"{cell['n_params_non_embedding']:,}",
            amount(cell["train_flops_per_token"]),
            amount(cell["six_n_flops_per_token"]),
            amount(cell["train_tokens"]),
            duration(cell["training_seconds"]) if cell["training_seconds"] else "-",
            status,
        )
    console.print(table)
    made = [step for step in rows["steps"] if step["status"] == "make"]
    console.print(
        f"{len(rows['steps']) - len(made)} of {len(rows['steps'])} steps are kept, {len(made)} would be made, then the report."
    )
    reasons: dict[str, list[str]] = {}
    for step in made:
        reasons.setdefault(step["why"], []).append(step["name"])
    for why, names in reasons.items():
        console.print(f"  {why}: {', '.join(names)}", highlight=False)
    total = sum(cell["training_seconds"] for cell in rows["cells"])
    console.print(
        f"Training alone takes about {duration(total)} of one device at {amount(rows['training_flops_per_second'])}FLOP/s.",
        highlight=False,
    )
