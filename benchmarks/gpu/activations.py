"""Reading all neurons, without Ray: tokens a second beside those of a forward pass, and where the host waits for the card.

By 32 rows, as configs/pile.yaml reads them, and by 8, the default.
"""

from __future__ import annotations

import shutil
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gpu.clocks import forget_peak, peak_gib, seconds, synchronize
from gpu.models import model_config
from gpu.profile_steps import profiled
from gpu.session import Evidence
from gpu.world import made_up, untrained
from pipeline.activations.extract import Extractor
from pipeline.activations.job import Job, plan_job
from pipeline.activations.stage import Settings
from pipeline.config import ActivationsConfig, RuntimeConfig
from pipeline.stage import Context
from pipeline.tracking import TrackerSpec

CASES = (  # size, precision, rows a forward pass
    ("B", "bf16", 32),
    ("3L", "bf16", 32),
    ("B", "fp32", 32),
    ("3L", "fp32", 32),
    ("B", "bf16", 8),
)


def run(evidence: Evidence) -> None:
    for size, precision, n_rows in evidence.pick(CASES, CASES[:2]):
        n_rows = evidence.pick(n_rows, 8)
        evidence.attempt(f"{size} {precision} {n_rows}", extraction, size, precision, n_rows, needs=8)
    for size in evidence.pick(("B", "3L"), ("B",)):
        evidence.attempt(f"waits of {size}", waits, size, needs=6)


def job_of(evidence: Evidence, size: str, precision: Any, n_rows: int, n_tokens: int) -> Job:
    """A plan whose scratch folder is empty."""
    store, tokens = made_up(evidence)
    inputs = {"tokens": tokens, "pretrain": untrained(store, model_config(evidence, "crate", size))}
    shutil.rmtree(store.root / ".scratch", ignore_errors=True)
    few = evidence.pick({}, {"top": 2, "random": 2, "per_quantile": 1})
    asked = ActivationsConfig(
        tokens=n_tokens,
        tokens_short=evidence.pick(104 * 1024, n_tokens),
        quantile_tokens=n_tokens // 8,
        precision=precision,
        batch_rows=n_rows,
        **few,
    )
    runtime = RuntimeConfig(workers_per_cell=1)
    context = Context(store, runtime, "evidence", "evidence/activations", "b" * 32, TrackerSpec())
    return plan_job(Settings(0, asked), inputs, context, on_gpu=not evidence.tiny)


def extraction(evidence: Evidence, size: str, precision: str, n_rows: int) -> None:
    """A forward pass with logits, one that stops at the last neurons, and the whole of what a worker does."""
    job = job_of(evidence, size, precision, n_rows, evidence.pick(262_144, 2048))
    extractor = Extractor(job)
    reader, corpus = extractor.reader, extractor.corpus
    ids = [
        torch.from_numpy(corpus.ids(batch)) for batch in range(min(corpus.n_batches, evidence.pick(64 // n_rows, 2)))
    ]

    def forward(batch: torch.Tensor) -> None:
        with torch.no_grad(), torch.autocast(evidence.device, torch.bfloat16, enabled=reader.half):
            reader.model(batch.to(evidence.device))

    alone, body = rate(forward, ids), rate(lambda batch: list(reader.read(batch)), ids)
    forget_peak()
    read, measuring, writing = reading_rate(extractor)
    evidence.row(
        "extraction",
        size=size,
        precision=precision,
        rows=n_rows,
        forward_tokens_per_second=alone,
        body_tokens_per_second=body,
        read_tokens_per_second=read,
        read_over_forward=read / alone,
        read_over_body=read / body,
        seconds_to_first_batch=measuring,
        seconds_to_write=writing,
        bytes_written=job.shard_file(0).stat().st_size,
        peak_gib=peak_gib(),
    )


def rate(run: Callable[[torch.Tensor], Any], batches: list[torch.Tensor]) -> float:
    """Tokens a second, after one batch that does not count."""
    run(batches[0])
    taken = seconds(lambda: [run(batch) for batch in batches])
    return sum(batch.numel() for batch in batches) / taken


def reading_rate(extractor: Extractor) -> tuple[float, float, float]:
    """Tokens a second from the first batch of a shard to its last; the seconds before, in which the quantiles are measured and
    everything is used for the first time; and those after, in which the shard is written: as many for a few tokens as for the
    millions that a reader has of a sweep, so they are told apart."""
    n_batches = len(extractor.job.shards[0])
    marks: list[tuple[float, int]] = []

    def tell(n_tokens: int) -> None:
        if len(marks) in (0, n_batches - 1):
            synchronize()
        marks.append((time.perf_counter(), n_tokens))

    synchronize()
    started = time.perf_counter()
    extractor.read_shard(0, tell)
    ended = time.perf_counter()
    (first, first_tokens), (last, tokens) = marks[0], marks[-1]
    return (tokens - first_tokens) / (last - first), first - started, ended - last


def waits(evidence: Evidence, size: str) -> None:
    """The places at which the host waits for the card in a few batches, as torch's own debug mode tells, and their kernels."""
    job = job_of(evidence, size, "bf16", evidence.pick(32, 8), evidence.pick(262_144, 2048))
    extractor = Extractor(job)
    extractor.read_shard(0)  # the quantiles are measured, everything was used once
    few = job.shards[0][:4]
    extractor.job = replace(job, shards=(few,))
    places = places_of_waiting(lambda: extractor.read_shard(0))
    per_batch = {place: count / len(few) for place, count in places.most_common(12)}
    evidence.row("waits", size=size, of_a_batch=places.total() / len(few), places=per_batch)
    total, launches, kernels = profiled(lambda: extractor.read_shard(0))
    evidence.row("kernels", size=size, batches=len(few), device_ms=total, launches=launches, longest=kernels[:15])


def places_of_waiting(run: Callable[[], Any]) -> Counter[str]:
    """File and line of every wait of the host for the device in a call, and how often."""
    if not torch.cuda.is_available():
        run()
        return Counter()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return Counter(f"{Path(w.filename).name}:{w.lineno}" for w in found if "synchroniz" in str(w.message))
