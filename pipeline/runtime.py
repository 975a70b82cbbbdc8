"""The environment, read once and here only: secrets, places, the Ray cluster. The machine itself: `this_machine.py`."""

from __future__ import annotations

import logging
import os
import secrets
import shlex
import sys
import tempfile
import time
from pathlib import Path

from pipeline.artifacts.store import Store
from pipeline.config import RuntimeConfig
from pipeline.errors import ResourceError

JUDGE_KEY = "CRATE_JUDGE_API_KEY"
SIMULATOR_KEY = "CRATE_SIMULATOR_API_KEY"  # of runtime.judge_simulator_url, where that is another server
BUSY_CLUSTER_SECONDS = 60
NOT_UP_IN_TIME = "timed out during startup"


def api_key(name: str = JUDGE_KEY) -> str | None:
    """A judge's key from the environment, or from the file that the variable `<name>_FILE` names (a mounted secret)."""
    if key := os.environ.get(name):
        return key
    path = os.environ.get(f"{name}_FILE")
    return Path(path).read_text("utf-8").strip() if path else None


def cache_folder() -> Path:
    """What can be had again lies here: below CRATE_CACHE, else XDG_CACHE_HOME, else ~/.cache."""
    base = os.environ.get("CRATE_CACHE") or os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "crate-scaling"


def open_store(place: str) -> Store:
    """The store at a folder or `s3://` address. A remote one is cached in `cache_folder`."""
    return Store.open(place if "://" in place else str(Path(place).absolute()), cache_folder())


def mlflow_uri(runtime: RuntimeConfig, store: Store) -> str:
    """Where runs are tracked: the configuration, else MLFLOW_TRACKING_URI, else a sqlite file in a store that is a folder."""
    uri = runtime.mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri and store.storage:
        raise ResourceError(
            f"the store {store.place} cannot hold MLflow's database",
            fix="Set MLFLOW_TRACKING_URI or runtime.mlflow_uri to a server, e.g. http://mlflow:5000.",
        )
    return uri or f"sqlite:///{store.root.resolve()}/mlflow.db"


def quiet_libraries() -> None:
    """Settings that libraries read from the environment when they are imported; workers inherit them."""
    quiet = {
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_DEDUP_LOGS": "0",
        "RAY_DISABLE_IMPORT_WARNING": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "DS_LOG_LEVEL": "error",
    }
    for name, value in quiet.items():
        os.environ.setdefault(name, value)


def connect_ray(runtime: RuntimeConfig) -> dict[str, float]:
    """Join the cluster of `runtime.ray_address` or RAY_ADDRESS, else start a private one. Returns its total resources.

    Raises ResourceError when the cluster cannot be joined or has nothing free for a minute.
    """
    quiet_libraries()
    address = runtime.ray_address or os.environ.get("RAY_ADDRESS", "")
    if not address:
        _make_private_token()
    import ray

    try:
        if address:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        else:
            _start_private_cluster(runtime)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ResourceError(
            f"cannot {'join the Ray cluster at ' + address if address else 'start Ray here'}: {_first_line(error)}",
            fix="Check that the address, its token (RAY_AUTH_TOKEN) and its Ray and Python versions are right, "
            "or leave runtime.ray_address and RAY_ADDRESS empty for a private cluster.",
        ) from error
    _wait_for_room(address)
    return ray.cluster_resources()


def has_gpu() -> bool:
    """Has the cluster one; where none is up, none is asked for."""
    import ray

    return ray.is_initialized() and ray.cluster_resources().get("GPU", 0) > 0


def _start_private_cluster(runtime: RuntimeConfig) -> None:
    """Twice at most: a node that is not up within Ray's half minute, on a busy machine, is begun anew."""
    for last in (False, True):
        try:
            return _init_here(runtime)
        except Exception as error:  # Ray has no class of its own for this one
            if NOT_UP_IN_TIME not in str(error):
                raise
            if last:
                raise ConnectionError(str(error)) from error


def _init_here(runtime: RuntimeConfig) -> None:
    import ray

    ray.init(
        address="local",
        num_cpus=runtime.cpus or None,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env=_quoted_interpreter(),
        _temp_dir=str(Path(tempfile.gettempdir()) / f"crate-ray-{os.getuid()}"),
    )


def _quoted_interpreter() -> dict[str, str] | None:
    """Ray 2.60 puts the interpreter's path unquoted into a shell command: a folder with a space in its name needs this."""
    quoted = shlex.quote(sys.executable)
    return None if quoted == sys.executable else {"py_executable": quoted}


def _make_private_token() -> None:
    """A token that only the private cluster's processes inherit: nobody else may submit to it. Ray reads it when imported."""
    if "ray" not in sys.modules:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        if os.environ["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN_PATH" not in os.environ:
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _wait_for_room(address: str) -> None:
    import ray

    deadline = time.monotonic() + BUSY_CLUSTER_SECONDS
    while ray.available_resources().get("CPU", 0) < 1:
        if time.monotonic() > deadline:
            total = ray.cluster_resources().get("CPU", 0)
            raise ResourceError(
                f"the Ray cluster {address or 'here'} has {total:.0f} CPUs and none was free for {BUSY_CLUSTER_SECONDS} s",
                fix="Wait for its other jobs, add nodes, or leave RAY_ADDRESS empty for a private cluster.",
            )
        time.sleep(0.5)


def ray_log_folder() -> Path:
    import ray

    return (
        Path(ray.get_runtime_context().get_temp_dir()) / "session_latest" / "logs" if ray.is_initialized() else Path()
    )


def resolve(runtime: RuntimeConfig, resources: dict[str, float], n_cells: int) -> RuntimeConfig:
    """Replace the zeros ("as many as there are") by numbers for this cluster.

    Without GPUs: one worker a cell, as many cells side by side as there are cores, and the cores shared out as threads.
    """
    gpus, cpus = int(resources.get("GPU", 0)), max(1, int(resources.get("CPU", 1)))
    slots = int(gpus / runtime.gpus_per_worker) if gpus else cpus
    parallel = runtime.parallel_cells or max(1, min(n_cells, slots // max(1, runtime.workers_per_cell)))
    workers = runtime.workers_per_cell or (max(1, slots // parallel) if gpus else 1)
    if workers > slots:
        raise ResourceError(
            f"runtime.workers_per_cell is {workers}, but the cluster has room for {slots}",
            fix=f"Set it to {slots} or less, or 0 for what fits.",
        )
    threads = runtime.threads_per_worker or max(1, cpus // (parallel * workers))
    return runtime.model_copy(
        update={"parallel_cells": parallel, "workers_per_cell": workers, "threads_per_worker": threads, "cpus": cpus}
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
