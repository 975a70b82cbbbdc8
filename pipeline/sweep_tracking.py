"""The driver's side of tracking: one parent run a sweep, one child a cell, and how each of them ended."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from crate_model.flops import count_parameters
from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.store import Store
from pipeline.dag import Plan, report_step
from pipeline.execute import Result
from pipeline.report.cells import READING, TOKENS_KEY, Cell
from pipeline.report.study import gather
from pipeline.stage import canonical
from pipeline.this_machine import provenance
from pipeline.tracking import TrackerSpec
from pipeline.tracking_driver import TrackedSweep
from pipeline.tracking_spool import shown

CURVED = ("tokens", "pretrain", "evaluate", "interpret")  # the stages that the scaling curves are told from


@dataclass
class SweepTracking:
    """Open for the time of one sweep; leaves every run with a true status, also when the sweep breaks off."""

    runs: TrackedSweep
    plan: Plan
    store: Store
    parent: TrackerSpec
    cells: dict[str, TrackerSpec]  # "" is the parent: steps of the whole sweep
    failed: set[str] = field(default_factory=set)
    finished: bool = False

    @property
    def shown_uri(self) -> str:
        """The address without a user's name and password."""
        return shown(self.runs.uri)

    @classmethod
    @contextlib.contextmanager
    def start(cls, uri: str, plan: Plan, store: Store) -> Iterator[SweepTracking]:
        folder = store.run_folder(plan.name)
        remote = f"{store.place}/runs/{plan.name}/mlflow-spool" if store.storage else ""
        runs = TrackedSweep(uri, plan.name, folder / "mlflow-spool", remote)
        tags = machine_tags()
        curved = sorted({step.fingerprint for step in plan.steps.values() if step.stage.name in CURVED})
        parent = runs.start_parent(plan.name, _shown(plan.loaded.config), tags, curves_of=curved)
        cells = {"": parent}
        read = gather(
            report_step(plan, {}, {}).settings, {}
        ).by_name  # as the report reads them: weights kept along the way, too
        for cell in plan.cells:
            text = plan.texts[cell.name]
            digest = plan.steps[text].fingerprint
            was_trained_here = not cell.config.pretrain.checkpoint
            dataset = {
                "name": text,
                "digest": digest,
                "context": "training" if was_trained_here else "evaluation",
                "source": f"{store.place}/tokens/{digest}",
            }
            fingerprint = plan.steps[f"{cell.name}/pretrain"].fingerprint
            facts = count_parameters(cell.config.model).as_told | {"train_flops": read[cell.name].train_flops}
            config = _shown(cell.config)
            cells[cell.name] = runs.start_child(parent, cell.name, fingerprint, config, facts, [dataset], tags)
        tracking = cls(runs, plan, store, parent, cells)
        try:
            yield tracking
        finally:
            tracking._close()

    def ended(self, result: Result) -> None:
        if result.missing:
            self.failed.add(result.step.partition("/")[0] if "/" in result.step else "")
        elif result.artifact and result.step.endswith("/pretrain"):
            cell = result.step.partition("/")[0]
            self.runs.checkpoint(self.cells[cell], cell, result.artifact, self._size(cell))

    def finish(self, report: Artifact | None, missing: dict[str, str]) -> None:
        """Log what belongs to the sweep as a whole: the scaling curve and the report's figures and tables."""
        self.finished = True
        self.runs.log_scaling(self.parent, self._scaling_rows(missing))
        if report:
            self.runs.log_files(self.parent, report, (".png", ".parquet", ".csv", "index.html"))

    def _scaling_rows(self, missing: dict[str, str]) -> list[dict[str, Any]]:
        """Every trained model once, with its loss, and every reading of its neurons once, with its scores; of models whose
        training is at its end.
        """
        made = {
            name: found
            for name, step in self.plan.steps.items()
            if step.stage.name in CURVED and (found := self.store.find(step.stage.name, step.fingerprint))
        }
        study = gather(report_step(self.plan, {}, missing).settings, made)
        whole = [cell for cell in study.cells if cell.is_last and {"pretrain", "evaluate"} <= cell.artifacts.keys()]
        rows = [self._scaling_row(cell, losses=True) for cell in study.models if cell in whole]
        read = {cell.made_of("interpret"): cell for cell in reversed(whole) if "interpret" in cell.artifacts}
        return rows + [self._scaling_row(cell, losses=False) for cell in reversed(read.values())]

    def _scaling_row(self, cell: Cell, losses: bool) -> dict[str, Any]:
        """A model's loss, or the scores of one reading of it."""
        tokens = {key: value for key, value in cell.varying.items() if key == TOKENS_KEY}
        row = {
            "cell": cell.name,
            "run_id": self.cells[cell.name].run_id,
            "architecture": cell.architecture,
            **self._size(cell.name),
        }
        if losses:
            measured = cell.artifacts["evaluate"].summary
            said = {"variant": _label(cell.variant | tokens, cell.loss_note)}
            return row | said | {"val_loss": measured["val_loss"], "bits_per_byte": measured["bits_per_byte"]}
        found = cell.artifacts["interpret"].summary["metrics"]
        scores = {metric: values["mean"] for metric, values in found.items() if values["mean"] is not None}
        judged = {key: value for key, value in cell.reading.items() if key.startswith(READING)}
        return row | {"scores": scores, "variant": _label(cell.variant | tokens), "judged": _label(judged)}

    def _size(self, cell: str) -> dict[str, int]:
        """Counted from the settings: summaries of older trainings have the positions in `n_params`."""
        return count_parameters(self.plan.steps[f"{cell}/pretrain"].settings.model).as_told

    def _close(self) -> None:
        for cell, spec in self.cells.items():
            bad = cell in self.failed if cell else bool(self.failed)
            status = "FAILED" if bad else "FINISHED" if self.finished else "KILLED"
            self.runs.finish(spec, status)
        self.runs.close()


def machine_tags() -> dict[str, str]:
    """Where and with what a sweep's driver runs: what a run is searched by later. Its workers' are in the manifests."""
    facts = provenance()
    versions = facts.pop("versions")
    return {key: str(value or "") for key, value in {**facts, **versions}.items()}


def _label(values: Mapping[str, Any], note: str = "") -> str:
    """Values that tell a curve from others, as a part of a metric's name."""
    texts = [f"{key.rpartition('.')[2]}_{value}" for key, value in values.items()]
    return re.sub(r"[^\w.-]+", "_", "_".join(filter(None, [*texts, note])))


def _shown(config: Any) -> dict[str, Any]:
    return {key: value for key, value in canonical(config).items() if key != "grid"}
