"""The answer in short: the few sentences that a reader should leave with, computed from the tables, whoever wins.

A verdict stands only where an interval carries it (`gaps.py`); elsewhere the numbers are told, and why nothing follows.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.report.gaps import Gap, ScoreGaps, loss_gap, score_gaps
from pipeline.report.pairs import Measured, Pair, deepest_pair, why_no_pair
from pipeline.report.study import ARCHITECTURES, Cell, Study, tokens_said
from pipeline.report.tables import Tables
from pipeline.report.text import METRICS
from pipeline.report.unigram import context_users

UNLIKE_COVERAGE = 0.2  # of the neurons: where the shares that have a score differ by more, it is told with the means


@dataclass(frozen=True)
class Finding:
    """One sentence with the number it turns on, and the cells it speaks of."""

    number: str
    label: str
    plain: str
    cells: tuple[str, ...]
    tone: str = "muted"  # a colour of the palette: whose point it is; muted where it is nobody's


def findings(study: Study, tables: Tables) -> list[Finding]:
    found = [_loss(study), *_scores(study, tables), _against_unigram(study)]
    return list({finding.plain: finding for finding in reversed(found) if finding}.values())[::-1]  # each reason once


def _loss(study: Study) -> Finding | None:
    pair = deepest_pair(study.measured, "losses")
    if pair is None:
        return _no_pair(study.measured, "losses")
    gap, depth = loss_gap(pair), _layers(pair.crate[0].model.n_layer)
    ratio = pair.crate[0].size.non_embedding / pair.gpt2[0].size.non_embedding
    both = f"{gap.crate:.3f} for CRATE, {gap.gpt2:.3f} for GPT-2"
    equal = f" Both: {pair.equal}. CRATE has {ratio:.2f} of GPT-2's non-embedding parameters there."
    number, label = f"{gap.crate:.3f} : {gap.gpt2:.3f}", "validation loss, nats a token, CRATE : GPT-2"
    lower = {"crate": "gpt2", "gpt2": "crate"}.get(gap.higher or "", "muted")
    if gap.higher and gap.difference:
        plain = (
            f"At {depth} {ARCHITECTURES[lower]}'s validation loss is {abs(gap.difference.value):.3f} nats lower: {both}"
        )
        plain += f"; {_interval(gap, 1, '.3f')}."
        number, label = f"{gap.difference.value:+.3f}", "nats a token, CRATE minus GPT-2"
    else:
        plain = f"At {depth} which has the lower validation loss cannot be said: {both}; {_no_verdict(gap, 1, '.3f')}."
    return Finding(number, label, plain + equal, _names(pair), lower)


def _scores(study: Study, tables: Tables) -> list[Finding]:
    """For the first metric there is: means and variances over layers at the deepest shape that both have."""
    rows = [row for row in tables.get("layer_scores", []) if row["family"] == "code" and row["mean"] is not None]
    metric = next((metric for metric in METRICS if any(row["metric"] == metric for row in rows)), None)
    if metric is None:
        return []
    scored = {row["cell"] for row in rows if row["metric"] == metric}
    cells = [cell for cell in study.cells if cell.is_last and cell.name in scored]
    pair = deepest_pair(cells, "scores")
    if pair is None:
        none = _no_pair(cells, "scores")
        return [none] if none else []
    all_rows = [r for r in tables["layer_scores"] if r["family"] == "code" and r["metric"] == metric]
    gaps = score_gaps(pair, all_rows)
    found = []
    if gaps.mean:
        found.append(_mean_scores(pair, gaps, gaps.mean, METRICS[metric]))
    if gaps.variance:
        found.append(_variances(pair, gaps, gaps.variance))
    return found


def _mean_scores(pair: Pair, gaps: ScoreGaps, gap: Gap, metric: str) -> Finding:
    both = f"{100 * gap.crate:.1f} for CRATE, {100 * gap.gpt2:.1f} for GPT-2"
    depth = _layers(gaps.n_layers)
    if gap.higher:
        of = "the scored neurons" if gap.over_seeds else "of these trained models the scored neurons"
        plain = f"At {depth}, {of} of {ARCHITECTURES[gap.higher]} are the better explained ones: {both}"
        plain += f"; {_interval(gap, 100, '.1f')}."
    else:
        plain = f"At {depth} whose neurons are better explained cannot be said: {both}; {_no_verdict(gap, 100, '.1f')}."
    number, label = f"{100 * gap.crate:.1f} : {100 * gap.gpt2:.1f}", f"{metric} score times 100, CRATE : GPT-2"
    judges = sorted({cell.artifacts["interpret"].summary["judge"] for cell in (*pair.crate, *pair.gpt2)})
    plain += f"{_coverage(gaps)}{_unlike_excerpts(gaps)}{_equal_layers(pair, gaps)} Judge: {'; '.join(judges)}."
    return Finding(number, label, plain, _names(pair), gap.higher or "muted")


def _variances(pair: Pair, gaps: ScoreGaps, gap: Gap) -> Finding:
    both = f"variance over layers {1e4 * gap.crate:.2f} for CRATE, {1e4 * gap.gpt2:.2f} for GPT-2"
    steadier = {"crate": "gpt2", "gpt2": "crate"}.get(gap.higher or "", "muted")
    if gap.higher:
        of = "" if gap.over_seeds else "of these trained models "
        said = (
            f"{of}{ARCHITECTURES[steadier]}'s layers differ less from each other: {both}; {_interval(gap, 1e4, '.2f')}"
        )
        plain = said[0].upper() + said[1:]
    else:
        plain = f"Whose layers differ less from each other cannot be said: {both}; {_no_verdict(gap, 1e4, '.2f')}"
    plain += (
        ". What the sampling of neurons adds to a variance is taken off in the interval." if gap.difference else "."
    )
    number = f"{1e4 * gap.crate:.2g} : {1e4 * gap.gpt2:.2g}"
    label = "variance over layers times 10,000, CRATE : GPT-2"
    return Finding(number, label, plain + _equal_layers(pair, gaps), _names(pair), steadier)


def _interval(gap: Gap, scale: float, form: str) -> str:
    """The interval of the difference, and what it is over."""
    low, high = gap.difference.interval if gap.difference else (0.0, 0.0)
    over = f"over {gap.seeds[0]} and {gap.seeds[1]} seeds" if gap.over_seeds else "over their neurons"
    said = f"the 95 % interval of CRATE minus GPT-2 {over} is {scale * low:{form}} to {scale * high:{form}}"
    return said if gap.over_seeds else f"{said} ({_seeds(gap)}: nothing follows for other trainings)"


def _no_verdict(gap: Gap, scale: float, form: str) -> str:
    if gap.difference:
        why = "the two numbers lie the other way" if gap.difference.is_apart else "holds 0"
        return f"{_interval(gap, scale, form)} and {why}"
    return gap.why if gap.over_seeds else f"{_seeds(gap)}, and {gap.why}"


def _seeds(gap: Gap) -> str:
    counts = [f"{count} seeds" if count > 1 else "one seed" for count in gap.seeds]
    return f"{counts[0]} each" if counts[0] == counts[1] else f"{counts[0]} of CRATE and {counts[1]} of GPT-2"


def _coverage(gaps: ScoreGaps) -> str:
    shares = [scored / asked if asked else 0.0 for scored, asked in gaps.scored]
    said = f" {100 * shares[0]:.0f} % of CRATE's neurons and {100 * shares[1]:.0f} % of GPT-2's have a score"
    if abs(shares[0] - shares[1]) > UNLIKE_COVERAGE:
        return said + ": the means are of unlike shares, and what the other neurons would score is not known."
    return said + "."


def _unlike_excerpts(gaps: ScoreGaps) -> str:
    """On how many excerpts the scores of each stand, where these are not equally many."""
    said = [f"{count:.1f}" for count in gaps.excerpts if count is not None]
    if len(set(said)) < 2:
        return ""
    return f" A score is of {said[0]} excerpts on average for CRATE, and of {said[1]} for GPT-2."


def _equal_layers(pair: Pair, gaps: ScoreGaps) -> str:
    if len(gaps.layers) < gaps.n_layers:
        return f" Both: {pair.equal}; of {gaps.n_layers} layers the {len(gaps.layers)} that are scored in all."
    return f" Both: {pair.equal}."


def _no_pair(cells: list[Cell], of: Measured) -> Finding | None:
    """What is told where both architectures were measured and nothing equal is there."""
    if len({cell.architecture for cell in cells}) < len(ARCHITECTURES):
        return None
    why, names = why_no_pair(cells, of), tuple(cell.name for cell in cells)
    return Finding("no pair", f"{of} of CRATE and GPT-2", f"{why[0].upper()}{why[1:]}.", names)


def _against_unigram(study: Study) -> Finding | None:
    found = context_users(study.models)
    if found is None:
        return None
    below, total = len(found.below), len(found.cells)
    limit = f"the unigram entropy of the tokens that their losses are of, {found.entropies} nats"
    if not below:
        plain = f"None of {total} model{'s' if total > 1 else ''} ends below {limit}: nothing here shows the use of context."
    elif below == total:
        plain = f"{below} of {total} models end below {limit}: they use context."
    else:
        plain = f"{below} of {total} models end below {limit}: they use context; of the others that is not shown."
    label, names = "models below the unigram entropy", tuple(cell.name for cell in found.cells)
    return Finding(
        f"{below} / {total}",
        label,
        f"{plain} They saw {tokens_said(found.cells)}.",
        names,
        "accent" if below else "muted",
    )


def _names(pair: Pair) -> tuple[str, ...]:
    return tuple(cell.name for cell in (*pair.crate, *pair.gpt2))


def _layers(depth: int) -> str:
    return f"{depth} layer{'s' if depth > 1 else ''}"
