"""The made-up artifacts of a synthetic sweep, one function a kind, written by the stages' own writers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from crate_model.config import ModelConfig
from crate_model.flops import count_parameters
from pipeline.artifacts import checkpoint, evaluation, saes, steering
from pipeline.artifacts.records import NEURON_SCHEMA, histogram_edges, quantile_bins
from pipeline.artifacts.scores import NEURON_SCHEMA as SCORE_SCHEMA
from pipeline.artifacts.scores import write_scores
from pipeline.artifacts.token_shards import ShardWriter
from pipeline.artifacts.vocabulary import END_OF_TEXT, gpt2_encoding, token_strings
from pipeline.interpret.basis import Basis, Part, by_kind, layer_facts, model_facts
from pipeline.interpret.excerpts import Metric, needed_selections
from pipeline.interpret.statistics import layer_estimate, layer_row, model_summary
from tests.corpus import documents

METRICS = ("top_and_random", "random_only", "anthropic")
IRREDUCIBLE, SLOPE, EXPONENT = 1.7, {"crate": 40.0, "gpt2": 30.0}, {"crate": 0.22, "gpt2": 0.21}
WIDTH = 32  # tokens an excerpt


def hash_of(text: str) -> int:
    import hashlib

    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:15])


def final_loss(model: ModelConfig) -> float:
    n = count_parameters(model).non_embedding
    return IRREDUCIBLE + SLOPE[model.architecture] / n ** EXPONENT[model.architecture]


def sites_of(model: ModelConfig, layers: tuple[int, ...] | Literal["all"] = "all") -> list[tuple[str, int, int]]:
    read = range(model.n_layer) if layers == "all" else layers
    return [(f"code-l{layer}", layer, model.d_code) for layer in read]


def write_tokens(folder: Path) -> dict[str, Any]:
    encoding, facts = gpt2_encoding(), {}
    for split, texts in (("train", documents(8)), ("val", documents(30))):
        writer, n_bytes = ShardWriter(folder / split / "00000"), 0
        domains: dict[str, Counter[str]] = {}
        for line, record in enumerate(texts):
            ids = np.array([*encoding.encode_ordinary(record["text"]), END_OF_TEXT], np.uint16)
            n_bytes += len(record["text"].encode())
            size, domain = len(record["text"].encode()), record["meta"]["pile_set_name"]
            counts = {"n_tokens": len(ids), "n_documents": 1, "n_bytes": size}
            domains.setdefault(domain, Counter()).update(counts)
            writer.add(ids, len(record["text"].encode()), record["meta"]["pile_set_name"], "made-up", line + 1)
        writer.close()
        facts[split] = {"n_tokens": writer.n_tokens, "n_documents": len(texts), "n_bytes": n_bytes}
        facts[split]["domains"] = {name: dict(counts) for name, counts in sorted(domains.items())}
    told = {"documents_in": 41, "duplicates": 2, "duplicates_dropped": 2, "bad": {"not JSON": 1}}
    return facts | told | {"unigram_entropy": 6.93}


def write_pretrain(
    folder: Path, model: ModelConfig, loss: float, tokens: int, rng: np.random.Generator
) -> dict[str, Any]:
    steps = tokens // 1024
    step = np.arange(1, steps + 1)
    curve = loss + (10.8 - loss) * np.exp(-6 * step / steps) * (1 - step / steps)
    val = [float(c) if s % max(1, steps // 8) == 0 or s == steps else None for s, c in zip(step, curve, strict=True)]
    columns = {
        "step": step.tolist(),
        "tokens": (1024 * step).tolist(),
        "loss": (curve + 0.05 * rng.standard_normal(steps)).tolist(),
        "learning_rate": [3e-3] * steps,
        "grad_norm": [1.0] * steps,
        "val_loss": val,
    }
    checkpoint.write_curve(folder / checkpoint.CURVE, columns)
    size = count_parameters(model)
    return size.as_told | {"train_tokens": steps * 1024, "val_loss": loss, "train_loss": loss, "optimizer": "torch"}


def write_evaluate(folder: Path, loss: float, model: ModelConfig, hostile: str = "") -> dict[str, Any]:
    totals = evaluation.DomainTotals(("Github", "StateOfTheUnion"))
    totals.sums[:] = [[3e4 * (loss - 0.4), 1e5 * (loss + 0.12)], [3e4, 1e5], [7e4, 4.2e5]]
    words = [" the", " a", " China", " Beijing", "\n" + hostile, " our", " this", " that", " which", ","]
    samples = [
        {"prompt": prompt, "words": [{"token": w, "probability": 0.2 / (i + 1)} for i, w in enumerate(words)]}
        for prompt in ("They saw some boats on the", f"Beijing is the capital of{hostile}")
    ]
    crate = model.architecture == "crate"
    layers = [
        {
            "layer": layer,
            "coding_rate_before": 60.0 - layer if crate else None,
            "coding_rate": 45.0 - 2 * layer if crate else None,
            "fraction_nonzero": 0.1,
        }
        for layer in range(model.n_layer)
    ]
    evaluation.write_evaluation(folder, totals, samples, layers)
    facts = {"val_loss": totals.loss, "bits_per_byte": totals.bits_per_byte}
    return facts | {"val_tokens": 130_000, "unigram_entropy": 6.93}


def statistics_table(site: str, layer: int, n: int, rng: np.random.Generator) -> pa.Table:
    active = np.clip(0.04 + 0.02 * layer + 0.03 * rng.standard_normal(n), 0, 1)
    columns = {
        "site": [site] * n,
        "layer": np.full(n, layer),
        "neuron": np.arange(n),
        "mean": 0.1 * active,
        "variance": active,
        "skewness": np.full(n, 4.0),
        "kurtosis": 20 + 5 * rng.standard_normal(n),
        "maximum": 8 + rng.standard_normal(n),
        "fraction_nonzero": active,
        "histogram": pa.array([[900 if e == 0 else 50 if e in (1, 4) else 0 for e in histogram_edges()]] * n),
    }
    others = {field.name: pa.nulls(n, field.type) for field in NEURON_SCHEMA if field.name not in columns}
    return pa.table(columns | others).select(NEURON_SCHEMA.names).cast(NEURON_SCHEMA)


def all_that_is_asked(part: Part) -> int:
    return part.asked


def write_interpret(
    folder: Path,
    sites: list[tuple[str, int, int]],
    model: ModelConfig,
    rng: np.random.Generator,
    suffix: str = "",
    had: Callable[[Part], int] = all_that_is_asked,
) -> dict[str, Any]:
    """`had` says how many excerpts of a kind every neuron has."""
    strings, tables, rows, architecture = token_strings(), [], [], model.architecture
    names = [metric + suffix for metric in METRICS]
    by_metric: dict[str, tuple[list, list, list]] = {metric: ([], [], []) for metric in names}
    for site, layer, n in sites:
        parts = []
        for place, metric in enumerate(names):
            basis = _basis(METRICS[place], n, had)
            few = ~basis.enough()
            middle = 0.10 - 0.02 * place - (0.004 if architecture == "crate" else 0.015) * layer
            scores = np.clip(middle + 0.15 * rng.standard_normal(n), -1, 1)
            silent = rng.random(n) < 0.05
            scores[silent | few] = np.nan
            status = np.where(few, "too few excerpts", np.where(silent, "silent", "scored"))
            said = rng.integers(300, 9000, n).tolist()
            texts = [None if s else f'fires on "{strings[t]}" 9.1' for s, t in zip(silent, said, strict=True)]
            columns = {
                "site": [site] * n,
                "layer": np.full(n, layer),
                "neuron": np.arange(n),
                "metric": [metric] * n,
                "score": pa.array(scores, mask=silent | few),
                "status": status,
                "n_explained": basis.count(explained=True),
                "n_excerpts": basis.count(explained=False),
                "n_tokens": np.full(n, 640),
                "explanation": texts,
                "null_other": np.zeros(n),
                "null_shuffled": np.zeros(n),
                "null_empty": pa.nulls(n, pa.float64()),
            }
            parts.append(pa.table(columns).cast(SCORE_SCHEMA))
            estimate = layer_estimate(scores, 100, rng)
            row = {"site": site, "layer": layer, "metric": metric, "n_units": n}
            row |= layer_row(scores, status.tolist(), estimate)
            row |= layer_facts(basis, np.full(n, 640), ~np.isnan(scores))
            nulls = {"null_other": 0.001, "null_shuffled": 0.0, "null_empty": None}
            counts = {"n_null_other": row["n_scored"], "n_null_shuffled": row["n_scored"], "n_null_empty": 0}
            rows.append(row | nulls | counts)
            for kept, new in zip(by_metric[metric], (row, estimate, (basis, ~np.isnan(scores))), strict=True):
                kept.append(new)
        tables.append(pa.concat_tables(parts))
    write_scores(folder, tables, rows)
    metrics, excerpts = {}, {}
    for metric, (of_layers, estimates, bases) in by_metric.items():
        metrics[metric] = model_summary(of_layers, estimates, model.n_layer) | model_facts(of_layers)
        excerpts[metric] = by_kind(bases)
    family = "code" if sites[0][0].startswith("code-l") and sites[0][0].count("-") == 1 else "code-1x"
    told = {"judge": "token table (offline, no LLM)", "protocol": "corrected", "excerpts": {family: excerpts}}
    return told | {"metrics": metrics, "families": {family: metrics}}


def _basis(metric: Metric, n: int, had: Callable[[Part], int]) -> Basis:
    (selection,) = needed_selections((metric,))
    width = 64 if selection.long else 8
    parts = [pick.part(quantile_bins("corrected", selection.long), width) for pick in selection.picks_of(metric)]
    return Basis({part: np.full(n, had(part)) for part in parts})


def write_steer(folder: Path, hostile: str = "") -> dict[str, Any]:
    edit = {"edit": 0, "site": "code-l0", "layer": 0, "neuron": 7, "how": "clamp", "value": 8.0}
    logits = {"logit_before": 0.0, "logit_after": 2.0, "probability_before": 0.01, "probability_after": 0.3}
    effects = [
        edit | {"kind": kind, "rank": rank, "token": rank + 300, "text": f" {kind[:3]}{rank}"} | logits
        for kind in ("promoted", "suppressed", "likely")
        for rank in range(5)
    ]
    doses = [
        edit
        | {
            "role": role,
            "dose": dose,
            "kl": dose * scale,
            "logit_change": 3 * dose * scale,
            "probability": dose * scale / 10,
        }
        for role, scale in (("steered", 0.5), ("control", 0.02))
        for dose in (0.25, 0.5, 1.0, 2.0)
    ]
    lossless = [{"site": "code-l0", "layer": 0, "neuron": 7, "what": "clamp", "max_logit_change": 0.0, "kl": 0.0}]
    splice = {"site": "code-l0-1x", "layer": 0, "neuron": None, "what": "splice", "max_logit_change": 0.31, "kl": 0.02}
    samples = {"prompt": "1 2 3 4 5", "plain": " 6 7 8 9", "steered": [edit | {"text": f" pro0 pro1{hostile}"}]}
    steering.write_steering(folder, effects, doses, [*lossless, splice], samples)
    return {"edits": 1}


def write_sae(folder: Path) -> dict[str, Any]:
    row = {
        "site": "code-l0-1x",
        "layer": 0,
        "tap": "code",
        "expansion": 1,
        "variant": "topk",
        "sparsity": 32.0,
        "n_features": 512,
        "n_tokens": 16_384,
        "l0": 32.0,
        "input_l0": 80.0,
        "unexplained": 0.2,
        "dead": 0.01,
        "rare": 0.02,
        "n_loss_tokens": 16_384,
        "loss_clean": 6.0,
        "loss_spliced": 6.1,
        "loss_zero": 9.0,
        "loss_mean": 8.0,
        "recovered_zero": 0.967,
        "recovered_mean": 0.95,
        "kl": 0.05,
    }
    densities = pa.table(
        {
            "site": ["code-l0-1x"] * 4,
            "feature": [0, 1, 2, 3],
            "n_fired": [5, 900, 1100, 0],
            "mean_active": [1.0] * 4,
            "maximum": [2.0] * 4,
        }
    )
    curve = {
        "site": ["code-l0-1x"],
        "step": [1],
        "tokens": [1024],
        "loss": [1.0],
        "reconstruction": [1.0],
        "penalty": [0.0],
    }
    curve |= {"l0": [32.0], "silent": [0.0], "learning_rate": [1e-3], "n_resampled": [0]}
    saes.write_tables(folder, [row], densities, pa.table(curve))
    return {
        "sites": [
            {"name": "code-l0-1x", "layer": 0, "tap": "code", "expansion": 1, "variant": "topk", "sparsity": 32.0}
        ]
    }
