"""A configuration's grid: its points, and what a grid must not do."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pipeline.config import OF_NO_RESULT, GridValues
from pipeline.errors import ConfigError

Keys = tuple[str, ...]  # of a dotted key
TOLD = ("model.architecture", "model.n_layer")  # by the name of a model


def points(grids: Sequence[GridValues]) -> Iterator[dict[str, Any]]:
    """The products of every grid, one after the other; one point without values where there is no grid."""
    for grid in grids or ({},):
        for values in itertools.product(*grid.values()):
            yield dict(zip(grid, values, strict=True))


def check_grids(grids: Sequence[GridValues], overrides: Mapping[Keys, str], places: Mapping[Keys, str]) -> None:
    """Raises ConfigError for a key that no cell can have to itself, or that hides another one or a `--set`.

    `overrides` are the texts of the `--set`s by their keys.
    """
    for number, grid in enumerate(grids):
        for key in grid:
            keys = tuple(key.split("."))
            place = _place(number, key, places)
            if keys[0] in OF_NO_RESULT:
                raise ConfigError(
                    f"{place}: the grid varies {key}, which is of the whole sweep and cannot differ between its models",
                    fix=f"Take it out of the grid, and set {key} beside it.",
                )
            for other in grid:
                if other != key and _meet(keys, tuple(other.split("."))):
                    raise ConfigError(
                        f"{place}: the grid varies {key} and {other}, of which one holds the other",
                        fix="Write the one that holds the other, with whole values, or only keys below it.",
                    )
            for own, text in overrides.items():
                if _meet(keys, own):
                    raise ConfigError(
                        f"--set {text} would have no effect: {place} varies {key} in its grid",
                        fix=f"Write the grid anew, --set 'grid={{{key}: [...]}}', or --set 'grid={{}}' for one model.",
                    )


def check_overrides(texts: Sequence[tuple[Keys, str]]) -> None:
    """Raises ConfigError where one `--set` takes away what an earlier one set."""
    for number, (keys, text) in enumerate(texts):
        for earlier, other in texts[:number]:
            if earlier[: len(keys)] == keys and other != text:
                raise ConfigError(
                    f"--set {other} would have no effect: --set {text} comes after it", fix="Leave one of them out."
                )


def below(values: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Of leaves by dotted key, those that a grid over `keys` varies, without what the model's name says."""
    return {
        leaf: value
        for leaf, value in values.items()
        if leaf not in TOLD and any(f"{leaf}.".startswith(f"{key}.") for key in keys)
    }


def _meet(a: Keys, b: Keys) -> bool:
    """Whether they are one key, or one holds the other."""
    return a[: len(b)] == b[: len(a)]


def _place(number: int, key: str, places: Mapping[Keys, str]) -> str:
    """Where a key of a grid stands, which is a list of grids or one."""
    for keys in (("grid", str(number), key), ("grid", key), ("grid",)):
        if keys in places:
            return places[keys]
    return "grid"
