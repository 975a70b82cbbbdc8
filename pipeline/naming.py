"""Names that tell things apart by what varies between them, fit for folders, links, MLflow and a command line."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

LONGEST_VALUE, LONGEST_NAME = 32, 120  # characters; with a step's name behind it a file system takes 255
UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def flat(values: Any, above: str = "") -> dict[str, Any]:
    """The leaves of a tree of mappings by dotted key."""
    if not isinstance(values, Mapping):
        return {above: values}
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{above}.{key}" if above else key)
    return found


def names_of(stems: Sequence[str], values: Sequence[Mapping[str, Any]]) -> list[str]:
    """One name each: its stem, and behind it what varies among those of its stem, `crate-3l-lambda_sparsity0.05-seed1`.

    `values` are JSON values by dotted key. Different pairs of stem and values get names that differ, on a file system
    that knows no upper and lower case, too; of letters, digits, `.`, `_` and `-`, if the stems are.
    """
    alike: dict[str, list[Mapping[str, Any]]] = {}
    for stem, own in zip(stems, values, strict=True):
        alike.setdefault(stem, []).append(own)
    labels = {stem: _labels(like) for stem, like in alike.items()}
    names = [_name(stem, own, labels[stem]) for stem, own in zip(stems, values, strict=True)]
    told = [hashlib.sha256(_json([stem, own]).encode()).hexdigest() for stem, own in zip(stems, values, strict=True)]
    for digits in (8, 64):  # of what the names left out, where they would be one
        folded = [name.casefold() for name in names]
        names = [
            name if folded.count(name.casefold()) == 1 else f"{name[:LONGEST_NAME]}-{whole[:digits]}"
            for name, whole in zip(names, told, strict=True)
        ]
    return names


def _labels(like: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, dict[str, str]]]:
    """By each key that varies: how it is called, and what stands for each of its values, by their JSON."""
    keys = sorted({key for one in like for key in one})
    keys = [key for key in keys if len({_json(one.get(key)) for one in like}) > 1]
    short = [key.rpartition(".")[2] for key in keys]
    called = [label if short.count(label) == 1 else key for key, label in zip(keys, short, strict=True)]
    return {key: (label, _texts([one.get(key) for one in like])) for key, label in zip(keys, called, strict=True)}


def _name(stem: str, own: Mapping[str, Any], labels: Mapping[str, tuple[str, dict[str, str]]]) -> str:
    parts = [label + texts[_json(own.get(key))] for key, (label, texts) in labels.items()]
    name = "-".join([stem, *parts])
    return name if len(name) <= LONGEST_NAME else _shortened(name, LONGEST_NAME)


def _texts(values: Sequence[Any]) -> dict[str, str]:
    """What stands for each value in a name, of paths the part in which they differ."""
    texts = {_json(value): _text(value) for value in values}
    folder = _common_folder([text for text in texts.values() if "/" in text])
    texts = {key: text.removeprefix(folder) for key, text in texts.items()}
    safe = {key: UNSAFE.sub("_", text) for key, text in texts.items()}
    return {key: text if len(text) <= LONGEST_VALUE else _shortened(text, LONGEST_VALUE) for key, text in safe.items()}


def _common_folder(paths: Sequence[str]) -> str:
    """With the slash behind it; empty where there is none."""
    parts = zip(*(path.split("/")[:-1] for path in paths), strict=False)
    return "".join(f"{names[0]}/" for names in takewhile(lambda names: len(set(names)) == 1, parts))


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "_".join(map(_text, value)) if value else "none"
    if isinstance(value, dict):
        return "_".join(f"{key}{_text(own)}" for key, own in value.items())
    return str(value)


def _shortened(text: str, longest: int) -> str:
    return f"{text[: longest - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
