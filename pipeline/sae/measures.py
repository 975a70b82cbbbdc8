"""What an autoencoder keeps and what it loses, measured on held-out tokens.

One pass of the language model gives the statistics of all taps and features; a second, over fewer tokens, the next-token loss
with each tap left alone, set to zero, set to its mean and replaced by each autoencoder's reconstruction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crate_model import taps
from crate_model.model import LanguageModel
from crate_model.sae import SparseAutoencoder, spliced
from pipeline.artifacts.activation_stream import forward_to
from pipeline.artifacts.saes import RARE_FREQUENCY, Site
from pipeline.artifacts.tokens import TokenSplit
from pipeline.transfer import to_device

HEAD_TOKENS = 256  # rows of logits held at a time


@dataclass(frozen=True)
class Held:
    """Held-out windows on which everything is measured: the first ones of a split, in order."""

    split: TokenSplit
    batch_rows: int
    device: torch.device

    def batches(self, n_ctx: int, n_tokens: int) -> Iterator[Tensor]:
        """Ids (rows, n_ctx + 1) of as many whole windows as `n_tokens` holds, at least one."""
        n_windows = min(self.split.n_windows(n_ctx), max(1, n_tokens // n_ctx))
        for first in range(0, n_windows, self.batch_rows):
            rows = np.arange(first, min(first + self.batch_rows, n_windows))
            yield to_device(self.split.windows(rows, n_ctx), self.device)


class TapStatistics:
    """Running sums over the tokens of one tap, float64."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.n = 0
        self.sum = torch.zeros(width, dtype=torch.float64, device=device)
        self.squares = torch.zeros((), dtype=torch.float64, device=device)
        self.nonzero = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, v: Tensor) -> None:
        self.n += len(v)
        self.sum += v.sum(dim=0, dtype=torch.float64)
        self.squares += v.square().sum(dtype=torch.float64)
        self.nonzero += (v != 0).sum()

    @property
    def mean(self) -> Tensor:
        return self.sum / self.n

    @property
    def squared_distance_from_mean(self) -> float:
        return float(self.squares - self.n * self.mean.square().sum())


class FeatureStatistics:
    """Running sums over the features of one autoencoder."""

    def __init__(self, n_features: int, device: torch.device) -> None:
        self.n = 0
        self.fired = torch.zeros(n_features, dtype=torch.int64, device=device)
        self.sum = torch.zeros(n_features, dtype=torch.float64, device=device)
        self.maximum = torch.zeros(n_features, device=device)
        self.squared_error = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, v: Tensor, f: Tensor, v_hat: Tensor) -> None:
        self.n += len(v)
        self.fired += (f > 0).sum(dim=0)
        self.sum += f.sum(dim=0, dtype=torch.float64)
        self.maximum = torch.maximum(self.maximum, f.amax(dim=0))
        self.squared_error += (v_hat - v).square().sum(dtype=torch.float64)

    def mean_active(self) -> Tensor:
        """Mean of each feature where it fires, 0 where it never does."""
        return self.sum / self.fired.clamp_min(1)


@torch.no_grad()
def statistics(
    model: LanguageModel, saes: Mapping[Site, SparseAutoencoder], held: Held, n_tokens: int
) -> tuple[dict[str, TapStatistics], dict[Site, FeatureStatistics]]:
    """Of every tap that has an autoencoder, and of every autoencoder, over the first `n_tokens` held-out tokens."""
    points = tuple(dict.fromkeys(site.point for site in saes))
    of_site = {site: FeatureStatistics(sae.config.d_sae, held.device) for site, sae in saes.items()}
    of_point: dict[str, TapStatistics] = {}
    for ids in held.batches(model.config.n_ctx, n_tokens):
        values = {point: value.flatten(0, 1).float() for point, value in forward_to(model, ids[:, :-1], points).items()}
        for point, v in values.items():
            of_point.setdefault(point, TapStatistics(v.shape[1], held.device)).add(v)
        for site, sae in saes.items():
            f = sae.encode(values[site.point])
            of_site[site].add(values[site.point], f, sae.decode(f))
    return of_point, of_site


Variant = tuple[str, str]  # ("clean", ""), ("zero", point), ("mean", point), ("spliced", site name)


@torch.no_grad()
def losses(
    model: LanguageModel,
    saes: Mapping[Site, SparseAutoencoder],
    means: Mapping[str, Tensor],
    held: Held,
    n_tokens: int,
) -> tuple[dict[Variant, float], dict[Variant, float], int]:
    """Mean next-token loss and KL(clean || variant), in nats, of the model with each tap changed; and over how many tokens."""
    variants: dict[Variant, Callable[[], AbstractContextManager[Any]]] = {("clean", ""): nullcontext}
    for point, mean in means.items():
        variants["zero", point] = _replaced(model, point, torch.zeros_like(mean))
        variants["mean", point] = _replaced(model, point, mean)
    for site, sae in saes.items():
        variants["spliced", site.name] = partial(spliced, model, site.point, sae)
    sums = torch.zeros(len(variants), 2, dtype=torch.float64, device=held.device)
    n = 0
    for ids in held.batches(model.config.n_ctx, n_tokens):
        hidden = {}
        for name, change in variants.items():
            with change():
                hidden[name] = model.hidden(ids[:, :-1]).flatten(0, 1).float()
        targets = ids[:, 1:].flatten()
        for first in range(0, len(targets), HEAD_TOKENS):
            rows = slice(first, first + HEAD_TOKENS)
            batch = {name: value[rows] for name, value in hidden.items()}
            sums += _compare(batch, model.embed.tokens.weight.float(), targets[rows])
        n += len(targets)
    loss, kl = (dict(zip(variants, column, strict=True)) for column in (sums / n).T.tolist())
    return loss, kl, n


def _replaced(model: LanguageModel, point: str, row: Tensor) -> Callable[[], AbstractContextManager[Any]]:
    return lambda: taps.edit(model, {point: lambda value: row.to(value.dtype).expand_as(value)})


def _compare(hidden: Mapping[Variant, Tensor], head: Tensor, targets: Tensor) -> Tensor:
    """Summed loss and KL(clean || variant) of a few rows, (variants, 2), on the device.

    With p the clean distribution and h the variant's hidden state, KL = sum p log p - h . (p E) + logsumexp(E h): the clean
    distribution meets the head once, and no variant's distribution is ever written out.
    """
    logits = hidden["clean", ""] @ head.T
    clean = logits.log_softmax(dim=-1)
    p = clean.exp()
    negative_entropy = (p * clean).sum(dim=-1).double()
    expected_row, target_row = p @ head, head[targets]
    result = []
    for name, h in hidden.items():
        own = logits if name == ("clean", "") else h @ head.T
        log_total = own.logsumexp(dim=-1).double()
        loss = log_total - (h * target_row).sum(dim=-1).double()
        kl = negative_entropy - (h * expected_row).sum(dim=-1).double() + log_total
        result.append(torch.stack((loss.sum(), kl.sum())))
    return torch.stack(result)


def measures_row(
    site: Site,
    tap: TapStatistics,
    features: FeatureStatistics,
    loss: Mapping[Variant, float],
    kl: Mapping[Variant, float],
    n_loss_tokens: int,
) -> dict[str, Any]:
    """A row of MEASURE_SCHEMA."""
    clean, inside = loss["clean", ""], loss["spliced", site.name]
    zero, mean = loss["zero", site.point], loss["mean", site.point]
    frequency = features.fired.double() / features.n
    variance = tap.squared_distance_from_mean
    return {
        "site": site.name,
        "layer": site.layer,
        "tap": site.tap,
        "expansion": site.expansion,
        "variant": site.variant,
        "sparsity": site.sparsity,
        "n_features": len(features.fired),
        "n_tokens": features.n,
        "l0": float(features.fired.sum()) / features.n,
        "input_l0": float(tap.nonzero) / tap.n,
        "unexplained": float(features.squared_error) / variance if variance > 0 else None,
        "dead": float((features.fired == 0).double().mean()),
        "rare": float((frequency < RARE_FREQUENCY).double().mean()),
        "n_loss_tokens": n_loss_tokens,
        "loss_clean": clean,
        "loss_spliced": inside,
        "loss_zero": zero,
        "loss_mean": mean,
        "recovered_zero": _recovered(clean, inside, zero),
        "recovered_mean": _recovered(clean, inside, mean),
        "kl": kl["spliced", site.name],
    }


def _recovered(clean: float, inside: float, ablated: float) -> float | None:
    """Share of the ablation's damage that the autoencoder avoids; None where the ablation does no damage."""
    return (ablated - inside) / (ablated - clean) if ablated > clean else None


def measure_all(
    model: LanguageModel,
    saes: Mapping[Site, SparseAutoencoder],
    held: Held,
    measure_tokens: int,
    loss_tokens: int,
) -> tuple[list[dict[str, Any]], dict[Site, FeatureStatistics]]:
    """Rows of MEASURE_SCHEMA for all `saes`, and their features' statistics."""
    model = model.to(held.device)
    on_device: Mapping[Site, SparseAutoencoder] = {site: sae.to(held.device) for site, sae in saes.items()}
    tap_statistics, feature_statistics = statistics(model, on_device, held, measure_tokens)
    means = {point: found.mean.float() for point, found in tap_statistics.items()}
    loss, kl, n = losses(model, on_device, means, held, loss_tokens)
    rows: Sequence[dict[str, Any]] = [
        measures_row(site, tap_statistics[site.point], feature_statistics[site], loss, kl, n) for site in saes
    ]
    return list(rows), feature_statistics
