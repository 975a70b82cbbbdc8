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

from pipeline.activations.block import Batch, Block
from pipeline.activations.collector import Collector
from pipeline.activations.corpus import Corpus
from pipeline.activations.job import Job
from pipeline.activations.quantiles import edge_keys, n_levels
from pipeline.activations.scan import count_levels
from pipeline.activations.side_by_side import Group, groups_of, read_blocks
from pipeline.activations.sites import Reader, open_reader
from pipeline.transfer import to_device

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Extractor:
    """Holds the model; reads shards one after the other."""

    def __init__(self, job: Job, device: torch.device | None = None) -> None:
        """On a GPU where there is one, unless a device is named."""
        import torch

        device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if device.type == "cpu":
            torch.set_num_threads(1)  # more workers, not more threads: a sum's rounding must not depend on the machine
        self.job, self.corpus = job, job.corpus()
        self.reader: Reader = open_reader(job.pretrain, job.step, job.autoencoders, job.config, device)
        self.groups = groups_of(self.reader.by_layer, self.corpus.config.batch_rows * self.corpus.n_ctx, device)
        self._edges: dict[tuple[str, int], Tensor] = {}

    def read_shard(self, shard: int, tell: Callable[[int], None] = lambda tokens: None) -> int:
        """Gather a shard and write it, calling `tell` with the tokens read so far. Returns its tokens.

        On a GPU the host is a batch ahead, of which it tells too early, and waits for nothing else until the shard is read.
        """
        from safetensors.torch import save_file

        if not self._edges:
            self._edges = measured_edges(self.job, self.corpus, self.reader, first=shard)
        collectors = [Collector(group, self.corpus, self.job.wanted(), self._of_group(group)) for group in self.groups]
        batches, done = self.job.shards[shard], 0
        for batch, blocks in self._blocks(batches):
            for collector, block in zip(collectors, blocks, strict=True):
                collector.add(batch, block)
            done += batch.ids.numel()
            tell(done)
        tensors = {name: tensor for collector in collectors for name, tensor in collector.tensors().items()}
        facts = {"sites": json.dumps([site.facts() for site in self.reader.sites])}
        write_whole(self.job, self.job.shard_file(shard), lambda path: save_file(tensors, path, metadata=facts))
        return done

    def _of_group(self, group: Group) -> dict[int, Tensor]:
        """The quantile edges (neurons, edges) of a group by width."""
        import torch

        widths = [span.width for span in self.corpus.spans]
        return {width: torch.cat([self._edges[site.name, width] for site in group.sites]) for width in widths}

    def _blocks(self, batches: range) -> Iterator[tuple[Batch, Iterable[Block]]]:
        """Each batch with a block a group."""
        if not self.corpus.margin:
            for number in batches:
                yield self._read(number)
            return
        # Excerpts may cross into the neighbouring batches, so these are read too, at both ends of the shard.
        batch, blocks = self._read_all(batches.start)
        if batches.start:
            _join(self._read_all(batches.start - 1)[1], blocks)
        for number in range(batches.start + 1, min(batches.stop + 1, self.corpus.n_batches)):
            after, blocks_after = self._read_all(number)
            _join(blocks, blocks_after)
            yield batch, blocks
            batch, blocks = after, blocks_after
        if batches.stop == self.corpus.n_batches:
            yield batch, blocks

    def _read(self, number: int) -> tuple[Batch, Iterable[Block]]:
        batch = Batch.of(self.corpus, number, self.job.seed, self.reader.device)
        return batch, read_blocks(self.reader, self.groups, batch, self.corpus.margin)

    def _read_all(self, number: int) -> tuple[Batch, list[Block]]:
        batch, blocks = self._read(number)
        return batch, list(blocks)


def _join(blocks: list[Block], after: list[Block]) -> None:
    for block, block_after in zip(blocks, after, strict=True):
        block.join(block_after)


def measured_edges(job: Job, corpus: Corpus, reader: Reader, first: int) -> dict[tuple[str, int], Tensor]:
    """Order keys (neurons, bins - 1) of the quantile edges by site and width, from histograms of the pilot batches."""
    edges = {}
    for (name, n_rows), counts in pilot_counts(job, corpus, reader, first).items():
        signed = next(site.signed for site in reader.sites if site.name == name)
        for span in corpus.spans:
            if span.n_rows == n_rows:
                keys = edge_keys(counts, span.edges, signed)
                edges[name, span.width] = to_device(keys, reader.device)
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
    counts: dict[tuple[str, int], Tensor] = {}
    for site in reader.sites:
        shape = site.n_neurons, n_levels(site.signed)
        for n_rows in pilots:
            counts[site.name, n_rows] = torch.zeros(shape, dtype=torch.int32, device=reader.device)
    for batch in sorted(set.union(*pilots.values())):
        first_row = corpus.rows(batch).start
        for site, values in reader.read(to_device(corpus.ids(batch), reader.device)):
            for n_rows in (n_rows for n_rows, batches in pilots.items() if batch in batches):
                inside = values[: n_rows - first_row].flatten(0, 1)
                count_levels(counts[site.name, n_rows], inside, site.signed)
    tensors = {f"{name}/{n_rows}": count.cpu() for (name, n_rows), count in counts.items()}
    write_whole(job, job.pilot_file(part), lambda temporary: save_file(tensors, temporary))


def write_whole(job: Job, path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file, give it its name at once, and keep it beyond this node."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    write(temporary)
    temporary.replace(path)
    job.context.keep(path)
