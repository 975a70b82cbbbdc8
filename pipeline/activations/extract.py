"""The pure core: reads shards of the corpus and leaves what it gathered in files, one a shard and site.

A shard is a range of batches. Its file is written once, whole, under its final name, so that a shard that was read before a crash
is not read again, and a shard read twice is harmless.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.activations.block import Block
from pipeline.activations.collector import SiteCollector
from pipeline.activations.corpus import Corpus
from pipeline.activations.job import Job
from pipeline.activations.quantiles import edge_keys, n_levels
from pipeline.activations.scan import level_counts
from pipeline.activations.sites import Reader, open_reader

if TYPE_CHECKING:
    from torch import Tensor


class Extractor:
    """Holds the model; reads shards one after the other."""

    def __init__(self, job: Job) -> None:
        import torch

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if device.type == "cpu":
            torch.set_num_threads(1)  # more workers, not more threads: a sum's rounding must not depend on the machine
        self.job, self.corpus = job, job.corpus()
        self.reader: Reader = open_reader(job.pretrain, job.step, job.autoencoders, job.config, device)
        self._edges: dict[tuple[str, int], Tensor] = {}

    def read_shard(self, shard: int, tell: Callable[[int], None] = lambda tokens: None) -> int:
        """Gather a shard and write it, calling `tell` with the tokens read so far. Returns its tokens."""
        from safetensors.torch import save_file

        if not self._edges:
            self._edges = measured_edges(self.job, self.corpus, self.reader, first=shard)
        collectors = {
            site.name: SiteCollector(
                site.name,
                self.corpus,
                self.job.wanted(),
                {span.width: self._edges[site.name, span.width] for span in self.corpus.spans},
            )
            for site in self.reader.sites
        }
        batches, done = self.job.shards[shard], 0
        for batch, blocks in self._blocks(batches):
            for name, block in blocks:
                collectors[name].add(batch, block)
            done += len(self.corpus.rows(batch)) * self.corpus.n_ctx
            tell(done)
        tensors = {f"{name}:{part}": t for name, c in collectors.items() for part, t in c.tensors().items()}
        facts = {"sites": json.dumps([site.facts() for site in self.reader.sites])}
        write_whole(self.job, self.job.shard_file(shard), lambda path: save_file(tensors, path, metadata=facts))
        return done

    def _blocks(self, batches: range) -> Iterator[tuple[int, Iterable[tuple[str, Block]]]]:
        """Each batch with its blocks by site."""
        if self.job.config.protocol == "corrected":
            for batch in batches:
                yield batch, ((name, Block(values, self._first(batch))) for name, values in self._read(batch))
            return
        # Excerpts may cross into the neighbouring batches, so these are read too, at both ends of the shard.
        before = dict(self._read(batches.start - 1)) if batches.start else {}
        values = dict(self._read(batches.start))
        for batch in batches:
            after = dict(self._read(batch + 1)) if batch + 1 < self.corpus.n_batches else {}
            yield (
                batch,
                [
                    (name, Block(v, self._first(batch), _flat(before.get(name)), _flat(after.get(name))))
                    for name, v in values.items()
                ],
            )
            before, values = values, after

    def _first(self, batch: int) -> int:
        return self.corpus.rows(batch).start * self.corpus.n_ctx

    def _read(self, batch: int) -> Iterator[tuple[str, Tensor]]:
        import torch

        for site, values in self.reader.read(torch.from_numpy(self.corpus.ids(batch))):
            yield site.name, values


def _flat(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.flatten(0, 1)


def measured_edges(job: Job, corpus: Corpus, reader: Reader, first: int) -> dict[tuple[str, int], Tensor]:
    """Order keys (neurons, bins - 1) of the quantile edges by site and width, from histograms of the pilot batches."""
    import torch

    edges = {}
    for (name, n_rows), counts in pilot_counts(job, corpus, reader, first).items():
        signed = next(site.signed for site in reader.sites if site.name == name)
        for span in corpus.spans:
            if span.n_rows == n_rows:
                keys = edge_keys(counts, span.edges, signed)
                edges[name, span.width] = torch.from_numpy(keys).to(reader.device)
    return edges


def pilot_counts(job: Job, corpus: Corpus, reader: Reader, first: int) -> dict[tuple[str, int], np.ndarray]:
    """Histograms (neurons, levels) of the pilot batches, by site and number of rows.

    Workers share the counting without waiting for each other: they begin far apart (`first` is the shard a worker begins with),
    and take over the parts that they find counted.
    """
    from safetensors.numpy import load_file

    total: dict[tuple[str, int], np.ndarray] = {}
    start = first * job.n_pilots // job.n_workers
    for part in ((start + turn) % job.n_pilots for turn in range(job.n_pilots)):
        path = job.pilot_file(part)
        if not job.have(path):
            count_pilot_part(job, corpus, reader, part)
        for key, counts in load_file(path).items():
            name, n_rows = key.rsplit("/", 1)
            total[name, int(n_rows)] = total.get((name, int(n_rows)), 0) + counts
    return total


def count_pilot_part(job: Job, corpus: Corpus, reader: Reader, part: int) -> None:
    """Every `n_pilots`-th pilot batch, counted into a file."""
    import torch
    from safetensors.torch import save_file

    pilots = {
        n_rows: set(job.pilot(corpus, n_rows)[part :: job.n_pilots]) for n_rows in {s.n_rows for s in corpus.spans}
    }
    counts: dict[str, Tensor] = {}
    for site in reader.sites:
        empty = torch.zeros((site.n_neurons, n_levels(site.signed)), dtype=torch.int32, device=reader.device)
        counts |= {f"{site.name}/{n_rows}": empty.clone() for n_rows in pilots}
    for batch in sorted(set.union(*pilots.values())):
        rows = corpus.rows(batch)
        for site, values in reader.read(torch.from_numpy(corpus.ids(batch))):
            for n_rows, batches in pilots.items():
                inside = values[: max(0, n_rows - rows.start)]
                if batch in batches:
                    counts[f"{site.name}/{n_rows}"] += level_counts(inside.flatten(0, 1), site.signed)
    tensors = {name: count.cpu() for name, count in counts.items()}
    write_whole(job, job.pilot_file(part), lambda temporary: save_file(tensors, temporary))


def write_whole(job: Job, path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file, give it its name at once, and keep it beyond this node."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    write(temporary)
    temporary.replace(path)
    job.context.keep(path)
