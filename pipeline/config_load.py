"""YAML files and `--set a.b=c` to a `Config`; every mistake is told with its place and the nearest right key."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.config import Config
from pipeline.config_grid import below, check_grids, check_overrides, points
from pipeline.config_used import as_used
from pipeline.errors import ConfigError
from pipeline.naming import flat, names_of

Tree = dict[str, Any]
Places = dict[tuple[str, ...], str]  # key path -> "configs/quickstart.yaml:2" or "--set"


@dataclass(frozen=True)
class Cell:
    """One point of the grid: a model that is trained and studied."""

    name: str
    config: Config


@dataclass(frozen=True)
class LoadedConfig:
    config: Config
    tree: Tree  # only what was said, before defaults
    places: Places

    def cells(self) -> list[Cell]:
        """The grid's points, or the one model when there is no grid; equal points are merged. Raises ConfigError."""
        configs: dict[str, Config] = {}
        for point in points(self.config.grid):
            config = self._at(point)
            configs.setdefault(json.dumps(config.of_results, sort_keys=True), config)
        grid_keys = {key for grid in self.config.grid for key in grid}
        values = [below(flat(config.of_results), grid_keys) for config in configs.values()]
        names = names_of([_model_name(config) for config in configs.values()], values)
        return [Cell(name, config) for name, config in zip(names, configs.values(), strict=True)]

    def _at(self, point: Mapping[str, Any]) -> Config:
        """The configuration at one point of the grid."""
        tree, place = {key: value for key, value in self.tree.items() if key != "grid"}, self._place_of_grid()
        for key, value in point.items():
            tree = _with_value(tree, tuple(key.split(".")), value)
        return as_used(_validate(tree, self.places | {tuple(key.split(".")): place for key in point}))

    def _place_of_grid(self) -> str:
        return self.places.get(("grid",), "grid")


def load_config(path: Path, overrides: list[str] | tuple[str, ...] = ()) -> LoadedConfig:
    """Read a YAML file and apply `key=value` overrides. Raises ConfigError."""
    tree, places = _read_yaml(path)
    texts = []
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise ConfigError(
                f"--set {override}: not of the form key=value",
                fix="Write for example --set pretrain.batch_tokens=2048.",
            )
        keys = tuple(key.strip().split("."))
        _check_mappings_above(tree, keys, override, places)
        tree = _with_value(tree, keys, _parse_value(text, override))
        places = {other: place for other, place in places.items() if other[: len(keys)] != keys}
        places[keys] = f"--set {override}"
        texts.append((keys, override))
    check_overrides(texts)
    config = _validate(tree, places)
    check_grids(config.grid, dict(texts), places)
    loaded = LoadedConfig(config, tree, places)
    loaded.cells()  # a wrong grid is told now, not when its cell starts
    return loaded


def _parse_value(text: str, override: str) -> Any:
    try:
        return _number(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise ConfigError(
            f"--set {override}: the value is no YAML", fix="Quote it, or write a plain number or word."
        ) from error


def _number(value: Any) -> Any:
    """YAML 1.1 reads 6e-4 as text (it wants 6.0e-4); people mean the number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _read_yaml(path: Path) -> tuple[Tree, Places]:
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(
            f"cannot read the configuration {path}: {reason}", fix="Name a YAML file, e.g. configs/quickstart.yaml."
        ) from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(
            f"{path}{line}: not valid YAML: {getattr(error, 'problem', error)}", fix="Correct the line."
        ) from error
    places: Places = {}
    tree = {} if node is None else _to_python(node, path, (), places)
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}:1: a configuration is a mapping of keys", fix="Begin with e.g. `name: my-sweep`.")
    return tree, places


def _to_python(node: yaml.Node, path: Path, keys: tuple[str, ...], places: Places) -> Any:
    """A YAML node as Python values, noting the line of every key; a key given twice is an error."""
    if isinstance(node, yaml.MappingNode):
        result: Tree = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            place = f"{path}:{key_node.start_mark.line + 1}"
            if key in result:
                raise ConfigError(f"{place}: the key {key!r} stands here twice", fix="Remove one of them.")
            places[(*keys, key)] = place
            result[key] = _to_python(value_node, path, (*keys, key), places)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_to_python(child, path, (*keys, str(i)), places) for i, child in enumerate(node.value)]
    value = yaml.SafeLoader("").construct_object(node)
    return _number(value) if isinstance(node, yaml.ScalarNode) and node.style is None else value


def _check_mappings_above(tree: Tree, keys: tuple[str, ...], override: str, places: Places) -> None:
    """Raises ConfigError where a `--set` would put a mapping in the place of a list or a number, as of a list of grids."""
    above: Any = tree
    for depth, key in enumerate(keys[:-1], 1):
        above = above.get(key)
        if above is None:
            return
        if not isinstance(above, dict):
            section = ".".join(keys[:depth])
            raise ConfigError(
                f"--set {override} would replace all of {section}, which {_place_of(keys[:depth], places)} sets",
                fix=f"Write it anew: --set '{section}=...'.",
            )


def _with_value(tree: Tree, keys: tuple[str, ...], value: Any) -> Tree:
    """A copy of the tree in which one dotted key has this value."""
    if len(keys) == 1:
        return {**tree, keys[0]: value}
    child = tree.get(keys[0])
    return {**tree, keys[0]: _with_value(child if isinstance(child, dict) else {}, keys[1:], value)}


def _model_name(config: Config) -> str:
    """`crate-3l`; what else varies between models of one name stands behind it: `crate-3l-lambda_sparsity0.05-seed1`."""
    return f"{config.model.architecture}-{config.model.n_layer}l"


def _validate(tree: Tree, places: Places) -> Config:
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise _told(error, tree, places) from error


def _told(error: ValidationError, tree: Tree, places: Places) -> ConfigError:
    first = error.errors()[0]
    keys = tuple(str(part) for part in first["loc"] if not str(part).startswith(("function-", "tagged-")))
    place = _place_of(keys, places)
    dotted = ".".join(keys)
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _known_keys(keys[:-1])
        near = difflib.get_close_matches(keys[-1], known, n=1)
        elsewhere = [".".join(k) for k in _all_keys() if k[-1] == keys[-1]]
        hint = f"; did you mean {near[0]!r}?" if near else f"; did you mean {elsewhere[0]!r}?" if elsewhere else ""
        return ConfigError(f"{place}: no such key {dotted!r}{hint}", fix=f"Known here: {', '.join(known)}.")
    message = first["msg"].removeprefix("Value error, ")
    return ConfigError(f"{place}: {dotted}: {message}", fix=f"It is {first.get('input')!r}; correct the value.")


def _place_of(keys: tuple[str, ...], places: Places) -> str:
    """Where the key stands, or the nearest key above it."""
    for length in range(len(keys), 0, -1):
        if keys[:length] in places:
            return places[keys[:length]]
    return "configuration"


def _known_keys(keys: tuple[str, ...]) -> list[str]:
    section: Any = Config()
    for key in keys:
        section = getattr(section, key, None)
    return list(_fields(section))


def _fields(section: Any) -> dict[str, Any]:
    if isinstance(section, BaseModel):
        return {name: getattr(section, name) for name in type(section).model_fields}
    if dataclasses.is_dataclass(section):
        return {field.name: getattr(section, field.name) for field in dataclasses.fields(section)}
    return {}


def _all_keys(section: Any = None, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in _fields(Config() if section is None else section).items():
        yield (*above, name)
        yield from _all_keys(value, (*above, name)) if _fields(value) else ()


def describe(loaded: LoadedConfig) -> Iterator[tuple[str, Any, str]]:
    """Every value of the tree with where it comes from: (dotted key, value, place or "default")."""
    for keys in _all_keys(loaded.config):
        value: Any = loaded.config
        for key in keys:
            value = getattr(value, key)
        if not _fields(value):
            yield ".".join(keys), value, loaded.places.get(keys, "default")
