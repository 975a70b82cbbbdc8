"""The rows of a run as a page for a person, and as the table for docs/gpu.md."""

from __future__ import annotations

from typing import Any

from gpu.session import Row

# What of a row's values is shown, by stage and name; other rows are in the file alone.
SHOWN = {
    ("environment", "ceilings"): ("bf16_tflops", "copy_tb_per_second", "float32_tflops", "tf32_tflops"),
    ("environment", "product"): ("what", "ms", "tflops"),
    ("environment", "attention"): ("backend", "d_head", "forward_tflops", "both_tflops"),
    ("train", "step"): (
        "side",
        "architecture",
        "how",
        "weights",
        "rows",
        "ms",
        "tokens_per_second",
        "mfu",
        "host_ms",
        "peak_gib",
    ),
    ("small", "step"): ("architecture", "size", "how", "rows", "ms", "tokens_per_second", "mfu", "host_ms", "peak_gib"),
}


def page(rows: list[Row]) -> str:
    """Targets, what failed, what was left out, then the figures by stage."""
    if not rows:
        return "no rows"
    last = rows[-1]
    about = [f"{name} {last[name]}" for name in ("card", "torch", "cuda", "git") if last[name]]
    lines = [f"run of {last['run']}: {', '.join(about)}" + (" (tiny sizes: no measurement)" if last["tiny"] else "")]
    lines += ["", *map(_verdict, verdicts_of(rows)), ""]
    lines += [f"ERROR {row['stage']}/{row['name']}: {row['error']}" for row in rows if "error" in row]
    lines += [f"NOT OK {_titled(row)}" for row in rows if row.get("values", {}).get("ok") is False]
    lines += [f"left out {row['stage']}/{row['name']}: {row['left_out']}" for row in rows if "left_out" in row]
    ended = [row for row in rows if row["name"] == "ended" and "values" in row]
    lines.append("seconds: " + ", ".join(f"{row['stage']} {row['values']['seconds']:.0f}" for row in ended))
    for (stage, name), keys in SHOWN.items():
        shown = [row["values"] for row in rows if (row["stage"], row["name"]) == (stage, name) and "values" in row]
        lines += ["", f"{stage}: {name}"] * bool(shown)
        lines += ["  " + "  ".join(_said(key, values[key]) for key in keys if key in values) for values in shown]
    return "\n".join(lines)


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
    return f"{key} {value:,.0f}" if key == "tokens_per_second" else f"{key} {value}"


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
