"""Trains the golden run and prints its curve, every float to the bit. Run in a process whose arithmetic is pinned.

After a change that is meant to change numbers, `python tests/golden/golden_curve.py renew` makes this processor's curve the
only recorded one, and `... add` on processors of other makers puts theirs beside it. The environment is set here, before torch
is imported.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

# One instruction set on every x86 machine: torch's own kernels, MKL's and oneDNN's, and one thread.
PINNED = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "DNNL_MAX_CPU_ISA": "SSE41",
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-AVX512F",
    "OMP_NUM_THREADS": "1",
}
TESTS = Path(__file__).parents[1]
PLACE = Path(__file__).with_name("pretrain_curve.json")  # curves by processor: maker, or maker, family and model
STEPS = 30


def processor() -> str:
    """Maker, family and model of this machine's processor, as Linux tells them; empty where it does not.

    `this_machine.processor_name` would not do: hypervisors give many models one name.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return " ".join(told.get(name, "") for name in ("vendor_id", "cpu family", "model"))


def main(order: str) -> None:
    sys.path[:0] = [str(TESTS), str(TESTS.parent)]
    import pyarrow.parquet as pq
    import torch
    from training_world import MODEL, N_CTX, make_job, make_tokens, with_runtime

    from crate_model.config import ModelConfig
    from pipeline.artifacts.store import Store
    from pipeline.pretrain.__main__ import process_group
    from pipeline.pretrain.logbook import Wishes
    from pipeline.pretrain.worker import work

    curves = {}
    with tempfile.TemporaryDirectory() as folder, process_group(300):
        root = Path(folder)
        tokens = make_tokens(Store(root / "store"))
        for architecture in ("crate", "gpt2"):
            model = ModelConfig(**{**vars(MODEL), "architecture": architecture})
            job = make_job(root, tokens, architecture, model, total_tokens=STEPS * 8 * N_CTX, eval_every_steps=10)
            job = with_runtime(job, optimizer="torch", zero_stage=1, micro_batch=4)
            work(job, torch.device("cpu"), Wishes())
            table = pq.read_table(job.out_folder / "curve.parquet")
            curves[architecture] = {
                name: [None if value is None else float(value).hex() for value in table[name].to_pylist()]
                for name in ("loss", "grad_norm", "val_loss")
            }
            curves[architecture]["consumed"] = job.read_note("outcome.json")["summary"]["consumed"]
    if order == "print":
        print(json.dumps(curves, indent=1))
        return
    recorded = json.loads(PLACE.read_text()) if order == "add" else {}
    PLACE.write_text(json.dumps(recorded | {processor(): curves}, indent=1) + "\n")


if __name__ == "__main__":
    if any(os.environ.get(name) != value for name, value in PINNED.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **PINNED})
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("order", nargs="?", choices=("print", "add", "renew"), default="print")
    main(parser.parse_args().order)
