"""The report of a large sweep: time and memory to build it, size of the page, first paint in a browser.

    python benchmarks/bench_report.py [--quick]

24 cells of 12 layers with 3,072 neurons each (884,736 neurons), all three metrics scored, every neuron with excerpts, as
artifacts in a store. The cells of one architecture share files, under names of their own; each is read anew. Building runs
in a process of its own, imports included. There is no yardstick: nothing else makes this page.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from verdicts import Verdicts, in_new_process

MB = 10**6
SEEDS = 12  # replicas of each of the two architectures


def make_sweep(folder: Path, n_layer: int):
    """The made-up sweep; found again when the folder holds it already."""
    from pipeline.artifacts.store import Store
    from tests.synthetic_sweep import SyntheticSweep

    folder.mkdir(parents=True, exist_ok=True)
    sweep = SyntheticSweep(
        Store(folder), name="large", d_model=768, n_head=12, top=10, random=5, total_tokens=2_048_000
    )
    for architecture in ("crate", "gpt2"):
        first = sweep.add(architecture, n_layer)
        heavy = ("activations", "interpret", "steer")
        for seed in range(1, SEEDS):
            other = sweep.add(architecture, n_layer, seed=seed, missing=dict.fromkeys(heavy, ""))
            sweep.outcomes[-1].missing.clear()
            sweep.share(first, other, heavy)
    return sweep


def build(folder: Path, n_layer: int) -> dict:
    """Build the page in this process; seconds from the stage's start to the finished folder."""
    import resource

    from tests.report_world import build as run_stage

    sweep = make_sweep(folder / "store", n_layer)
    started = time.perf_counter()
    built = run_stage(sweep, folder / "report")
    return {
        "seconds": time.perf_counter() - started,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB,
        "page_mb": (built.folder / "index.html").stat().st_size / MB,
        "cells": built.summary["cells"],
    }


def browse(page: Path) -> dict:
    """Seconds to the first paint, and from a choice to the drawn list in the neuron browser."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        browser.set_script_timeout(120)
        browser.get(page.as_uri())
        paint = "const p = performance.getEntriesByName('first-contentful-paint')[0]; done(p ? p.startTime : null)"
        first = browser.execute_async_script(f"const done = arguments[0]; setTimeout(() => {{ {paint} }}, 3000)")
        browser.execute_script("document.getElementById('neurons').scrollIntoView()")
        deadline = time.monotonic() + 120
        while not browser.execute_script("return document.getElementById('browser').dataset.ready"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        act = (
            "const s = document.getElementById('browser-sort'), started = performance.now();"
            "s.value = arguments[0]; s.dispatchEvent(new Event('change', {bubbles: true}));"
            "return performance.now() - started"
        )
        clicks = [browser.execute_script(act, order) for order in ("worst", "active", "best") for _ in range(3)]
        return {"first_paint": first / 1000, "click": sorted(clicks)[len(clicks) // 2] / 1000}
    finally:
        browser.quit()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="2 layers instead of 12")
    parser.add_argument("--side", choices=("make", "build"))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--layers", type=int, default=12)
    options = parser.parse_args()
    if options.side == "make":
        make_sweep(options.folder / "store", options.layers)
        print("{}")
        return 0
    if options.side == "build":
        print(json.dumps(build(options.folder, options.layers)))
        return 0
    verdicts = Verdicts("report", "matplotlib", "pyarrow", "numpy", "jinja2", "scipy")
    with tempfile.TemporaryDirectory() as name:
        folder, n_layer = Path(name), 2 if options.quick else 12
        for side in ("make", "build"):
            built = in_new_process("--side", side, "--folder", folder, "--layers", n_layer, OMP_NUM_THREADS="2")
        verdicts.at_most("report_build", built["seconds"], "s", 60)
        verdicts.at_most("report_memory", built["peak_mb"], "MB", 2000)
        verdicts.at_most("report_page", built["page_mb"], "MB", 30)
        if shutil.which("chromium") and shutil.which("chromedriver"):
            built |= browse(folder / "report" / "index.html")
            verdicts.at_most("report_first_paint", built["first_paint"], "s", 2)
            verdicts.at_most("report_browser_sort", built["click"], "s", 0.3)
        else:
            verdicts.not_run("report_first_paint", "s", "<= 2", "no chromium and chromedriver here")
    return verdicts.write(built | {"layers": n_layer})


if __name__ == "__main__":
    sys.exit(main())
