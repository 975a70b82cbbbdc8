"""Commands about a sweep: `python -m pipeline <command>`. Each imports what it needs when it is called."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline import sweep

Command = Callable[[argparse.Namespace], int]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline", description="Train, read and explain CRATE and GPT-2 language models."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, (help_text, add, _) in COMMANDS.items():
        add(commands.add_parser(name, help=help_text, description=help_text))
        commands.choices[name].set_defaults(command=name)
    options = parser.parse_args(arguments)
    call: Command = COMMANDS[options.command][2]
    return sweep.guarded(lambda: call(options))


def _run_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    parser.add_argument("--run", required=required, metavar="NAME", help="the sweep's name (its folder in store/runs)")
    parser.add_argument("--store", default="store", help="folder or s3:// address of the store")


def _cell_arguments(parser: argparse.ArgumentParser) -> None:
    _run_arguments(parser)
    parser.add_argument("--cell", required=True, help="e.g. crate-1l")


def _show_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")


def _show(options: argparse.Namespace) -> int:
    from pipeline.config_load import describe, load_config

    for key, value, place in describe(load_config(options.config, options.set)):
        print(f"{key} = {value!r}    [{place}]")
    return 0


def _doctor_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store", default="store", help="folder or s3:// address of the store")


def _doctor(options: argparse.Namespace) -> int:
    from pipeline.doctor import examine

    return examine(Path(options.store))


def _status(options: argparse.Namespace) -> int:
    from pipeline.browse import show_status
    from pipeline.runtime import open_store

    return show_status(open_store(options.store), options.run)


def _verify(options: argparse.Namespace) -> int:
    from pipeline.browse import verify
    from pipeline.runtime import open_store

    return verify(open_store(options.store), options.run)


def _inspect_arguments(parser: argparse.ArgumentParser) -> None:
    _run_arguments(parser)
    parser.add_argument("--cell", help="e.g. crate-1l; none: where all cells of the run take the same batches")
    parser.add_argument("--step", type=int, required=True, help="training step, from 0")
    parser.add_argument("--json", action="store_true")


def _inspect_batch(options: argparse.Namespace) -> int:
    from pipeline.browse import show_batch
    from pipeline.runtime import open_store

    return show_batch(open_store(options.store), options.run, options.cell, options.step, options.json)


def _import_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="a crate-lm or nanoGPT checkpoint (.pt)")
    parser.add_argument("folder", type=Path, help="Hugging Face folder to write")
    parser.add_argument(
        "--activation",
        choices=("relu", "gelu", "gelu_erf"),
        default="relu",
        help="of a GPT-2 MLP; nanoGPT's is gelu_erf",
    )
    parser.add_argument("--tokenizer", type=Path, help="folder whose tokenizer files are copied along")


def _import_checkpoint(options: argparse.Namespace) -> int:
    from pipeline.browse import import_checkpoint

    return import_checkpoint(options.checkpoint, options.folder, options.activation, options.tokenizer)


def _forecast_arguments(parser: argparse.ArgumentParser) -> None:
    from pipeline.forecast.table import add_arguments

    _show_arguments(parser)
    add_arguments(parser)


def _forecast(options: argparse.Namespace) -> int:
    from pipeline.config_load import load_config
    from pipeline.forecast.table import show

    return show(load_config(options.config, options.set), options)


def _layer_or_site(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def _neuron_arguments(parser: argparse.ArgumentParser) -> None:
    _cell_arguments(parser)
    parser.add_argument(
        "--layer",
        type=_layer_or_site,
        required=True,
        help="from 0; or a site's name, where a layer has several autoencoders, e.g. code-l0-1x",
    )
    parser.add_argument("--index", "--neuron", dest="neuron", type=int, required=True, help="from 0")
    parser.add_argument("--features", action="store_true", help="a feature of the layer's sparse autoencoder instead")
    parser.add_argument("--excerpts", type=int, default=5, help="shown of each kind")


def _neuron(options: argparse.Namespace) -> int:
    from pipeline.browse import artifact_if_made, artifact_of, text_of
    from pipeline.report.one_neuron import print_neuron
    from pipeline.runtime import open_store

    store, cell = open_store(options.store), options.cell
    records, scores = ("features", "interpret_features") if options.features else ("activations", "interpret")
    step = f"{cell}/{records}"
    inputs = {"records": artifact_of(store, options.run, step), "tokens": text_of(store, options.run, step)}
    judged = artifact_if_made(store, options.run, f"{cell}/{scores}")
    if judged:
        inputs["scores"] = judged
    print_neuron(inputs, options.layer, options.neuron, options.excerpts)
    return 0


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    _cell_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="gets <layer>/<neuron>.json")
    parser.add_argument("--layer", type=_layer_or_site, help="from 0; none: all")


def _export_neurons(options: argparse.Namespace) -> int:
    from pipeline.browse import export_neurons
    from pipeline.runtime import open_store

    return export_neurons(open_store(options.store), options.run, options.cell, options.out, options.layer)


def _export_sae_arguments(parser: argparse.ArgumentParser) -> None:
    _cell_arguments(parser)
    parser.add_argument("--site", required=True, help="a sparse autoencoder of the cell, e.g. code-l0-1x")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="gets cfg.json, sae_weights.safetensors"
    )


def _export_sae(options: argparse.Namespace) -> int:
    from pipeline.browse import export_sae
    from pipeline.runtime import open_store

    return export_sae(open_store(options.store), options.run, options.cell, options.site, options.out)


def _sampling_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--top-k", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=40, help="length of a sample")


def _steer_arguments(parser: argparse.ArgumentParser) -> None:
    _run_arguments(parser, required=False)
    parser.add_argument("--cell", help="e.g. crate-1l")
    parser.add_argument(
        "--checkpoint", type=Path, metavar="FOLDER", help="instead: a model that import-checkpoint wrote"
    )
    parser.add_argument("--layer", type=int)
    parser.add_argument("--neuron", type=int, help="its index; with --site, the feature's")
    parser.add_argument("--value", type=float, default=0.0)
    parser.add_argument("--how", choices=("clamp", "add", "scale", "ablate"), default="clamp")
    parser.add_argument("--site", default="", help="a sparse autoencoder of the cell, e.g. code-l0-1x")
    parser.add_argument(
        "--sae", type=Path, metavar="FOLDER", help="an autoencoder that lies elsewhere, ours or SAELens's"
    )
    parser.add_argument(
        "--keep-error",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="of a feature: keep what the autoencoder misses (delta mode), or let the reconstruction replace the layer",
    )
    parser.add_argument("--positions", type=int, nargs="*", default=[], help="of the prompt; none: all")
    parser.add_argument("--edits", type=Path, help="instead: a YAML list of edits, as under steer.edits")
    parser.add_argument("--prompt", default="1 2 3 4 5")
    parser.add_argument("--top", type=int, default=10, help="tokens shown")
    _sampling_arguments(parser)


def _sample_arguments(parser: argparse.ArgumentParser) -> None:
    _run_arguments(parser, required=False)
    parser.add_argument("--cell", nargs="*", help="none: all of the run")
    parser.add_argument(
        "--checkpoint", type=Path, nargs="+", default=[], metavar="FOLDER", help="models that import-checkpoint wrote"
    )
    parser.add_argument("--prompt", nargs="+", default=["They saw some boats on the", "Beijing is the capital of"])
    _sampling_arguments(parser)


def _compare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_a", metavar="RUN_A")
    parser.add_argument("run_b", metavar="RUN_B")
    parser.add_argument("--store", default="store", help="folder or s3:// address of the store")
    parser.add_argument("--json", action="store_true")


def _try(options: argparse.Namespace) -> int:
    from pipeline import try_models
    from pipeline.runtime import open_store

    return getattr(try_models, options.command)(open_store(options.store), options)


COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], Any], Command]] = {
    "sweep": ("run a whole study (the same as pipeline/sweep.py)", sweep.add_arguments, sweep.run),
    "show": ("print every value of a configuration and where it comes from", _show_arguments, _show),
    "doctor": ("say what this machine offers and what would be used", _doctor_arguments, _doctor),
    "forecast": ("play a sweep through for a cluster: hours, bounds, cost", _forecast_arguments, _forecast),
    "status": ("say how far a sweep is, from the store alone", _run_arguments, _status),
    "inspect-batch": ("show the documents and text of a training step's batch", _inspect_arguments, _inspect_batch),
    "import-checkpoint": (
        "turn the authors' checkpoint into a Hugging Face folder",
        _import_arguments,
        _import_checkpoint,
    ),
    "neuron": ("show one neuron's scores and excerpts", _neuron_arguments, _neuron),
    "export-neurons": ("write neurons as OpenAI's NeuronRecord JSON files", _export_arguments, _export_neurons),
    "export-sae": ("write a sparse autoencoder as a SAELens folder", _export_sae_arguments, _export_sae),
    "steer": ("edit a neuron or feature and see what becomes of a prompt", _steer_arguments, _try),
    "sample": ("show models' next words and samples side by side", _sample_arguments, _try),
    "compare": ("compare the cells that two runs share", _compare_arguments, _try),
    "verify": ("hash every artifact of a sweep against its manifest", _run_arguments, _verify),
}
