"""Checkpoint folders, and the import of crate-lm's and nanoGPT's files."""

import json
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch.utils._python_dispatch import TorchDispatchMode

from crate_model.checkpoint import load_checkpoint, save_checkpoint
from crate_model.config import ModelConfig
from crate_model.import_checkpoint import import_checkpoint
from crate_model.model import LanguageModel
from crate_model.published_names import BLOCK, TOP
from pipeline.cli import main
from pipeline.errors import ArtifactError

CRATE = ModelConfig("crate", 2, 2, 32, 16, 97)


@pytest.fixture
def model() -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(CRATE).eval()


def test_the_tied_head_is_stored_once(model: LanguageModel, tmp_path: Path) -> None:
    save_checkpoint(model, tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as stored:
        names = list(stored.keys())
        values = sum(stored.get_tensor(name).numel() for name in names)
    assert values == sum(parameter.numel() for parameter in model.parameters())
    assert [name for name in names if "tokens" in name] == ["model.embed.tokens.weight"]
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "crate_lm"


def test_loading_draws_no_initial_values(model: LanguageModel, tmp_path: Path) -> None:
    """They would be overwritten; and to draw them without memory torch imports its compiler, for seconds."""
    save_checkpoint(model, tmp_path)
    called: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.append(str(func))
            return func(*args, **(kwargs or {}))

    with Watch():
        load_checkpoint(tmp_path)
        assert called and not [name for name in called if "normal" in name or "uniform" in name]
        LanguageModel(CRATE)
    assert [name for name in called if "normal" in name] and [name for name in called if "uniform" in name]


def test_what_is_no_checkpoint_is_refused_in_words(model: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config\.json"):
        load_checkpoint(tmp_path)
    save_checkpoint(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"n_layer": 3}))
    with pytest.raises(ValueError, match=r"does not fit.*blocks\.2"):
        load_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    with pytest.raises(ValueError, match=r"model_type 'gpt2'.*crate_model\.hf\.from_gpt2"):
        load_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        load_checkpoint(tmp_path)
    save_checkpoint(model, tmp_path)
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(ValueError, match="broken"):
        load_checkpoint(tmp_path)


def published(config: ModelConfig, prefix: str = "") -> dict:
    """A file as the published training writes it: random weights under its names, model_args, optimizer, counters."""
    generator = torch.Generator().manual_seed(1)
    reverse = {ours: theirs for theirs, ours in (BLOCK[config.architecture] | TOP).items()}
    weights = {}
    for name, parameter in LanguageModel(config).named_parameters():
        parts = name.split(".")
        block = f"transformer.h.{parts[1]}." if parts[0] == "blocks" else ""
        ours = ".".join(parts[2:]) if block else name
        module, _, kind = ours.rpartition(".")
        theirs = reverse[ours] if ours in reverse else f"{reverse[module]}.{kind}"
        values = 0.3 * torch.randn(parameter.shape, generator=generator)
        weights[prefix + block + theirs] = values + (1 if "norm" in name and kind == "weight" else 0)
    weights[prefix + "lm_head.weight"] = weights[prefix + "transformer.wte.weight"]
    if config.architecture == "gpt2":
        mask = torch.ones(config.n_ctx, config.n_ctx).tril()[None, None]
        weights |= {f"{prefix}transformer.h.{layer}.attn.bias": mask for layer in range(config.n_layer)}
    arguments = {
        "n_layer": config.n_layer, "n_head": config.n_head, "n_embd": config.d_model, "block_size": config.n_ctx,
        "vocab_size": config.vocab_size, "bias": config.bias, "dropout": 0.0,
    }  # fmt: skip
    return {
        "model": weights,
        "optimizer": {"state": {}},
        "model_args": arguments,
        "iter_num": 7,
        "config": {"lr": 1e-3},
    }


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize(
    "config",
    [
        CRATE,
        ModelConfig("gpt2", 2, 2, 32, 16, 97),
        ModelConfig("gpt2", 2, 2, 32, 16, 97, bias=True, activation="gelu_erf"),
    ],
    ids=["crate", "gpt2", "gpt2-bias"],
)
def test_published_checkpoints_are_imported(config: ModelConfig, prefix: str, tmp_path: Path) -> None:
    torch.save(published(config, prefix), tmp_path / "ckpt.pt")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    done = import_checkpoint(tmp_path / "ckpt.pt", tmp_path / "out", config.activation, tmp_path / "tokenizer")
    assert done == config
    model = load_checkpoint(tmp_path / "out")
    assert model.config == config
    assert torch.equal(model.embed.tokens.weight, published(config)["model"]["transformer.wte.weight"])
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def damaged() -> dict[str, object]:
    untied, missing, misshapen, foreign, complete = (published(CRATE) for _ in range(5))
    untied["model"]["lm_head.weight"] = untied["model"]["lm_head.weight"] + 1
    del missing["model"]["transformer.h.1.ista.weight"]
    misshapen["model_args"]["n_embd"] = 64
    foreign["model"]["transformer.h.0.rotary.weight"] = torch.zeros(3)
    for layer in range(2):
        complete["model"][f"transformer.h.{layer}.ista.weight"] = torch.zeros(32, 32)
    no_arguments = {**published(CRATE), "model_args": {"n_layer": 2}}
    state_dict = published(CRATE)["model"]
    code = {**published(CRATE), "config": {"run": pickle.loads}}
    empty, no_dict = ({**published(CRATE), "model": model} for model in ({}, [torch.zeros(3)]))
    no_tensor = published(CRATE)
    no_tensor["model"]["transformer.wte.weight"] = [0.0]
    no_width, short_name = published(CRATE), published(CRATE)
    no_width["model_args"]["n_embd"] = 0
    short_name["model"]["transformer.h.1"] = torch.zeros(3)
    return {
        "not tied": untied, "weights do not fit": missing, "do not fit": misshapen, "rotary": foreign,
        "complete dictionary": complete, "model_args": no_arguments, "holds no `model`": state_dict, "cannot be read": code,
        r"do not fit its model_args \(embed": empty, "`model_args` is no dict": no_dict,
        "no tensor .transformer.wte.weight": no_tensor, "lack a positive n_embd": no_width, r"transformer\.h\.1\)": short_name,
    }  # fmt: skip


@pytest.mark.parametrize("message", damaged())
def test_files_that_are_no_such_checkpoint_get_one_clear_error(message: str, tmp_path: Path) -> None:
    torch.save(damaged()[message], tmp_path / "ckpt.pt")
    with pytest.raises(ValueError, match=message):
        import_checkpoint(tmp_path / "ckpt.pt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_that_are_no_torch_file(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ValueError, match="cannot be read"):
        import_checkpoint(tmp_path / "text.pt", tmp_path / "out")
    with pytest.raises(ValueError, match="is no file"):
        import_checkpoint(tmp_path / "none.pt", tmp_path / "out")
    torch.save(published(CRATE), tmp_path / "ckpt.pt")
    with pytest.raises(ValueError, match="no tokenizer files"):
        import_checkpoint(tmp_path / "ckpt.pt", tmp_path / "out", tokenizer=tmp_path)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_damaged_bytes_get_one_clear_error(zipped: bool, tmp_path: Path) -> None:
    """Cut short or with bytes changed, in either of torch's file formats; whatever torch.load makes of it."""
    chance, path = random.Random(0), tmp_path / "ckpt.pt"
    small = {"model": {"weight": torch.zeros(3)}, "model_args": {"n_layer": 2}}
    torch.save(small, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for _ in range(200):
        damaged = bytearray(whole[: chance.randrange(1, len(whole))])
        for _ in range(4):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"ckpt\.pt|model_args"):
            import_checkpoint(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_says_done_or_what_is_wrong_in_two_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ModelConfig("gpt2", 1, 2, 32, 16, 97, bias=True, activation="gelu_erf")
    torch.save(published(config), tmp_path / "ckpt.pt")
    checkpoint, folder = str(tmp_path / "ckpt.pt"), str(tmp_path / "out")
    assert main(["import-checkpoint", checkpoint, folder, "--activation", "gelu_erf"]) == 0
    assert "logits equal the checkpoint's" in capsys.readouterr().out
    assert load_checkpoint(folder).config == config
    assert main(["import-checkpoint", f"{folder}/config.json", f"{folder}2"]) == ArtifactError.exit_code
    told = capsys.readouterr().err
    assert "config.json cannot be read as a checkpoint" in told and len(told.splitlines()) == 2


def test_a_wrong_translation_would_be_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison is with the file's own weights under its own names: swapping two norms does not pass."""
    swapped = BLOCK["crate"] | {"prenorm_1": "feedforward_norm", "prenorm_2": "attention_norm"}
    monkeypatch.setitem(BLOCK, "crate", swapped)
    content = published(CRATE)
    torch.save(content, tmp_path / "ckpt.pt")
    with pytest.raises(ValueError, match="differ"):
        import_checkpoint(tmp_path / "ckpt.pt", tmp_path / "out")
