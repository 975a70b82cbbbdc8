"""The measurements themselves: losses on held-out windows, and the likeliest next words."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from crate_model.diagnostics import diagnose
from crate_model.model import LanguageModel
from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.checkpoint import KeptStep, load_model
from pipeline.artifacts.evaluation import DomainTotals, ValWindows
from pipeline.artifacts.tokens import TokenSplit
from pipeline.artifacts.vocabulary import END_OF_TEXT, N_TOKENS, gpt2_encoding
from pipeline.config import EvaluateConfig
from pipeline.stage import Context

DIAGNOSED_WINDOWS = 16
TOKENS_A_PASS = {"cpu": 8192, "cuda": 65_536}


def device_and_model(pretrained: Artifact, step: KeptStep, threads: int) -> tuple[torch.device, LanguageModel]:
    """The model after `step` in float32 on a GPU if this process has one, else on the CPU."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if threads:
        torch.set_num_threads(threads)
    return device, load_model(pretrained, step).to(device)


def measure_loss(
    model: LanguageModel, device: torch.device, tokens: Artifact, n_tokens: int, context: Context
) -> DomainTotals:
    """Losses on all of val, or on about `n_tokens` of it in windows spread evenly."""
    split = TokenSplit(tokens, "val")
    windows = ValWindows(split, model.config.n_ctx, n_tokens)
    progress = context.progress(len(windows.starts) * windows.n_ctx, "tokens")
    totals = DomainTotals(split.domains)
    for batch in windows.batches(max(1, TOKENS_A_PASS[device.type] // windows.n_ctx)):
        ids, targets = (torch.from_numpy(array).to(device) for array in (batch.ids, batch.targets))
        totals.add(batch, model.token_losses(ids, targets).cpu().numpy())
        progress.update(totals.n_tokens, loss=round(totals.loss, 3))
    progress.update(progress.state.total)
    return totals


def diagnose_layers(model: LanguageModel, device: torch.device, tokens: Artifact) -> list[dict[str, Any]]:
    """Sparsity and coding rate of every layer on a few windows spread over val."""
    windows = ValWindows(TokenSplit(tokens, "val"), model.config.n_ctx, DIAGNOSED_WINDOWS * model.config.n_ctx)
    batch = next(windows.batches(DIAGNOSED_WINDOWS))
    ids, real = (torch.from_numpy(array).to(device) for array in (batch.ids, batch.real))
    return [asdict(layer) for layer in diagnose(model, ids, real)]


def next_words(model: LanguageModel, device: torch.device, config: EvaluateConfig) -> list[dict[str, Any]]:
    """For each prompt the `top_words` likeliest next tokens with their probabilities. *Source:* the paper's project page.

    An empty prompt is the start of a document, as training has it: what comes after an end-of-text token. A prompt that the
    model cannot read in full, for its vocabulary or its context, has no next words.
    """
    encoding = gpt2_encoding()
    real = min(N_TOKENS, model.config.vocab_size)  # rows beyond the vocabulary pad the table and are no tokens
    answers: list[dict[str, Any]] = []
    for prompt in config.prompts:
        ids = encoding.encode_ordinary(prompt) or [END_OF_TEXT]
        if max(ids) >= real or len(ids) > model.config.n_ctx:
            answers.append({"prompt": prompt, "words": []})
            continue
        with torch.no_grad():
            logits = model(torch.tensor([ids], device=device))[0, -1]
        best = logits[:real].float().softmax(-1).topk(min(config.top_words, real))  # among tokens, as in steering
        words = [
            {"token": encoding.decode_single_token_bytes(index).decode("utf-8", "replace"), "probability": probability}
            for probability, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        answers.append({"prompt": prompt, "words": words})
    return answers
