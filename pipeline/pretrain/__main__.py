"""Train one model without Ray: `python -m pipeline.pretrain --config C`, or under torchrun on all GPUs of a box.

The artifact is the one that the sweep would make, and goes to the same place: a later sweep finds it there.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.store import Store
from pipeline.config import Config
from pipeline.config_load import Cell, load_config
from pipeline.errors import ArtifactError, ConfigError, CrateError
from pipeline.pretrain.job import TrainingJob
from pipeline.pretrain.stage import STAGE, finish
from pipeline.stage import Context, canonical
from pipeline.tracking import TrackerSpec


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipeline.pretrain", description=__doc__.partition("\n")[0])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key")
    parser.add_argument("--cell", default="", help="which model of the configuration's grid, e.g. crate-3l")
    options = parser.parse_args(arguments)
    try:
        return train_cell(_cell(options))
    except CrateError as error:
        if _rank() == 0:
            print(f"error: {error.what}\n  {error.fix}", file=sys.stderr)
        return error.exit_code


def train_cell(cell: Cell) -> int:
    from pipeline import runtime
    from pipeline.this_machine import provenance

    if folder := cell.config.pretrain.checkpoint:  # trained weights would stand in the place of the imported ones
        raise ConfigError(
            f"{cell.name} is an imported model: there is nothing to train",
            fix=f"Run the sweep, which takes it from {folder}; or leave pretrain.checkpoint out.",
        )
    runtime.quiet_libraries()
    logging.basicConfig(level="WARNING", format="%(message)s")
    logging.getLogger("pipeline").setLevel("INFO" if _rank() == 0 else "WARNING")
    import torch.distributed as dist

    config = cell.config
    store = runtime.open_store(config.runtime.store)
    tokens = find_tokens(store, config)
    settings = STAGE.settings_of(config)
    recipe = STAGE.recipe(settings, {"tokens": tokens.fingerprint}) | {"input_seals": {"tokens": tokens.manifest.seal}}
    fingerprint = recipe["fingerprint"]
    context = Context(store, config.runtime, config.name, f"{cell.name}/pretrain", fingerprint, TrackerSpec())
    with store.claim(fingerprint) if _rank() == 0 else nullcontext():  # a sweep may be at it too
        with process_group(config.runtime.collective_timeout_seconds) as device, _asked_to_stop() as stop:
            if _first_says(store.find(STAGE.name, fingerprint) is not None):
                return _say_done(store, fingerprint)
            out_folder = Path(_first_says(str(store.making_folder(fingerprint)) if _rank() == 0 else ""))
            job = TrainingJob(settings, tokens, out_folder, context)
            _train(job, device, lambda: stop() or context.stop_requested())
            dist.barrier()
        if _rank() != 0:
            return 0
        try:
            store.publish(out_folder, recipe, finish(job), provenance())
        finally:
            shutil.rmtree(out_folder, ignore_errors=True)
    return _say_done(store, fingerprint)


def _train(job: TrainingJob, device: Any, stop: Callable[[], bool]) -> None:
    from pipeline.pretrain.logbook import Wishes
    from pipeline.pretrain.worker import work

    work(job, device, Wishes(stop=stop))


def _cell(options: argparse.Namespace) -> Cell:
    cells = {cell.name: cell for cell in load_config(options.config, options.set).cells()}
    if len(cells) == 1 and not options.cell:
        return next(iter(cells.values()))
    if options.cell not in cells:
        asked = f"no cell {options.cell!r}" if options.cell else f"{len(cells)} cells"
        raise ConfigError(f"{options.config} has {asked}", fix=f"Name one with --cell: {', '.join(cells)}.")
    return cells[options.cell]


def find_tokens(store: Store, config: Config) -> Artifact:
    """The tokens that this configuration asks for. Raises ArtifactError when they were not made yet."""
    wanted = canonical(config.tokens)
    found = [a for a in store.all_of("tokens") if a.manifest.settings.get("tokens") == wanted]
    if not found:
        raise ArtifactError(
            f"the store {config.runtime.store} has no tokens of this configuration",
            fix="Make them first: `python pipeline/sweep.py --config ... --until tokens`, or any sweep of the same `tokens:`.",
        )
    newest = max(artifact.manifest.version for artifact in found)
    found = [artifact for artifact in found if artifact.manifest.version == newest]
    if len(found) > 1:
        raise ArtifactError(
            f"the store {config.runtime.store} has {len(found)} texts of this configuration, made of other sources",
            fix=f"Delete those that are not meant: {', '.join(str(artifact.folder) for artifact in found)}.",
        )
    return found[0]


ALONE = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "0",
}  # DeepSpeed reads them


@contextmanager
def process_group(timeout_seconds: float) -> Iterator[Any]:
    """torchrun's process group, or one of this process alone; yields the device to train on."""
    import torch
    import torch.distributed as dist

    on_gpu = torch.cuda.is_available()
    backend = "nccl" if on_gpu else "gloo"
    timeout = timedelta(seconds=timeout_seconds + 60)  # the watchdog is to speak first: it knows names
    alone = {} if "RANK" in os.environ else ALONE
    if not alone:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
        if on_gpu:
            torch.cuda.set_device(device)
        dist.init_process_group(backend, timeout=timeout)
    else:
        device = torch.device("cuda" if on_gpu else "cpu")
        os.environ.update(alone)
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield device
    finally:
        _forget_group()
        for name in alone:
            del os.environ[name]


def _forget_group() -> None:
    """End the process group, in DeepSpeed's memory too: it would go on with the old one in the next."""
    import deepspeed.comm
    import torch.distributed as dist

    (deepspeed.comm if deepspeed.comm.is_initialized() else dist).destroy_process_group()


@contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Within, SIGTERM and SIGINT ask to stop rather than kill."""
    asked: list[int] = []
    old = {number: signal.signal(number, lambda n, _: asked.append(n)) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _first_says(value: Any) -> Any:
    """What rank 0 says, on every rank."""
    import torch.distributed as dist

    values = [value]
    if dist.get_world_size() > 1:
        dist.broadcast_object_list(values)
    return values[0]


def _say_done(store: Store, fingerprint: str) -> int:
    if _rank() == 0:
        artifact = store.get(STAGE.name, fingerprint)
        print(f"{artifact.folder}  val loss {artifact.summary['val_loss']:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
