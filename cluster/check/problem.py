"""What is wrong, where, and by which rule."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

Object = dict[str, Any]  # one Kubernetes object, as its YAML says it


class Problem(NamedTuple):
    rule: str
    where: str  # Kind/name and a path in it
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what} [{self.rule}]"


Problems = Iterator[Problem]


def name_of(item: Object) -> str:
    metadata = item.get("metadata")
    return f"{item.get('kind', '?')}/{metadata.get('name', '?') if isinstance(metadata, dict) else '?'}"
