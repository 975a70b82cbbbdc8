"""Tokenizing and reading tokens, side by side with what people do today.

    python benchmarks/bench_tokens.py [--quick]

Yardsticks: nanoGPT's way to tokenize (`datasets.load_dataset` and `.map` over two processes with tiktoken, then a
`np.memmap`), its way to read (windows of that memmap), and `datasets.with_format("torch")` for batches. Both sides read the
same `jsonl.zst` files of real text out of the installed packages, in turn, each time in a new process with empty caches. The
clock runs from files on the disk to the finished output: for us the published artifact with its sha256 sums. Imports, and the
start of the Ray cluster and its workers, are outside of it: each side does two small files first. Ray's start is told.
Memory is compared with one file a worker: its encoder's cache of words is full after the first ten megabytes.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

from verdicts import Verdicts, in_new_process

FILES, CORES = 8, 2
SMALL = "small"  # folder of the files that each side does before the clock starts
WINDOW, BATCH = 1025, 32
SUFFIXES = {".py", ".pyi", ".md", ".rst", ".txt", ".h", ".hpp", ".json", ".yaml"}
MB = 10**6


def real_texts():
    """(text, domain) of the installed packages' files, package by package; every text once."""
    seen = set()
    for distribution in sorted(metadata.distributions(), key=lambda found: found.metadata["Name"].lower()):
        for file in distribution.files or ():
            path = Path(str(file.locate()))
            if file.suffix not in SUFFIXES or file.name == "RECORD" or not path.is_file():
                continue
            try:
                text = path.read_text("utf-8")
            except UnicodeDecodeError:
                continue
            if 100 < len(text) < 2 * MB and hash(text) not in seen:
                seen.add(hash(text))
                yield text, distribution.metadata["Name"]


def write_corpus(folder: Path, n_bytes: int, n_files: int = FILES) -> int:
    """jsonl.zst files with `n_bytes` of text, and small ones: for val, and to begin with. Returns the bytes of text."""
    import zstandard

    (folder / SMALL).mkdir(parents=True)
    written, texts = 0, real_texts()
    with (folder / "val.jsonl").open("w") as val:
        for _, (text, domain) in zip(range(50), texts, strict=False):
            val.write(json.dumps({"text": text, "meta": {"pile_set_name": domain}}) + "\n")
    for core in range(CORES):
        shutil.copyfile(folder / "val.jsonl", folder / SMALL / f"{core}.jsonl")
    writers = [
        zstandard.ZstdCompressor().stream_writer((folder / f"{i:02d}.jsonl.zst").open("wb")) for i in range(n_files)
    ]
    for number, (text, domain) in enumerate(texts):
        if written >= n_bytes:
            break
        line = json.dumps({"text": text, "meta": {"pile_set_name": domain}}) + "\n"
        writers[number % n_files].write(line.encode())
        written += len(text.encode())
    for writer in writers:
        writer.close()
    return written


def ours(corpus: Path, work: Path) -> dict:
    """The tokens stage on a private Ray cluster of two cores."""
    started = time.perf_counter()
    from pipeline import runtime
    from pipeline.artifacts.artifact import Artifact
    from pipeline.artifacts.store import Store
    from pipeline.config import RuntimeConfig, TokensConfig
    from pipeline.stage import Context
    from pipeline.tokens import stage
    from pipeline.tracking import TrackerSpec

    cluster = runtime.connect_ray(RuntimeConfig(cpus=CORES))
    import ray.data

    ray_seconds = time.perf_counter() - started
    stage.LARGE_BYTES = 0

    def make(**sources: tuple[str, ...]) -> tuple[dict, Artifact]:
        settings = stage.TokensSettings(TokensConfig(source="jsonl", **sources))
        recipe = stage.STAGE.recipe(settings, {})
        context = Context(Store(work), RuntimeConfig(), "bench", "tokens", recipe["fingerprint"], TrackerSpec())
        making = context.store.making_folder(recipe["fingerprint"])
        summary = stage.run(settings, {}, making, context)
        return summary, context.store.publish(making, recipe, summary, {})

    make(train=(str(corpus / SMALL / "*.jsonl"),))
    started = time.perf_counter()
    summary, artifact = make(train=(str(corpus / "*.jsonl.zst"),), val=(str(corpus / "val.jsonl"),))
    seconds = time.perf_counter() - started
    n_tokens = summary["train"]["n_tokens"] + summary["val"]["n_tokens"]
    memory = peak_memory()
    ray.shutdown()
    return {
        "seconds": seconds,
        "tokens": n_tokens,
        "folder": str(artifact.folder),
        "cores": cluster["CPU"],
        "ray_start_seconds": ray_seconds,
        **memory,
    }


def peak_memory() -> dict:
    """Highest resident memory, in MB, of this process and of the fattest Ray worker that made shards."""
    import psutil

    def peak(pid: int) -> float:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1000

    below = [process for process in psutil.Process().children(recursive=True) if process.cmdline()]
    workers = [peak(process.pid) for process in below if process.cmdline()[0].startswith("ray::")]
    return {"peak_driver_mb": peak(os.getpid()), "peak_worker_mb": max(workers)}


def nanogpt(corpus: Path, work: Path) -> dict:
    """Load, map over two processes, write one memmap. Source: the data preparation of Karpathy's nanoGPT, in outline."""
    import datasets
    import numpy as np

    from pipeline.artifacts.vocabulary import END_OF_TEXT, gpt2_encoding

    datasets.disable_progress_bars()
    encoding = gpt2_encoding()

    def encode(row: dict) -> dict:
        ids = encoding.encode_ordinary(row["text"])
        ids.append(END_OF_TEXT)
        return {"ids": ids, "len": len(ids)}

    def make(files: list[Path], output_path: Path) -> int:
        names, cache = [str(path) for path in files], str(work / "hf")
        loaded = datasets.load_dataset("json", data_files=names, split="train", cache_dir=cache, num_proc=CORES)
        encoded = loaded.map(encode, remove_columns=loaded.column_names, num_proc=CORES)
        n_tokens = int(np.sum(encoded["len"], dtype=np.uint64))
        output = np.memmap(output_path, dtype=np.uint16, mode="w+", shape=(n_tokens,))
        at, parts = 0, 1024
        for index in range(min(parts, len(encoded))):
            part = encoded.shard(num_shards=min(parts, len(encoded)), index=index, contiguous=True)
            ids = np.concatenate(part.with_format("numpy")["ids"])
            output[at : at + len(ids)] = ids
            at += len(ids)
        output.flush()
        return n_tokens

    make(sorted((corpus / SMALL).glob("*")), work / "small.bin")
    started = time.perf_counter()
    n_tokens = make(sorted(corpus.glob("*.jsonl.zst")), work / "train.bin")
    return {"seconds": time.perf_counter() - started, "tokens": n_tokens, "folder": str(work / "train.bin")}


def train_split(folder: str):
    from pipeline.artifacts.artifact import Artifact
    from pipeline.artifacts.manifest import Manifest
    from pipeline.artifacts.tokens import TokenSplit

    path = Path(folder)
    return TokenSplit(Artifact(path, Manifest.from_json((path / "manifest.json").read_text(), folder)), "train")


def same_stream(folder: str, memmap: str) -> bool:
    import numpy as np

    stream, split = np.memmap(memmap, dtype=np.uint16, mode="r"), train_split(folder)
    step = 1 << 22
    return len(stream) == split.n_tokens and all(
        np.array_equal(stream[at : at + step], split.read(at, min(step, split.n_tokens - at)))
        for at in range(0, split.n_tokens, step)
    )


def rates(functions: dict, repeats: int, n: int) -> dict[str, float]:
    """Median of `n` items a second of each function, the functions taking turns."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - started)
    return {name: n / statistics.median(seconds) for name, seconds in times.items()}


def reading(folder: str, memmap: str, work: Path, repeats: int) -> dict[str, float]:
    """Random windows and batches a second. Every window is a new int64 array, as training needs it."""
    import datasets
    import numpy as np
    import torch

    stream, split = np.memmap(memmap, dtype=np.uint16, mode="r"), train_split(folder)
    rng, n = np.random.default_rng(0), 20_000
    starts = rng.integers(0, len(stream) - WINDOW, n).tolist()
    n_rows = min(100_000, len(stream) // WINDOW)
    column = stream[: n_rows * WINDOW].reshape(n_rows, WINDOW)
    features = datasets.Features({"ids": datasets.List(datasets.Value("uint16"), length=WINDOW)})
    rows = datasets.Dataset.from_dict({"ids": column}, features=features)
    rows.save_to_disk(str(work / "rows"))
    rows = datasets.load_from_disk(str(work / "rows")).with_format("torch")
    ids = rng.integers(0, n_rows, (n // BATCH // 4, BATCH))
    offsets = ids * WINDOW

    def by_memmap() -> None:
        for start in starts:
            stream[start : start + WINDOW].astype(np.int64)

    def by_read() -> None:
        for start in starts:
            split.read(start, WINDOW).astype(np.int64)

    def by_torch_format() -> None:
        for batch in ids:
            rows[batch]["ids"]

    def by_rows() -> None:
        for batch in offsets:
            torch.from_numpy(split.rows(batch, WINDOW))

    assert torch.equal(rows[ids[0]]["ids"].long(), torch.from_numpy(split.rows(offsets[0], WINDOW)))
    windows = rates({"memmap": by_memmap, "ours": by_read}, repeats, n)
    batches = rates({"datasets": by_torch_format, "ours": by_rows}, repeats, ids.size)
    return {
        "windows_memmap": windows["memmap"],
        "windows_ours": windows["ours"],
        "batches_datasets": batches["datasets"],
        "batches_ours": batches["ours"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="30 MB and one repeat instead of 400 MB and three")
    parser.add_argument("--side", nargs=3, metavar=("SIDE", "CORPUS", "WORK"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        side, corpus, work = arguments.side
        print(json.dumps({"ours": ours, "nanogpt": nanogpt}[side](Path(corpus), Path(work))))
        return 0
    repeats, n_bytes = (1, 30 * MB) if arguments.quick else (3, 400 * MB)
    fast = ("fastokens",) * bool(importlib.util.find_spec("fastokens"))
    verdicts = Verdicts("tokens", "ray", "datasets", "tiktoken", "pyarrow", "numpy", "torch", *fast)
    with tempfile.TemporaryDirectory() as temporary:
        return verdicts.write(measure(Path(temporary), repeats, n_bytes, arguments.quick, verdicts))


def measure(folder: Path, repeats: int, n_bytes: int, quick: bool, verdicts: Verdicts) -> dict:
    corpus = folder / "corpus"
    figures: dict = {"text_mb": write_corpus(corpus, n_bytes) / MB}
    print(f"{figures['text_mb']:.0f} MB of text from installed packages in {FILES} files, {repeats} runs a side")
    if not quick:
        verdicts.at_least("real_text_from_installed_packages", figures["text_mb"], "MB", 100)
    runs: dict[str, list[dict]] = {"nanogpt": [], "ours": []}
    for repeat in range(repeats):
        for side, done in runs.items():
            if repeat:
                shutil.rmtree(folder / f"{side}{repeat - 1}")
            done.append(one_side(side, corpus, folder / f"{side}{repeat}"))
            print(f"  {side}: {done[-1]['tokens'] / done[-1]['seconds'] / 1e6:.1f} Mtok/s, {done[-1]['seconds']:.1f} s")
    last_ours, last_memmap = runs["ours"][-1]["folder"], runs["nanogpt"][-1]["folder"]
    for side, done in runs.items():
        figures[f"{side}_tokens_per_second"] = statistics.median(run["tokens"] / run["seconds"] for run in done)
        figures[f"{side}_seconds"] = [run["seconds"] for run in done]
    figures["ray_start_seconds"] = statistics.median(run["ray_start_seconds"] for run in runs["ours"])
    print(f"  Ray's start, not counted: {figures['ray_start_seconds']:.1f} s")
    verdicts.at_least("stream_identical_to_nanogpt", same_stream(last_ours, last_memmap), "", 1)
    speed = figures["ours_tokens_per_second"] / figures["nanogpt_tokens_per_second"]
    verdicts.at_least("tokenize_vs_nanogpt", speed, "x", 8)
    figures |= reading(last_ours, last_memmap, folder, 5)
    verdicts.at_least("random_windows_vs_memmap", figures["windows_ours"] / figures["windows_memmap"], "x", 1.8)
    verdicts.at_least("batches_vs_datasets_torch", figures["batches_ours"] / figures["batches_datasets"], "x", 5)
    peaks = {size: peak_at(folder, size // (10 if quick else 1), figures) for size in (30, 300)}
    verdicts.between("peak_memory_ten_times_the_text", peaks[300] / peaks[30], "x", 0.9, 1.1)
    return figures


def one_side(side: str, corpus: Path, work: Path) -> dict:
    work.mkdir(parents=True)
    return in_new_process("--side", side, corpus, work, HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")


def peak_at(folder: Path, size: int, figures: dict) -> float:
    """Peak memory, in MB, of driver and fattest worker on `size` MB of text."""
    write_corpus(folder / f"corpus{size}", size * MB, CORES)
    run = one_side("ours", folder / f"corpus{size}", folder / f"memory{size}")
    driver, worker = run["peak_driver_mb"], run["peak_worker_mb"]
    figures[f"peak_mb_at_{size}_mb"] = {"driver": driver, "worker": worker}
    print(f"  peak at {size} MB: driver {driver:.0f}, worker {worker:.0f} MB")
    return driver + worker


if __name__ == "__main__":
    sys.exit(main())
