"""The pretrain stage: tokens to a trained model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipeline import errors
from pipeline.artifacts.artifact import Artifact
from pipeline.config import Config
from pipeline.pretrain.batches import plan_batches
from pipeline.pretrain.job import OUTCOME, PretrainSettings, TrainingJob
from pipeline.stage import Context, Stage, Summary


def run(settings: PretrainSettings, inputs: Mapping[str, Artifact], out_folder: Path, context: Context) -> Summary:
    """Train one model on the cluster's workers, going on from whatever an earlier attempt saved; or take an imported one."""
    from pipeline.pretrain.imported import take
    from pipeline.pretrain.on_ray import fit

    if settings.pretrain.checkpoint:
        return take(settings, out_folder)

    job = TrainingJob(settings, inputs["tokens"], out_folder, context)
    fit(job)
    return finish(job)


def finish(job: TrainingJob) -> Summary:
    """The summary that rank 0 left, and its files in the job's folder. Raises the CrateError that it left instead."""
    outcome = job.read_note(OUTCOME)
    if "error" in outcome:
        error = getattr(errors, outcome["error"]["type"])(outcome["error"]["what"], fix=outcome["error"]["fix"])
        if isinstance(error, errors.StageError):
            error.fingerprint = job.context.fingerprint
        raise error
    job.collect()
    return outcome["summary"]


def check(config: Config) -> None:
    """Raises ConfigError for a batch that is no whole number of windows, or an imported model of another shape."""
    from pipeline.pretrain.imported import check_shape

    if config.pretrain.checkpoint:
        return check_shape(config)
    plan_batches(config.pretrain, config.model.n_ctx, world_size=1)


STAGE = Stage("pretrain", 2, "cell", ("tokens",), PretrainSettings, run, check=check)
