"""The pretrain stage: tokens to a trained model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pipeline import errors
from pipeline.artifacts.store import Artifact
from pipeline.pretrain.job import PretrainSettings, TrainingJob
from pipeline.stage import Context, Stage, Summary


def run(settings: PretrainSettings, inputs: Mapping[str, Artifact], out_folder: Path, context: Context) -> Summary:
    """Train one model on the cluster's workers, going on from whatever an earlier attempt saved."""
    from pipeline.pretrain.on_ray import fit

    job = TrainingJob(settings, inputs["tokens"], out_folder, context)
    job.outcome_file.unlink(missing_ok=True)
    fit(job)
    return read_outcome(job)


def read_outcome(job: TrainingJob) -> Summary:
    """The summary that rank 0 left. Raises the CrateError that it left instead."""
    outcome = json.loads(job.outcome_file.read_text("utf-8"))
    if "error" in outcome:
        error = getattr(errors, outcome["error"]["type"])(outcome["error"]["what"], fix=outcome["error"]["fix"])
        if isinstance(error, errors.StageError):
            error.fingerprint = job.context.fingerprint
        raise error
    return outcome["summary"]


STAGE = Stage("pretrain", 1, "cell", ("tokens",), PretrainSettings, run)
