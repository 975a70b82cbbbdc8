"""The driver's side of tracking: one parent run a sweep, one child a cell, and how each of them ended."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import mlflow_tracker
from pipeline.artifacts.store import Artifact
from pipeline.dag import Plan
from pipeline.execute import Result
from pipeline.runtime import git_revision, package_version
from pipeline.stage import canonical
from pipeline.tracking import TrackerSpec


@dataclass
class SweepTracking:
    """Open for the time of one sweep; leaves every run with a true status, also when the sweep breaks off."""

    uri: str
    plan: Plan
    parent: TrackerSpec
    cells: dict[str, TrackerSpec]  # "" is the parent: steps of the whole sweep
    failed: set[str] = field(default_factory=set)
    finished: bool = False

    @property
    def shown_uri(self) -> str:
        """The address without a user's name and password."""
        scheme, separator, rest = self.uri.partition("://")
        return f"{scheme}{separator}{rest.rpartition('@')[2]}"

    @classmethod
    @contextlib.contextmanager
    def start(cls, uri: str, plan: Plan, folder: Path) -> Iterator[SweepTracking]:
        mlflow_tracker.prepare(uri, plan.name)
        spool = str((folder / "mlflow-spool").resolve())
        tags = {
            "git": git_revision() or "",
            "ray": package_version("ray") or "",
            "torch": package_version("torch") or "",
        }
        parent_id = mlflow_tracker.start_parent(uri, plan.name, plan.name, _shown(plan.loaded.config), tags)
        parent = TrackerSpec(uri, plan.name, parent_id, spool)
        cells = {"": parent}
        for cell in plan.cells:
            fingerprint = plan.steps[f"{cell.name}/pretrain"].fingerprint
            run_id = mlflow_tracker.start_child(uri, plan.name, parent_id, cell.name, fingerprint, _shown(cell.config))
            cells[cell.name] = TrackerSpec(uri, plan.name, run_id, spool)
        tracking = cls(uri, plan, parent, cells)
        try:
            yield tracking
        finally:
            tracking._close()

    def ended(self, result: Result) -> None:
        if result.missing:
            self.failed.add(result.step.partition("/")[0] if "/" in result.step else "")

    def finish(self, report: Artifact | None, missing: dict[str, str]) -> None:
        """Log what belongs to the sweep as a whole: the scaling curve and the report's figures and tables."""
        self.finished = True
        rows = [row for cell in self.plan.cells if (row := self._scaling_row(cell.name, missing))]
        mlflow_tracker.log_scaling(self.uri, self.parent.run_id, rows)
        if report:
            tracker = self.parent.open()
            for name in report.names():
                if name.endswith((".png", ".parquet", ".csv", "index.html")):
                    tracker.file(report.file(name), str(Path(name).parent) if "/" in name else "")
            tracker.close()

    def _scaling_row(self, cell: str, missing: dict[str, str]) -> dict[str, Any] | None:
        from pipeline.artifacts.store import Store

        if f"{cell}/evaluate" in missing or f"{cell}/pretrain" in missing:
            return None
        store = Store(Path(self.plan.loaded.config.runtime.store))
        pretrain = self.plan.steps[f"{cell}/pretrain"]
        evaluate = self.plan.steps[f"{cell}/evaluate"]
        facts = store.get("pretrain", pretrain.fingerprint).summary
        measured = store.get("evaluate", evaluate.fingerprint).summary
        return {
            "cell": cell,
            "run_id": self.cells[cell].run_id,
            "architecture": pretrain.settings.model.architecture,
            "n_params": facts["n_params"],
            "n_params_non_embedding": facts["n_params_non_embedding"],
            "val_loss": measured["val_loss"],
            "bits_per_byte": measured["bits_per_byte"],
        }

    def _close(self) -> None:
        for cell, spec in self.cells.items():
            bad = cell in self.failed if cell else bool(self.failed)
            status = "FAILED" if bad else "FINISHED" if self.finished else "KILLED"
            mlflow_tracker.finish(self.uri, spec.run_id, status)


def _shown(config: Any) -> dict[str, Any]:
    return {key: value for key, value in canonical(config).items() if key != "grid"}
