"""Turning one thing on or off: a setting that the product hands to DeepSpeed, or a constant of a module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any


@contextmanager
def deepspeed_settings(changes: Mapping[str, Any]) -> Iterator[None]:
    """Engines opened within have `changes` laid over the product's own settings, group by group."""
    from pipeline.pretrain import engine

    settings_of = engine._deepspeed_settings

    def changed(*arguments: Any) -> dict[str, Any]:
        settings = settings_of(*arguments)
        for group, values in changes.items():
            settings[group] = {**settings.get(group, {}), **values} if isinstance(values, dict) else values
        return settings

    with constants(engine, _deepspeed_settings=changed):
        yield


@contextmanager
def constants(module: ModuleType | type, **values: Any) -> Iterator[None]:
    """Within, names of a module or class have other values. Raises AttributeError for a name that it has not."""
    before = {name: getattr(module, name) for name in values}
    for name, value in values.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)
