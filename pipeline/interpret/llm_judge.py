"""A judge made of an explainer and a simulator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.interpret import token_table
from pipeline.interpret.excerpts import Block, Chosen
from pipeline.interpret.explaining import Answer, Explanations
from pipeline.interpret.layer import Judged, other_neurons
from pipeline.interpret.refusals import Refusals
from pipeline.interpret.scoring import Status
from pipeline.interpret.simulating import Simulations

CHUNK_NEURONS = 64  # judged together; then progress is told, and the sample may turn out to be large enough


@dataclass(frozen=True)
class LlmJudge:
    """Judges with language models. `explanations` None: what is simulated are the token table's texts."""

    explanations: Explanations | None
    simulations: Simulations
    token_strings: list[str]
    chunk: int = CHUNK_NEURONS

    @property
    def label(self) -> str:
        explainer = self.explanations.explainer.model if self.explanations else "token table"
        prompts = self.simulations.prompts.name
        return f"{explainer} explains, {self.simulations.simulator.model} simulates ({prompts} prompts)"

    @property
    def refusals(self) -> list[Refusals]:
        """Of the explainer, where there is one, and of the simulator."""
        return [asked.refusals for asked in (self.explanations, self.simulations) if asked]

    @property
    def metric_suffix(self) -> str:
        return self.simulations.simulator.metric_suffix

    def judge(self, chosen: Chosen, rng: np.random.Generator, controls: int) -> Judged:
        answers = self.explanations.of(chosen.explain) if self.explanations else self._table_texts(chosen.explain)
        texts = [text for text, _ in answers]
        explained = {row: text for row, text in enumerate(texts) if text is not None}
        predicted, failed = self.simulations.of(chosen.score, explained)
        partner = other_neurons(np.array([text is not None for text in texts], bool), rng)
        rows = [row for row in explained if partner[row] >= 0 and row not in failed][:controls]
        other, no_other = self.simulations.of(chosen.score, {row: explained[int(partner[row])] for row in rows})
        empty, no_empty = self.simulations.of(chosen.score, dict.fromkeys(rows, ""))
        controlled, refused = np.zeros((2, len(texts)), bool)
        controlled[[row for row in rows if row not in no_other and row not in no_empty]] = True
        refused[[row for row in rows if Status.REFUSED in (no_other.get(row), no_empty.get(row))]] = True
        failures = [failure or failed.get(row) for row, (_, failure) in enumerate(answers)]
        return Judged(texts, failures, predicted, other, empty, controlled, refused)

    def _table_texts(self, block: Block) -> list[Answer]:
        texts = token_table.explain(block, len(self.token_strings)).texts(self.token_strings)
        return [(text, None if text else Status.SILENT) for text in texts]
