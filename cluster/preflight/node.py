"""What one node offers: its user, memory, disks, store and GPUs."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from cluster.preflight.fact import Fact, first_line

GIB = 1024**3


def user() -> Iterator[Fact]:
    yield Fact(os.getuid() != 0, f"uid {os.getuid()}", "set runAsUser; a restricted namespace refuses root")


def shm() -> Iterator[Fact]:
    """Ray's object store and NCCL's transport between the GPUs of a node both live in it."""
    size = shutil.disk_usage("/dev/shm").total / GIB
    wanted = float(os.environ.get("PREFLIGHT_SHM_GIB", "4"))
    yield Fact(
        size >= wanted, f"{size:.1f} GiB at /dev/shm", f"{wanted:g} GiB wanted; mount an emptyDir of medium Memory"
    )


def scratch() -> Iterator[Fact]:
    wanted = float(os.environ.get("PREFLIGHT_SCRATCH_GIB", "20"))
    with tempfile.NamedTemporaryFile() as file:
        free = shutil.disk_usage(file.name).free / GIB
        block, started = secrets.token_bytes(1 << 20), time.monotonic()
        for _ in range(256):
            file.write(block)
        os.fsync(file.fileno())
        rate = 256 / (time.monotonic() - started)
    found = f"{free:.0f} GiB free at {tempfile.gettempdir()}, {rate:.0f} MiB/s written"
    yield Fact(free >= wanted, found, f"{wanted:g} GiB wanted; raise the scratch volume's sizeLimit")


def store() -> Iterator[Fact]:
    """Write, rename, read back, delete, by the library and the address that the sweep will use."""
    uri = os.environ.get("CRATE_STORE", "")
    if not uri:
        yield Fact(None, "CRATE_STORE is not set")
        return
    from pyarrow import fs

    folder, block = f".preflight-{secrets.token_hex(4)}", secrets.token_bytes(32 << 20)
    system = None
    try:
        system, path = (
            fs.FileSystem.from_uri(uri) if "://" in uri else (fs.LocalFileSystem(), str(Path(uri).absolute()))
        )
        folder = f"{path}/{folder}"
        system.create_dir(folder, recursive=True)
        started = time.monotonic()
        with system.open_output_stream(f"{folder}/a") as stream:
            stream.write(block)
        system.move(f"{folder}/a", f"{folder}/b")
        with system.open_input_stream(f"{folder}/b") as stream:
            same = stream.read() == block
        rate = 64 / (time.monotonic() - started)
        yield Fact(same, f"{uri}: {rate:.0f} MiB/s written and read", "what was read is not what was written")
    except (OSError, ValueError) as error:
        fix = "check the claim or the bucket, its keys in crate-secrets, and the network policies"
        yield Fact(False, f"{uri}: {first_line(error)}", fix)
    finally:
        with contextlib.suppress(OSError):  # the fault itself was told above
            if system:
                system.delete_dir(folder)


def gpus() -> Iterator[Fact]:
    import torch

    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        yield Fact(True, f"{index}: {found.name}, {found.total_memory / GIB:.0f} GiB, sm_{found.major}{found.minor}")
    if not torch.cuda.device_count():
        yield Fact(None, "no GPU in this pod")


def triton() -> Iterator[Fact]:
    """One kernel compiled and launched, as a training step does first; without a GPU nothing needs a compiler."""
    import torch

    if not torch.cuda.is_available():
        yield Fact(None, "Triton's kernels need a GPU")
        return
    from crate_model.ops.precision import why_no_triton

    fix = "install g++ and Python's headers, as FLAVOR=cuda does; TRITON_CACHE_DIR must be writable"
    why = why_no_triton()
    yield Fact(not why, f"no Triton kernel runs ({why})" if why else "a Triton kernel, compiled and launched", fix)


def fused() -> Iterator[Fact]:
    """Compiled into the image, or the first step on every pod would compile them."""
    import torch

    if not torch.cuda.is_available():
        yield Fact(None, "fused optimizers need a GPU")
        return
    from deepspeed.git_version_info import accelerator_name, installed_ops

    fix = "build the image with FLAVOR=gpu, or run with runtime.optimizer=torch_fused"
    there = accelerator_name == "cuda" and bool(installed_ops.get("fused_adam"))  # DeepSpeed loads no other's
    yield Fact(there, "DeepSpeed FusedAdam, compiled into the image", fix)
    try:
        import amp_C  # noqa: F401  the compiled part; an unrelated package is also called apex

        yield Fact(True, "apex FusedAdam, compiled into the image")
    except (ImportError, OSError) as error:  # OSError: compiled for another torch
        yield Fact(None, f"no apex: {first_line(error)}")
