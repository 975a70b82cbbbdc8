"""Figures of what is done to neurons: steering at several doses, and sparse autoencoders in their place."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.report.looks import colour, label_point, link_to, marker, strength
from pipeline.report.study import Rows, Study
from pipeline.report.style import PALETTE, Canvas, Figure
from pipeline.report.text import edit_name, token_label, unit_kind

MOST_EDITS, SHOWN_TOKENS = 12, 4  # panels of the figure of effects; tokens promoted, and as many suppressed, in each


def steering_effects(study: Study, rows: Rows) -> Figure | None:
    """Which next tokens each edit promotes and suppresses most: a panel an edit, of all models in turn."""
    chosen = _some_edits(study, rows)
    if not chosen:
        return None

    def draw(canvas: Canvas) -> Any:
        drawing, panels = canvas.grid(len(chosen), 3, 2.6, legend=False, left=1.15)
        for axes, (name, own) in zip(panels, chosen, strict=True):
            cell, shown = study.by_name[name], _most_changed(own)
            y = list(range(len(shown), 0, -1))
            change = [row["logit_after"] - row["logit_before"] for row in shown]
            shade = colour(cell, "code" if unit_kind(own[0]) == "neuron" else "features")
            axes.barh(y, change, 0.7, color=shade)
            tips = [(_effect_said(name, row), link_to(cell)) for row in shown]
            canvas.marks(axes, change, y, tips, **marker(study, cell) | {"color": shade}, markersize=3.5)
            axes.axvline(0, color=PALETTE["muted"], linewidth=0.8)
            axes.set_yticks(y, [token_label(row["text"]) for row in shown], parse_math=False)
            axes.grid(visible=False, axis="y")
            axes.margins(x=0.08)
            axes.set_title(f"{cell.name} {edit_name(own[0])}", x=-0.52, fontsize=8.5)
            axes.set_xlabel("change of the logit")
        return drawing

    said = "; ".join(
        f"{name} {edit_name(own[0])}: "
        + ", ".join(f"{token_label(r['text'])} {r['logit_after'] - r['logit_before']:+.2g}" for r in _most_changed(own))
        for name, own in chosen
    )
    paler = " Paler: features of an autoencoder." if any(unit_kind(own[0]) == "feature" for _, own in chosen) else ""
    caption = f"Tokens that an edit promotes most, above, and suppresses most, below.{paler}"
    return Figure("steering_effects", "What neurons do to the next word", caption, f"Steering: {said}.", draw)


def _some_edits(study: Study, rows: Rows) -> list[tuple[str, Rows]]:
    """Up to MOST_EDITS edits, (cell, its rows) each: the first of every model, then the second, drawn model by model."""
    by_edit: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for row in rows:
        by_edit.setdefault((row["edit"], row["cell"]), []).append(row)
    order = [cell.name for cell in study.cells]
    kept = sorted(by_edit, key=lambda key: (key[0], order.index(key[1])))[:MOST_EDITS]
    return [(key[1], by_edit[key]) for key in sorted(kept, key=lambda key: (order.index(key[1]), key[0]))]


def _most_changed(rows: Rows) -> Rows:
    """The first promoted tokens, then the first suppressed ones, the most suppressed last."""
    promoted = [row for row in rows if row["kind"] == "promoted"][:SHOWN_TOKENS]
    return promoted + [row for row in rows if row["kind"] == "suppressed"][:SHOWN_TOKENS][::-1]


def _effect_said(name: str, row: dict[str, Any]) -> str:
    logits = f"logit {row['logit_before']:.2f} to {row['logit_after']:.2f}"
    probabilities = f"probability {row['probability_before']:.2g} to {row['probability_after']:.2g}"
    return f"{name} {edit_name(row)}, {token_label(row['text'])}: {logits}, {probabilities}"


def steering_doses(study: Study, rows: Rows) -> Figure | None:
    """How far the next-word distribution moves when a unit is set to multiples of its value, and under controls."""
    lines = _dose_lines(study, rows)
    if not lines:
        return None
    panels_of = {"kl": "KL from the plain model, nats", "probability": "probability of each one's promoted tokens"}

    def draw(canvas: Canvas) -> Any:
        drawing, panels = canvas.grid(len(panels_of), 2, 2.8, titles=False)
        for axes, (column, label) in zip(panels, panels_of.items(), strict=True):
            for name, kind, role, own in lines:
                cell, means = study.by_name[name], dose_means(own, column)
                shade = colour(cell, "code" if kind == "neuron" else "features")
                x, y = list(means), list(means.values())
                line, size = ("solid", 4.5) if role == "steered" else ((0, (1.2, 1.6)), 3)
                axes.plot(x, y, color=shade, linestyle=line, alpha=0.8, linewidth=1.5)
                said = f"{name}, {_edits_said(own, kind)}, {role}"
                tips = [(f"{said}, dose {a:g}: {b:.3g}", link_to(cell)) for a, b in means.items()]
                series = cell.feature_series + ("" if kind == "neuron" else ", features")
                style = marker(study, cell) | {"color": shade, "markersize": size}
                canvas.marks(axes, x, y, tips, **style, label=series + ("" if role == "steered" else ", controls"))
            axes.set_xlabel("dose, times the edit's value")
            axes.set_ylabel(label)
        canvas.key(drawing, panels)
        return drawing

    return Figure(
        "steering_doses",
        "Steering, dose by dose",
        "Mean over the edits of each model. Control: other units of the same layer or autoencoder, those with the nearest "
        "maximum, set to the same value; edits without any are left out where others have some. Promoted tokens: of each, "
        "controls too, those that it promotes most on other prompts. These are few units on one prompt, and lines have no "
        "interval: that one is above another says nothing of other units, other prompts or another training.",
        "Divergence of the next-word distribution under steering, by dose: "
        + "; ".join(
            f"{name} {_edits_said(own, kind)} {role} dose {dose:g} {value:.3g}"
            for name, kind, role, own in lines
            for dose, value in dose_means(own, "kl").items()
        )
        + ".",
        draw,
    )


def _dose_lines(study: Study, rows: Rows) -> list[tuple[str, str, str, Rows]]:
    """(cell, neuron or feature, role, rows) of every line; both roles have the same edits."""
    lines: list[tuple[str, str, str, Rows]] = []
    for name in (cell.name for cell in study.cells):
        for kind in ("neuron", "feature"):
            own = [row for row in rows if row["cell"] == name and unit_kind(row) == kind]
            controlled = {row["edit"] for row in own if row["role"] == "control"}
            own = [row for row in own if row["edit"] in controlled or not controlled]
            by_role = {role: [row for row in own if row["role"] == role] for role in ("steered", "control")}
            lines += [(name, kind, role, of_role) for role, of_role in by_role.items() if of_role]
    return lines


def _edits_said(rows: Rows, kind: str) -> str:
    n = len({row["edit"] for row in rows})
    return f"{n} {kind}{'s' if n > 1 else ''}"


def dose_means(rows: Rows, column: str) -> dict[float, float]:
    """Dose -> mean over edits, of the mean over an edit's own controls."""
    by_dose: dict[float, dict[int, list[float]]] = {}
    for row in rows:
        by_dose.setdefault(row["dose"], {}).setdefault(row["edit"], []).append(row[column])
    return {dose: float(np.mean([np.mean(own) for own in by_dose[dose].values()])) for dose in sorted(by_dose)}


def autoencoders(study: Study, rows: Rows) -> Figure | None:
    """What a sparse autoencoder in a layer's place costs, against how many features it uses."""
    rows = [row for row in rows if row["recovered_mean"] is not None]
    if len(rows) < 2:
        return None
    panels_of = {"recovered_mean": "loss recovered, % of mean-ablation", "unexplained": "variance unexplained, %"}

    def draw(canvas: Canvas) -> Any:
        drawing, panels = canvas.grid(len(panels_of), 2, 2.8, titles=False)
        for axes, (column, label) in zip(panels, panels_of.items(), strict=True):
            for cell in study.cells:
                own = [row for row in rows if row["cell"] == cell.name]
                if own:
                    x, y = [row["l0"] for row in own], [100 * row[column] for row in own]
                    tips = [
                        (f"{cell.name} {row['site']}: {v:.1f} at L0 {row['l0']:.1f}", link_to(cell))
                        for row, v in zip(own, y, strict=True)
                    ]
                    style = marker(study, cell) | {"markeredgecolor": PALETTE["paper"], "label": cell.feature_series}
                    canvas.marks(axes, x, y, tips, **style)
                    if len(rows) <= 12:
                        label_point(axes, f"{cell.model.n_layer}L", x[-1], y[-1], colour(cell))
            axes.set_xlabel("active features a token (L0)")
            axes.set_ylabel(label)
            axes.margins(0.12)
        canvas.key(drawing, panels)
        return drawing

    said = "; ".join(
        f"{r['cell']} {r['site']} L0 {r['l0']:.1f}, recovered {100 * r['recovered_mean']:.1f} %" for r in rows
    )
    return Figure(
        "autoencoders",
        "Sparsity against fidelity",
        "Every mark is one autoencoder. The neurons of either architecture need no reconstruction: steering them loses nothing.",
        f"Sparse autoencoders: {said}.",
        draw,
    )


def densities(study: Study, rows: Rows) -> Figure | None:
    """How often features fire, a line an autoencoder."""
    if not rows:
        return None
    names = [cell.name for cell in study.cells if any(row["cell"] == cell.name for row in rows)]
    first, last = min(row["log10_share_from"] for row in rows), max(row["log10_share_from"] for row in rows)
    edges = np.arange(first, last + 0.75, 0.5)

    def draw(canvas: Canvas) -> Any:
        drawing, (axes,) = canvas.grid(1, 1, 2.8, titles=False)
        for cell in (study.by_name[name] for name in names):
            own = [row for row in rows if row["cell"] == cell.name]
            for site in dict.fromkeys(row["site"] for row in own):
                found = {row["log10_share_from"]: row["n_features"] for row in own if row["site"] == site}
                counts = [found.get(edge, 0) for edge in edges[:-1].tolist()]
                shares = [100 * count / sum(counts) for count in counts]
                shade, alpha = colour(cell), strength(study, cell)
                axes.stairs(shares, edges, color=shade, alpha=alpha, linewidth=1.5)
                tips = [
                    (
                        f"{cell.name} {site}: {n:,} features fire on {100 * 10**edge:.2g} % of tokens or more",
                        link_to(cell),
                    )
                    for n, edge in zip(counts, edges, strict=False)
                ]
                middles = (edges[:-1] + 0.25).tolist()
                canvas.marks(
                    axes,
                    middles,
                    shares,
                    tips,
                    **marker(study, cell),
                    alpha=alpha,
                    markersize=3.5,
                    label=cell.feature_series,
                )
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * 10**value:.2g} %")
        axes.set_xlabel("share of tokens on which a feature fires")
        axes.set_ylabel("living features, %")
        canvas.key(drawing, [axes])
        return drawing

    said = "; ".join(
        f"{r['cell']} {r['site']} from {100 * 10 ** r['log10_share_from']:.2g} %: {r['n_features']}" for r in rows
    )
    caption = "By half decades, one line an autoencoder. Features that never fired are left out; the table counts them."
    return Figure("densities", "How often features fire", caption, f"Features by how often they fire: {said}.", draw)
