"""`python -m pipeline forecast`: a sweep on a cluster that need not exist yet."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.config_load import LoadedConfig
    from pipeline.forecast.sweep import Forecast


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--gpu", default="H100", help="its name, for its peak, e.g. A100, H100, H200, B200")
    parser.add_argument("--cores", type=int, default=0, help="CPU cores of all nodes; 0: eight a GPU")
    parser.add_argument(
        "--bus", type=float, default=40.0, help="GB/s all-reduce bus bandwidth between nodes (preflight says)"
    )
    parser.add_argument("--gpu-hour", type=float, default=2.5, help="price of a GPU for an hour")
    parser.add_argument(
        "--utilisation", type=float, default=0.40, help="share of the peak that training reaches, true FLOPs"
    )
    parser.add_argument("--as-configured", action="store_true", help="not the best number of models side by side")
    parser.add_argument("--json", action="store_true")


def show(loaded: LoadedConfig, options: argparse.Namespace) -> int:
    from pipeline.forecast.assumed import peak_of
    from pipeline.forecast.machine import GIGA, Machine, Rates
    from pipeline.forecast.sweep import best_split, forecast

    peak = peak_of(options.gpu)
    cores = options.cores or 8 * options.gpus
    machine = Machine(options.gpus, cores, peak, bus_between=options.bus * GIGA, gpu_hour=options.gpu_hour)
    rates = Rates(train_utilisation=options.utilisation)
    found = forecast(loaded, machine, rates) if options.as_configured else best_split(loaded, machine, rates)[0]
    print(json.dumps(as_json(found), indent=1)) if options.json else _print(loaded.config.name, options.gpu, found)
    return 0


def as_json(found: Forecast) -> dict[str, Any]:
    stages = found.stages()
    return {
        "gpus": found.machine.gpus,
        "cores": found.machine.cores,
        "parallel_cells": found.parallel_cells,
        "workers_per_cell": found.workers_per_cell,
        "hours": found.hours,
        "gpu_hours": found.gpu_hours,
        "gpu_hours_at_work": found.timeline.gpu_seconds / 3600,
        "busy": found.busy,
        "price": found.price,
        "critical_path": found.timeline.critical_path(),
        "stages": {n: {"longest_hours": h, "gpu_hours": g, "bound": b} for n, (h, g, b) in stages.items()},
    }


def _print(name: str, gpu: str, found: Forecast) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True, highlight=False)
    table = Table(title=f"Forecast of {name} on {found.machine.gpus} {gpu}", title_justify="left")
    for column in ("stage", "longest, hours", "all, GPU-hours", "the longest is bound by"):
        table.add_column(column, justify="right" if "hours" in column else "left")
    for stage, (longest, gpu_hours, bound) in found.stages().items():
        table.add_row(stage, f"{longest:.2f}", f"{gpu_hours:.1f}", bound)
    console.print(table)
    console.print(f"{found.parallel_cells} models side by side, {found.workers_per_cell} workers each")
    console.print(f"{found.hours:.1f} hours, {found.gpu_hours:.0f} GPU-hours paid, {found.busy:.0%} of them at work")
    console.print(f"about {found.price:,.0f} at {found.machine.gpu_hour:g} a GPU-hour")
    console.print("longest chain: " + ", ".join(found.timeline.critical_path()))
    console.print("Rates are assumptions until your cluster has measured them: docs/scale.md")
