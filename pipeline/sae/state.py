"""What an interrupted training goes on from: everything that a step reads, one file an autoencoder, replaced by rename."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pipeline.sae.training import SAETrainer

logger = logging.getLogger(__name__)
COUNTERS = ("step_number", "clock", "n_counted", "n_resampled", "scale")
TENSORS = ("n_fired", "silent_for", "dying")
MOMENTS = ("exp_avg", "exp_avg_sq")


def save_state(folder: Path, trainer: SAETrainer, curve: Sequence[dict[str, Any]]) -> Path:
    """Replace the trainer's state file; returns it."""
    tensors = {f"sae.{name}": tensor for name, tensor in trainer.sae.state_dict().items()}
    tensors |= {name: getattr(trainer, name) for name in TENSORS}
    for moment in MOMENTS:
        tensors |= {f"{moment}.{name}": tensor for name, tensor in getattr(trainer.optimizer, moment).items()}
    facts = {name: getattr(trainer, name) for name in COUNTERS} | {"curve": list(curve)}
    path = _path(folder, trainer)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, temporary, metadata={"facts": json.dumps(facts)})
    return temporary.replace(path)


def restore_state(folder: Path, trainer: SAETrainer) -> list[dict[str, Any]]:
    """Bring `trainer` to its saved state, if there is one; returns its curve so far.

    One that cannot be read, as a disk may leave it that lost its power, is told and passed over: it is trained from the start,
    and ends at the same bits.
    """
    path = _path(folder, trainer)
    if not path.is_file():
        return []
    try:
        with safe_open(path, framework="pt", device=str(trainer.n_fired.device)) as stored:
            facts = json.loads(stored.metadata()["facts"])
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("passing over %s: it cannot be read (%s); training from the start", path, error)
        return []
    trainer.sae.load_state_dict({n.removeprefix("sae."): t for n, t in tensors.items() if n.startswith("sae.")})
    for name in TENSORS:
        setattr(trainer, name, tensors[name])
    for name in COUNTERS:
        setattr(trainer, name, facts[name])
    for moment in MOMENTS:
        moments = getattr(trainer.optimizer, moment)
        moments |= {name: tensors[f"{moment}.{name}"] for name in moments}
    for count in trainer.optimizer.n_steps.values():
        count.fill_(trainer.step_number)
    return facts["curve"]


def _path(folder: Path, trainer: SAETrainer) -> Path:
    return folder / f"{trainer.site.name}.safetensors"
