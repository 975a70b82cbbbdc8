"""The work as plain data: what is read, in which shards, by how many workers, and where its parts lie."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.activations.corpus import Corpus, pilot_batches
from pipeline.activations.sites import check_layers
from pipeline.activations.wanted import Wanted
from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.checkpoint import KeptStep, model_config
from pipeline.artifacts.tokens import TokenSplit
from pipeline.config import ActivationsConfig
from pipeline.errors import ArtifactError
from pipeline.stage import Context

if TYPE_CHECKING:
    from pipeline.activations.stage import Settings

SHARD_TOKENS = 1 << 20  # about; more shards than workers, so that a lost one costs little
MOST_SHARDS = 16  # but each leaves a file of a size that does not depend on its tokens
GPU_SHARD_TOKENS = 1 << 24  # on a GPU, about: on paper, six minutes of the 12-layer CRATE in float32, less in bf16
N_PILOTS = 8  # where workers share: so many parts that it costs little when two count the same one


@dataclass(frozen=True)
class Job:
    """What a worker needs to know. Picklable."""

    seed: int
    config: ActivationsConfig
    tokens: Artifact
    pretrain: Artifact
    autoencoders: Artifact | None
    shards: tuple[range, ...]  # of batches
    n_workers: int
    context: Context
    step: KeptStep = "last"  # whose weights of `pretrain` are read

    @property
    def n_ctx(self) -> int:
        return model_config(self.pretrain).n_ctx

    @property
    def n_pilots(self) -> int:
        """Parts in which the quantiles are measured."""
        return 1 if self.n_workers == 1 else N_PILOTS

    def corpus(self) -> Corpus:
        return Corpus(TokenSplit(self.tokens, "val"), self.config, self.n_ctx)

    def wanted(self) -> Wanted:
        return Wanted(self.config.top, self.config.random, self.config.per_quantile, self.seed)

    def pilot(self, corpus: Corpus, n_rows: int) -> list[int]:
        """The batches on which the quantiles of the first `n_rows` rows are measured."""
        tokens = n_rows * self.n_ctx if self.config.protocol == "paper" else self.config.quantile_tokens
        return pilot_batches(corpus, n_rows, tokens, self.seed)

    def pilot_file(self, part: int) -> Path:
        return self.context.scratch / f"pilot-{part}-of-{self.n_pilots}.safetensors"

    def shard_file(self, shard: int) -> Path:
        batches = self.shards[shard]
        return self.context.scratch / f"shard-{batches.start}-{batches.stop}.safetensors"

    def missing(self) -> list[int]:
        """The shards still to be read.

        Whoever reads one counts the pilots too, which an attempt with another number of workers left in other parts.
        """
        shards = [shard for shard in range(len(self.shards)) if not self.have(self.shard_file(shard))]
        counted = all([self.have(self.pilot_file(part)) for part in range(self.n_pilots)])
        return shards or ([] if counted else [0])

    def bring_parts(self) -> None:
        """Have all parts on this node. Raises ArtifactError when one was not made."""
        for path in (*map(self.shard_file, range(len(self.shards))), *map(self.pilot_file, range(self.n_pilots))):
            self.context.bring(path)

    def have(self, path: Path) -> bool:
        """Is a part there, made by this or an earlier attempt, on this node or another."""
        if not path.is_file():
            with contextlib.suppress(ArtifactError):
                self.context.bring(path)
        return path.is_file()


def shards_of(n_tokens: int, n_workers: int, on_gpu: bool) -> int:
    """As many as the text's size asks for, and of slow readers each has one at least.

    A GPU reads a large model's shard in less time than it takes to write one more part and to put it to the others afterwards:
    there every reader has one, as long as there is text enough, and more only where a lost one would be much to read again.
    """
    by_size = min(MOST_SHARDS, math.ceil(n_tokens / SHARD_TOKENS))
    if not on_gpu:
        return max(n_workers, by_size)
    return min(by_size, max(n_workers, math.ceil(n_tokens / GPU_SHARD_TOKENS)))


def plan_job(settings: Settings, inputs: Mapping[str, Artifact], context: Context, on_gpu: bool = False) -> Job:
    """Raises ConfigError when text, model and settings do not go together."""
    n_workers = max(1, context.runtime.workers_per_cell)
    artifacts = (inputs["tokens"], inputs["pretrain"], inputs.get("sae"))
    job = Job(settings.seed, settings.activations, *artifacts, (), n_workers, context, settings.checkpoint_step)
    corpus, model = job.corpus(), model_config(job.pretrain)
    corpus.check_vocabulary(model.vocab_size)
    if job.autoencoders is None:
        check_layers(settings.activations, model.n_layer)
    n_tokens = corpus.n_tokens(range(corpus.n_batches))
    n_shards = min(corpus.n_batches, shards_of(n_tokens, n_workers, on_gpu))
    bounds = [shard * corpus.n_batches // n_shards for shard in range(n_shards + 1)]
    shards = tuple(range(a, b) for a, b in itertools.pairwise(bounds))
    return replace(job, shards=shards, n_workers=min(n_workers, n_shards))
