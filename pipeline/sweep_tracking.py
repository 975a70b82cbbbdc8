"""The driver's side of tracking: one parent run a sweep, one child a cell, and how each of them ended."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from crate_model.flops import count_parameters
from pipeline.artifacts.store import Artifact, Store
from pipeline.dag import Plan, report_step, training_flops
from pipeline.execute import Result
from pipeline.report.study import READING, TRAINING, gather
from pipeline.stage import canonical
from pipeline.this_machine import provenance
from pipeline.tracking import TrackerSpec
from pipeline.tracking_driver import TrackedSweep
from pipeline.tracking_spool import shown


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
        parent = runs.start_parent(plan.name, _shown(plan.loaded.config), tags)
        cells = {"": parent}
        for cell in plan.cells:
            text = plan.texts[cell.name]
            digest = plan.steps[text].fingerprint
            dataset = {
                "name": text,
                "digest": digest,
                "context": "training",
                "source": f"{store.place}/tokens/{digest}",
            }
            fingerprint, size = plan.steps[f"{cell.name}/pretrain"].fingerprint, count_parameters(cell.config.model)
            facts = {
                "n_params": size.total_without_positions,
                "n_params_non_embedding": size.non_embedding,
                "train_flops": training_flops(cell),
            }
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
            self.runs.checkpoint(self.cells[cell], cell, result.artifact)

    def finish(self, report: Artifact | None, missing: dict[str, str]) -> None:
        """Log what belongs to the sweep as a whole: the scaling curve and the report's figures and tables."""
        self.finished = True
        varying = gather(report_step(self.plan, {}, missing).settings, {}).by_name
        rows = []
        for cell in self.plan.cells:  # a scaling curve is of models whose training is at its end
            if varying[cell.name].is_last and (row := self._scaling_row(cell.name, missing)):
                values = varying[cell.name].reading
                rows.append(row | {"variant": _label(values, TRAINING), "judged": _label(values, READING)})
        self.runs.log_scaling(self.parent, rows)
        if report:
            self.runs.log_files(self.parent, report, (".png", ".parquet", ".csv", "index.html"))

    def _scaling_row(self, cell: str, missing: dict[str, str]) -> dict[str, Any] | None:
        if f"{cell}/evaluate" in missing or f"{cell}/pretrain" in missing:
            return None
        pretrain = self.plan.steps[f"{cell}/pretrain"]
        evaluate = self.plan.steps[f"{cell}/evaluate"]
        facts = self.store.get("pretrain", pretrain.fingerprint).summary
        measured = self.store.get("evaluate", evaluate.fingerprint).summary
        scores = {}
        if (interpret := self.plan.steps.get(f"{cell}/interpret")) and f"{cell}/interpret" not in missing:
            found = self.store.get("interpret", interpret.fingerprint).summary["metrics"]
            scores = {metric: values["mean"] for metric, values in found.items() if values["mean"] is not None}
        return {
            "cell": cell,
            "run_id": self.cells[cell].run_id,
            "architecture": pretrain.settings.model.architecture,
            "n_params": facts["n_params"],
            "n_params_non_embedding": facts["n_params_non_embedding"],
            "val_loss": measured["val_loss"],
            "bits_per_byte": measured["bits_per_byte"],
            "scores": scores,
        }

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


def _label(values: Mapping[str, Any], sections: tuple[str, ...]) -> str:
    """Values that tell a curve from others, as a part of a metric's name."""
    texts = (f"{key.rpartition('.')[2]}_{value}" for key, value in values.items() if key.startswith(sections))
    return re.sub(r"[^\w.-]+", "_", "_".join(texts))


def _shown(config: Any) -> dict[str, Any]:
    return {key: value for key, value in canonical(config).items() if key != "grid"}
