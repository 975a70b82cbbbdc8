"""The rows of a run as a page for a person, and as the table for docs/gpu.md."""

from __future__ import annotations

from typing import Any

from gpu.session import STAGE, Row

# What of a row's values is shown, by stage and name; other rows are in the file alone.
STEP = ("rows", "ms", "tokens_per_second", "mfu", "host_ms", "peak_gib")
SHOWN = {
    ("environment", "ceilings"): ("bf16_tflops", "copy_tb_per_second", "float32_tflops", "tf32_tflops"),
    ("environment", "product"): ("what", "ms", "tflops"),
    ("environment", "attention"): ("backend", "d_head", "forward_tflops", "both_tflops"),
    ("resume", "interrupted"): ("killed_after_step", "stopped_after_step", "status_on_sigterm"),
    ("resume", "gone on with"): (
        "same_batches",
        "same_bits",
        "weights_distance",
        "largest_loss_difference",
        "val_losses",
    ),
    ("train", "step"): ("side", "architecture", "how", "weights", *STEP),
    ("engine", "engine"): ("plan", "architecture", "size", "zero_stage", "compiled", *STEP, "losses", "norms"),
    ("engine", "state"): ("seconds_to_take_it",),
    ("loop", "loop"): ("architecture", *STEP),
    ("small", "step"): ("architecture", "size", "how", *STEP),
    ("activations", "extraction"): (
        "size",
        "precision",
        "rows",
        "forward_tokens_per_second",
        "read_tokens_per_second",
        "read_over_forward",
        "read_over_body",
        "peak_gib",
    ),
    ("activations", "waits"): ("size", "of_a_batch", "places"),
    ("variants", "step"): ("variant", "architecture", "how", *STEP),
    ("attention", "step"): ("architecture", "how", *STEP),
    ("kernels", "ista_product"): ("what", "variant", "ms", "tflops"),
    ("kernels", "ista_block"): ("plain_compiled_ms", "ours_ms", "ratio", "ours_tflops"),
    ("kernels", "ista_tiles"): ("what", "tiles", "ms", "tflops"),
    ("kernels", "head"): ("shape", "chunk_bytes", "ms", "tflops", "peak_gib"),
    ("kernels", "plain head"): ("rows", "ms", "tflops", "peak_gib"),
    ("kernels", "scan"): ("what", "ms", "tb_per_second"),
    ("optimizers", "choice"): ("shapes", "best", "milliseconds"),
    ("optimizers", "ten steps"): ("build", "distance"),
    ("optimizers", "time"): ("build", "shapes", "ms", "host_ms", "tb_per_second"),
    ("sae", "group"): ("variant", "widths", "precision", "autoencoders", "trained_tokens_per_second", "peak_gib"),
    ("sae", "plain"): ("width", "precision", "ms", "trained_tokens_per_second", "tflops"),
    ("out_of_memory", "halving"): ("micro_batch", "told"),
    ("sanitizer", "memcheck"): ("under_the_tool", "seconds"),
}
LONGEST = 8  # kernels of a profile; profile.txt has more


def page(rows: list[Row]) -> str:
    """The figures by stage; then what failed, what was left out and the targets, which the end of a terminal still shows."""
    if not rows:
        return "no rows"
    last = rows[-1]
    about = [f"{name} {last[name]}" for name in ("card", "torch", "cuda", "git") if last[name]]
    lines = [f"run of {last['run']}: {', '.join(about)}" + (" (tiny sizes: no measurement)" if last["tiny"] else "")]
    ended = [row for row in rows if row["name"] == STAGE and "values" in row]
    lines.append("seconds: " + ", ".join(f"{row['stage']} {row['values']['seconds']:.0f}" for row in ended))
    for (stage, name), keys in SHOWN.items():
        shown = [row["values"] for row in rows if (row["stage"], row["name"]) == (stage, name) and "values" in row]
        lines += ["", f"{stage}: {name}"] * bool(shown)
        lines += ["  " + "  ".join(_said(key, values[key]) for key in keys if key in values) for values in shown]
    for values in [row["values"] for row in rows if row["name"] == "profile" and "values" in row]:
        title = f"{values['architecture']} {values['how']}"
        lines += ["", f"{title}: {values['device_ms']} ms, {values['launches']} launches"]
        lines += [f"  {ms:9.3f} ms  x{count:4d}  {name}" for ms, count, name in values["longest"][:LONGEST]]
    lines += ["", *[f"left out {row['stage']}/{row['name']}: {row['left_out']}" for row in rows if "left_out" in row]]
    lines += [f"ERROR {row['stage']}/{row['name']}: {row['error']}" for row in rows if "error" in row]
    lines += [f"NOT OK {_titled(row)}" for row in rows if row.get("values", {}).get("ok") is False]
    return "\n".join([*lines, "", *map(_verdict, verdicts_of(rows))])


def verdicts_of(rows: list[Row]) -> list[dict[str, Any]]:
    return [row["values"] for row in rows if row["stage"] == "targets"]


def _verdict(said: dict[str, Any]) -> str:
    if "not run" in said:
        return f"{said['name']:32s} {'-':>12s} {said['unit']:9s} target {said['target'] or '-':10s} not run: {said['not run']}"
    word = {True: "met", False: "MISSED", None: "measured"}[said["met"]]
    return f"{said['name']:32s} {said['value']:12.5g} {said['unit']:9s} target {said['target'] or '-':10s} {word}"


def _titled(row: Row) -> str:
    return (
        f"{row['stage']}/{row['name']}: " + "  ".join(_said(key, value) for key, value in row["values"].items())[:300]
    )


def _said(key: str, value: Any) -> str:
    """Words speak for themselves, numbers with what they are."""
    if isinstance(value, str):
        return value
    return f"{key} {value:,.0f}" if key.endswith("tokens_per_second") else f"{key} {value}"


def markdown(rows: list[Row]) -> str:
    """The targets of a run as a table, one card a table."""
    lines = [
        f"{rows[-1]['card']}, torch {rows[-1]['torch']}, CUDA {rows[-1]['cuda']}, commit {rows[-1]['git']}, {rows[-1]['run']}",
        "",
    ]
    lines += ["| what | value | target | |", "|---|---|---|---|"]
    for said in verdicts_of(rows):
        word = {True: "met", False: "**missed**", None: ""}.get(said.get("met"), "")
        value = f"{said['value']:,.5g} {said['unit']}" if "value" in said else "-"
        lines.append(
            f"| `{said['name']}` | {value} | {said['target']} | {'not run: ' + said['not run'] if 'not run' in said else word} |"
        )
    return "\n".join(lines)
