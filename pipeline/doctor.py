"""`python -m pipeline doctor`: what this machine offers, and what a sweep here would use."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline import runtime, this_machine

WANTED_FREE_BYTES = 5e9


def examine(store: Path) -> int:
    """Print one line a fact; 1 when something is missing without which nothing runs."""
    import torch

    facts: list[tuple[str, str, bool]] = []
    versions = {
        name: this_machine.package_version(name)
        for name in ("torch", "deepspeed", "ray", "mlflow", "pyarrow", "tiktoken")
    }
    for name, version in versions.items():
        facts.append((name, version or "missing: run `make setup`", version is not None))
    facts.append(("processor", f"{this_machine.processor_name()}, {os.cpu_count()} cores", True))
    facts.append(("GPU", _gpus(torch), True))
    facts.append(("bf16 here", _bf16(torch), True))
    facts.append(("apex", _apex(torch), True))
    facts.append(("DeepSpeed operations", _deepspeed_ops(torch), True))
    facts.append(("build locks", _build_locks(), True))
    facts.append(("triton", _triton(torch), True))
    facts.append(
        ("fast tokenizer", "fastokens" if this_machine.has_module("fastokens") else "absent: tiktoken alone", True)
    )
    free = this_machine.free_disk_bytes(store.absolute())
    facts.append(("disk for the store", f"{free / 1e9:.0f} GB free at {store}", free > WANTED_FREE_BYTES))
    facts.append(
        (
            "judge key",
            "set" if runtime.api_key() else f"not set ({runtime.JUDGE_KEY}); the offline judge needs none",
            True,
        )
    )
    for name, text, good in facts:
        print(f"{'ok ' if good else 'BAD'}  {name:<22}{text}")
    return 0 if all(good for _, _, good in facts) else 4


def _gpus(torch) -> str:
    if not torch.cuda.is_available():
        return "none: everything runs on the processor"
    return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))


def _bf16(torch) -> str:
    from crate_model.ops.precision import fast_bf16

    if torch.cuda.is_available():
        return (
            "native on the GPU" if torch.cuda.is_bf16_supported() else "slow on this GPU: set pretrain.precision=fp16"
        )
    return "native" if fast_bf16() else "stored as bf16, multiplied in float32 (no native bf16 in this processor)"


def _triton(torch) -> str:
    """Whether a kernel runs is known once one was launched: a package that imports finds no compiler only then."""
    if not torch.cuda.is_available():
        return "not needed on the processor"
    from crate_model.ops.precision import why_no_triton

    if why := why_no_triton():
        return f"its kernels do not run ({why}): torch's own operations are used instead, slower"
    return "works: a kernel was compiled and launched"


def _apex(torch) -> str:
    """NVIDIA's apex is known by its compiled extension; PyPI's package of that name is something else."""
    if this_machine.has_module("amp_C"):
        return "NVIDIA apex with fused optimizers" + ("" if torch.cuda.is_available() else ", of no use without a GPU")
    return (
        "another package of that name, not NVIDIA's"
        if this_machine.has_module("apex")
        else "absent: torch's fused AdamW is used"
    )


def _deepspeed_ops(torch) -> str:
    if not torch.cuda.is_available():
        return "none needed on the processor"
    if not this_machine.has_module("deepspeed"):
        return "none: DeepSpeed is missing"
    from pipeline.pretrain.op_builds import prebuilt_operations

    built = ", ".join(prebuilt_operations())
    return built or "none prebuilt for this machine: torch's fused AdamW is used unless you ask for another"


def _build_locks() -> str:
    """Locks that killed builds of compiled operations left on this machine."""
    from pipeline.pretrain.op_builds import build_root, stale_locks

    left = ", ".join(map(str, stale_locks(build_root())))
    return f"left by a build that was killed, removed when it is built next: {left}" if left else "none left over"
