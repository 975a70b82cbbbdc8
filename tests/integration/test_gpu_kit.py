"""What is carried to a GPU machine without a network: the parts that can be made without one, and what is told of the rest."""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from pipeline.artifacts.store import Store
from pipeline.artifacts.tokens import TokenSplit
from pipeline.config_load import load_config
from pipeline.pretrain.__main__ import find_tokens

ROOT = Path(__file__).parents[2]
FILES = {
    "ray/__init__.py": "from ray.core import answer\n",
    "ray/core.py": "answer = 42\n",
    "ray/raylet": "#!/bin/sh\necho raylet\n",
    "ray/jars/ray_dist.jar": "java" * 1000,
    "ray/rllib/__init__.py": "",
    "ray/dashboard/__init__.py": "",
    "ray/dashboard/client/build/index.html": "<html>",
    "ray-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: ray\nVersion: 1.0\n",
    "ray-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
}


@pytest.fixture
def kit(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Benchmarks are programs, not a package: found by their folder."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("gpu.kit")


def digest(content: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A Ray in small, built as wheels are, with a program that must stay executable."""
    path = tmp_path / "ray-1.0-py3-none-any.whl"
    record = [f"{name},{digest(text.encode())},{len(text)}" for name, text in FILES.items()]
    lines = [*record, "ray-1.0.dist-info/RECORD,,"]
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in (FILES | {"ray-1.0.dist-info/RECORD": "\n".join(lines) + "\n"}).items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (0o100755 if name == "ray/raylet" else 0o100644) << 16
            archive.writestr(entry, text)
    return path


def test_a_slim_wheel_installs_imports_and_records_just_what_it_holds(
    kit: ModuleType, wheel: Path, tmp_path: Path
) -> None:
    (tmp_path / "slim").mkdir()
    slim = kit.slim(wheel, tmp_path / "slim", kit.NOT_OF_RAY)
    with zipfile.ZipFile(slim) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    recorded = {row[0]: row[1] for row in csv.reader(held.pop("ray-1.0.dist-info/RECORD").decode().splitlines())}
    del recorded["ray-1.0.dist-info/RECORD"]
    assert recorded == {name: digest(content) for name, content in held.items()}
    assert set(FILES) - set(held) == {
        "ray/jars/ray_dist.jar",
        "ray/rllib/__init__.py",
        "ray/dashboard/client/build/index.html",
    }
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target"]
    subprocess.run([*pip, str(site), str(slim)], check=True)
    command = [sys.executable, "-c", "import ray; print(ray.answer)"]
    done = subprocess.run(command, env={"PYTHONPATH": str(site)}, capture_output=True, text=True, check=True)
    assert done.stdout == "42\n"
    assert subprocess.run([site / "ray" / "raylet"], capture_output=True, check=True).stdout == b"raylet\n"


def test_the_tokens_are_those_that_a_training_of_the_quickstart_looks_for(kit: ModuleType, tmp_path: Path) -> None:
    assert kit.main(["tokens", "--to", str(tmp_path / "kit")]) == 0
    with tarfile.open(tmp_path / "kit" / "tokens" / "store.tgz") as packed:
        packed.extractall(tmp_path / "store", filter="data")
    cell = load_config(ROOT / "configs" / "quickstart.yaml", []).cells()[0]
    found = find_tokens(Store(tmp_path / "store"), cell.config)
    for split in ("train", "val"):
        assert len(TokenSplit(found, split).read(0, 1000)) == 1000
    assert TokenSplit(found, "train").n_tokens == found.manifest.summary["train"]["n_tokens"] > 1_000_000


def test_versions_are_the_lock_s_for_the_gpu_machine_s_python(kit: ModuleType) -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert set(kit.locked([*kit.WHEELS, *kit.BESIDE_RAY, "ray", "deepspeed"])) <= set(lines)
    [contourpy] = kit.locked(["contourpy"])  # one of those that are pinned twice
    assert f"{contourpy} ; python_full_version >= '3.12'" in lines


@pytest.mark.skipif(not (shutil.which("gcc") or shutil.which("cc")), reason="no C compiler on PATH")
def test_of_apex_only_amp_c_is_built_and_the_checkout_stays_as_it_is(kit: ModuleType, tmp_path: Path) -> None:
    checkout, made = tmp_path / "checkout", tmp_path / "made"
    (checkout / "apex").mkdir(parents=True)
    made.mkdir()
    (checkout / "apex" / "__init__.py").write_text("")
    (checkout / "amp_C.c").write_text(
        '#include <Python.h>\nstatic struct PyModuleDef m = {PyModuleDef_HEAD_INIT, "amp_C", 0, -1};\n'
        "PyMODINIT_FUNC PyInit_amp_C(void) { return PyModule_Create(&m); }\n"
    )
    (checkout / "setup.py").write_text(
        "import sys\nfrom setuptools import Extension, setup\nassert sys.argv.pop(1) == '--cuda_ext'\n"
        "setup(name='apex', version='0.1', packages=['apex'],\n"
        "      ext_modules=[Extension('syncbn', ['missing.c']), Extension('amp_C', ['amp_C.c'])])\n"
    )
    before = sorted(checkout.rglob("*"))
    kit.build_amp_c(Path(sys.executable), checkout, made, {})
    assert sorted(checkout.rglob("*")) == before
    [path] = made.iterdir()
    names = zipfile.ZipFile(path).namelist()
    assert "apex/__init__.py" in names and [name.split(".")[0] for name in names if name.endswith(".so")] == ["amp_C"]


def test_a_python_that_cannot_compile_for_a_gpu_is_refused_with_why(kit: ModuleType) -> None:
    """This one has torch's CPU build, or is another Python than the GPU machine's."""
    with pytest.raises(kit.CannotMake, match=r"is Python 3\.\d+, the GPU machine's is 3\.12|which is no CUDA build"):
        kit.build_environment(Path(sys.executable))


@pytest.mark.parametrize(("asked", "code"), [([], 0), (["good"], 0), (["apex"], 1), (["broken", "good"], 1)])
def test_a_part_that_cannot_be_made_is_told_and_the_others_go_on(
    kit: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    asked: list[str],
    code: int,
) -> None:
    def good(kit_: object, folder: Path) -> str:
        (folder / "file").write_bytes(b"0" * 2**20)
        return "a note"

    def broken(kit_: object, folder: Path) -> str:
        (folder / "half").write_text("")
        return kit.run([sys.executable, "-c", "import sys; sys.exit('the compiler said no')"])

    monkeypatch.setattr(kit, "PARTS", {"broken": broken, "apex": kit.apex, "good": good})
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "of an earlier run").write_text("")
    assert kit.main([*asked, "--to", str(tmp_path)]) == code
    told = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert list(told) == (asked or ["broken", "apex", "good"])
    if "good" in told:
        assert told["good"] == "good       1.0 MiB: file (a note)"
    if "apex" in told:
        assert "APEX names no checkout of github.com/NVIDIA/apex" in told["apex"]
    if "broken" in told:
        before, _, log = told["broken"].partition("; what it printed: ")
        assert before.endswith("ended with 1") and "the compiler said no" in Path(log).read_text()
        Path(log).unlink()
    assert [path.name for path in (tmp_path / "broken").iterdir()] == ["of an earlier run"]  # nothing in half
    assert not list(tmp_path.glob(".*"))
