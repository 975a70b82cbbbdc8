"""All that the steering artifact says of one model: every edit's effects, doses and sample, and the lossless rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from crate_model.model import LanguageModel
from crate_model.sae import SparseAutoencoder
from pipeline.artifacts.vocabulary import token_strings
from pipeline.config import SteerConfig, SteerEdit
from pipeline.progress import Progress
from pipeline.steer.choice import Live, control_units
from pipeline.steer.edits import Edit, Unit, resolve
from pipeline.steer.effects import dose_rows, logits_of, lossless_row, splice_row, token_changes
from pipeline.steer.samples import other_prompts, prompt_ids, sample_text

Saes = Mapping[str, tuple[str, SparseAutoencoder]]  # site name -> (tap's name in the model, autoencoder)


@dataclass
class Study:
    """Rows of the steering artifact's tables."""

    effects: list[dict[str, Any]] = field(default_factory=list)
    doses: list[dict[str, Any]] = field(default_factory=list)
    lossless: list[dict[str, Any]] = field(default_factory=list)
    samples: dict[str, Any] = field(default_factory=dict)

    @property
    def summary(self) -> dict[str, Any]:
        clamps = [row["max_logit_change"] for row in self.lossless if row["what"] == "clamp"]
        return {"n_edits": len(self.samples["steered"]), "max_logit_change_of_clamps": max(clamps, default=None)}


def study(
    model: LanguageModel,
    live: Live,
    saes: Saes,
    wanted: Sequence[SteerEdit],
    steer: SteerConfig,
    progress: Progress,
) -> Study:
    """Make every wanted edit on the configured prompt. Raises ConfigError for an edit that the model has no place for."""
    ids = prompt_ids(steer.prompt, model)
    edits = [resolve(one, model, saes, ids.shape[1]) for one in wanted]
    plain, others = logits_of(model, ids), other_prompts(steer.prompt, model)
    found = Study(samples={"prompt": steer.prompt, "plain": _sample(model, ids, steer, None), "steered": []})
    taken = {(edit.unit.site, edit.unit.index) for edit in edits}
    strings = token_strings()
    for number, edit in enumerate(edits):
        name = _named(number, edit)
        for change in token_changes(plain[0, -1], logits_of(model, ids, edit)[0, -1], steer.top_words):
            found.effects.append(name | asdict(change) | {"text": strings[change.token]})
        if edit.how != "ablate":
            units = [("steered", edit.unit), *_controls(edit.unit, live, taken, steer.controls)]
            rows = dose_rows(model, ids, plain, edit, units, steer.doses, steer.top_words, others)
            found.doses += [name | row for row in rows]
        found.lossless.append(lossless_row(model, ids, plain, edit.unit))
        found.samples["steered"].append(name | {"text": _sample(model, ids, steer, edit)})
        progress.update(number + 1)
    found.lossless += [splice_row(model, ids, plain, _whole(name, point, sae)) for name, (point, sae) in saes.items()]
    return found


def _sample(model: LanguageModel, ids: Any, steer: SteerConfig, edit: Edit | None) -> str:
    return sample_text(model, ids, steer.sample_tokens, steer.temperature, steer.top_k, edit)


def _named(number: int, edit: Edit) -> dict[str, Any]:
    """The columns that say which edit a row is of."""
    unit = edit.unit
    given = {"edit": number, "site": unit.site, "layer": unit.layer, "neuron": unit.index}
    return given | {"how": edit.how, "value": float(edit.value)}


def _controls(unit: Unit, live: Live, taken: set[tuple[str, int]], count: int) -> list[tuple[str, Unit]]:
    steered = {index for site, index in taken if site == unit.site}
    chosen = control_units(live.get(unit.site, {}), steered, unit.site, unit.index, count)
    return [("control", replace(unit, index=index)) for index in chosen]


def _whole(name: str, point: str, sae: SparseAutoencoder) -> Unit:
    return Unit(int(point.split(".")[1]), 0, name, point, sae)
