"""Hugging Face datasets by name, streamed: nothing is kept on the disk.

A source is written like a web address: `monology/pile-uncopyrighted`, or with what `datasets.load_dataset` should be told,
`wikimedia/wikipedia?name=20231101.en&split=train&revision=main`. A local folder works as a name too.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qsl

import pyarrow as pa

from pipeline.config import TokensConfig
from pipeline.errors import ResourceError
from pipeline.tokens.documents import Bad, SourceDocument, from_record
from pipeline.tokens.files import Found

SPLIT_NAMES = {"train": "train", "hashed": "train", "val": "validation", "test": "test"}
DAMAGE = (ValueError, EOFError, zlib.error, pa.ArrowException)  # in what was read, not on the way to it
OPTIONS = {"name", "split", "revision", "data_files", "data_dir"}


def list_hugging_face(address: str, split: str) -> list[tuple[Found, int]]:
    """The parts that a dataset can be read in, one shard each. Raises ResourceError when it cannot be opened."""
    name, _, query = address.partition("?")
    options = {"split": SPLIT_NAMES[split]} | dict(parse_qsl(query))
    if unknown := options.keys() - OPTIONS:
        raise ResourceError(
            f"{address}: no such option {min(unknown)!r}", fix=f"There are {', '.join(sorted(OPTIONS))}."
        )
    path = name + "?" + "&".join(f"{key}={value}" for key, value in sorted(options.items()))
    dataset = _open(path)
    described = dataset.info.splits.get(options["split"]) if dataset.info.splits else None
    n_bytes = described.num_bytes // dataset.num_shards if described else 0
    file = Found(path, path, n_bytes, str(dataset.info.version or ""))
    return [(file, part) for part in range(dataset.num_shards)]


def _open(path: str) -> Any:
    import datasets

    name, _, query = path.partition("?")
    options: dict[str, Any] = dict(parse_qsl(query))
    try:
        return datasets.load_dataset(name, streaming=True, **options)
    except (OSError, *DAMAGE) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: Exception) -> ResourceError:
    first = str(error).partition("\n")[0]
    return ResourceError(f"cannot read the dataset {path}: {first}", fix="Check its name, options and the network.")


def read_hugging_face(
    file: Found, part: int, config: TokensConfig, report: Callable[[int], None]
) -> Iterator[SourceDocument | Bad]:
    """The documents of one part, numbered by row from 1."""
    from datasets.exceptions import DatasetsError

    dataset, origin = _open(file.path), f"{file.origin}#{part}"
    rows = dataset.shard(num_shards=dataset.num_shards, index=part)
    row = done = 0
    try:
        for row, record in enumerate(rows, start=1):
            document = from_record(record, config, origin, row)
            done += len(document.utf8) if isinstance(document, SourceDocument) else 0
            report(min(done, file.bytes))
            yield document
    except (OSError, DatasetsError) as error:
        raise _unreadable(file.path, error) from error
    except DAMAGE as error:
        yield Bad("damaged_file", origin, row + 1, f"{error}: what follows could not be read", "")
