"""One change at one layer, as a function on the activations there.

A neuron is edited in place of its value: every other entry keeps its bits, so clamping one to the value it has changes
nothing. A feature is edited in the code of a sparse autoencoder: with `keep_error` the difference that makes to the
reconstruction is added to the true activations (delta mode), else the edited reconstruction replaces them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from crate_model import taps
from crate_model.model import LanguageModel
from crate_model.sae import SparseAutoencoder
from pipeline.artifacts.saes import tap_width
from pipeline.config import SteerEdit
from pipeline.errors import ConfigError


@dataclass(frozen=True)
class Unit:
    """A neuron or, with `sae`, a feature, at a tap of a layer."""

    layer: int
    index: int
    site: str  # code-l0, code-l0-16x
    point: str  # blocks.0.code
    sae: SparseAutoencoder | None = None
    keep_error: bool = True


@dataclass(frozen=True)
class Edit:
    unit: Unit
    how: str
    value: float | Tensor  # a number, or a tensor that broadcasts over (batch, edited positions)
    positions: tuple[int, ...] = ()  # counted from 0; empty: all


def changed(values: Tensor, how: str, value: float | Tensor) -> Tensor:
    """`values` (batch, positions) after the edit."""
    given = torch.as_tensor(0.0 if how == "ablate" else value, dtype=values.dtype, device=values.device)
    if how == "add":
        return values + given
    if how == "scale":
        return values * given
    return given.expand_as(values)


@contextmanager
def editing(model: LanguageModel, edit: Edit) -> Iterator[None]:
    """Inside the block, forwards (of one sequence, or its continuation through a cache) are made with the edit."""
    seen = 0

    def apply(activations: Tensor) -> Tensor:
        nonlocal seen
        here = _positions_here(edit.positions, seen, activations.shape[1])
        seen += activations.shape[1]
        return _edited(activations, edit, here)

    with taps.edit(model, {edit.unit.point: apply}):
        yield


def _positions_here(positions: tuple[int, ...], seen: int, t: int) -> slice | list[int]:
    """Which of the t positions now computed are to be edited; `seen` ones came before, through the cache."""
    if not positions:
        return slice(None)
    return [position - seen for position in positions if seen <= position < seen + t]


def _edited(activations: Tensor, edit: Edit, here: slice | list[int]) -> Tensor:
    unit = edit.unit
    if unit.sae is None:
        result = activations.clone()
        result[:, here, unit.index] = changed(activations[:, here, unit.index], edit.how, edit.value)
        return result
    f = unit.sae.encode(activations.float())
    old = f[:, here, unit.index]
    new = changed(old, edit.how, edit.value)
    if unit.keep_error:
        result = activations.clone()
        difference = (new - old)[..., None] * unit.sae.W_dec[unit.index]
        result[:, here] = torch.where(
            difference != 0, activations[:, here] + difference.to(activations.dtype), activations[:, here]
        )
        return result
    f[:, here, unit.index] = new
    return unit.sae.decode(f).to(activations.dtype)


def resolve(
    wanted: SteerEdit, model: LanguageModel, saes: Mapping[str, tuple[str, SparseAutoencoder]], n_prompt_tokens: int
) -> Edit:
    """The edit that the configuration names. `saes`: site name -> (tap's name in the model, autoencoder).

    Raises ConfigError for a layer, neuron, feature, position or site that is not there.
    """
    if wanted.layer >= model.config.n_layer:
        layers = f"layers 0 to {model.config.n_layer - 1}"
        raise ConfigError(f"there is no layer {wanted.layer}: the model has {layers}", fix="Correct the edit's layer.")
    unit, n_units = _unit(wanted, model, saes)
    if wanted.neuron >= n_units:
        kind = "feature" if wanted.site else "neuron"
        where = f"{unit.site} has {kind}s 0 to {n_units - 1}"
        raise ConfigError(f"there is no {kind} {wanted.neuron}: {where}", fix=f"Correct the edit's {kind}.")
    return Edit(unit, wanted.how, wanted.value, _absolute(wanted.positions, n_prompt_tokens))


def _unit(
    wanted: SteerEdit, model: LanguageModel, saes: Mapping[str, tuple[str, SparseAutoencoder]]
) -> tuple[Unit, int]:
    point = f"blocks.{wanted.layer}.code"
    if not wanted.site:
        return Unit(wanted.layer, wanted.neuron, f"code-l{wanted.layer}", point), model.config.d_code
    if wanted.site not in saes:
        known = ", ".join(saes) or "none; set sae.expansions to train some"
        raise ConfigError(f"this model has no sparse autoencoder {wanted.site!r}", fix=f"There are: {known}.")
    point, sae = saes[wanted.site]
    check_tap(sae, wanted.site, point, model)
    if point.split(".")[1] != str(wanted.layer):
        raise ConfigError(
            f"{wanted.site} is of {point}, not of layer {wanted.layer}", fix="Correct the edit's layer or site."
        )
    return Unit(wanted.layer, wanted.neuron, wanted.site, point, sae, wanted.keep_error), sae.config.d_sae


def check_tap(sae: SparseAutoencoder, name: str, point: str, model: LanguageModel) -> None:
    """Raises ConfigError for an autoencoder of a tap that the model has not, or whose vectors have another width."""
    if point not in taps.names(model) or not point.startswith("blocks."):
        layers = f"blocks.0 to blocks.{model.config.n_layer - 1}"
        raise ConfigError(
            f"{name} reads {point or 'an unnamed tap'}, which this model has not",
            fix=f"Use an autoencoder of a tap of {layers}, for example blocks.0.code.",
        )
    width = tap_width(model.config, point.rpartition(".")[2])
    if sae.config.d_in != width:
        told = f"{name} reads vectors of {sae.config.d_in}, but {point} has {width}"
        raise ConfigError(told, fix="Use the autoencoders that were trained on this model.")


def _absolute(positions: tuple[int, ...], n: int) -> tuple[int, ...]:
    for position in positions:
        if not -n <= position < n:
            raise ConfigError(
                f"the prompt has {n} tokens, so there is no position {position}", fix="Correct the edit's positions."
            )
    return tuple(sorted({position % n for position in positions}))
