"""The evaluate stage: what a trained model knows of held-out text, domain by domain, and how it goes on from a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.checkpoint import KeptStep, tokens_seen
from pipeline.config import EvaluateConfig
from pipeline.stage import Context, Stage, Summary


@dataclass(frozen=True)
class EvaluateSettings:
    evaluate: EvaluateConfig
    checkpoint_step: KeptStep = "last"


def run(settings: EvaluateSettings, inputs: Mapping[str, Artifact], out_folder: Path, context: Context) -> Summary:
    """Measure one model on the val split, on this process's device."""
    from pipeline.artifacts.evaluation import write_evaluation
    from pipeline.evaluate.measure import device_and_model, diagnose_layers, measure_loss, next_words

    device, model = device_and_model(inputs["pretrain"], settings.checkpoint_step, context.runtime.threads_per_worker)
    totals = measure_loss(model, device, inputs["tokens"], settings.evaluate.val_tokens, context)
    layers = diagnose_layers(model, device, inputs["tokens"])
    write_evaluation(out_folder, totals, next_words(model, device, settings.evaluate), layers)
    summary = {
        "val_loss": totals.loss,
        "bits_per_byte": totals.bits_per_byte,
        "val_tokens": totals.n_tokens,
        "unigram_entropy": totals.unigram_entropy,
    }
    tracker = context.tracker.open()
    tracker.metrics(
        {f"evaluate/{name}": summary[name] for name in ("val_loss", "bits_per_byte")},
        step=tokens_seen(inputs["pretrain"], settings.checkpoint_step),
    )
    tracker.close()
    return summary


STAGE = Stage("evaluate", 4, "cell", ("tokens", "pretrain"), EvaluateSettings, run, computes=True)
