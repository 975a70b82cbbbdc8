"""`python -m pipeline verify`: whether everything that a run made is what it was made as, the report among it.

Every file is hashed and every manifest's own seal looked at; what was made of an artifact, and the run's own list, tell of a
manifest that was sealed again. All that is wrong is named, not the first alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace

from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.manifest import FILE_NAME, fingerprint_of
from pipeline.artifacts.store import Store
from pipeline.browse import planned
from pipeline.errors import ArtifactError
from pipeline.seals import NOTE, Seal, check_seal, made_of_another, read_seals

REPORT = "report"
EXIT_INCOMPLETE = 10  # nothing is damaged, but not everything is made: the code with which such a sweep ends
AGAIN = "Run the sweep again: it is made anew."


def verify(store: Store, run: str) -> int:
    """Print a line a step; 0 when all is whole, 10 when steps are not made yet. Raises ArtifactError when anything is damaged."""
    made = _look(store, run)
    damaged, to_make = [], []
    for step in made.places:
        faults = list(made.faults(step))
        if faults:
            damaged.append(step)
        elif step not in made.artifacts:
            to_make.append(step)
            print(f"not made {step}", flush=True)
        elif step == REPORT and (others := made.not_of_the_run(made.artifacts[step])):
            to_make.append(step)
            print(f"stale    {step}  it was made before, of other artifacts than the run's: {others}", flush=True)
        else:
            manifest = made.artifacts[step].manifest
            remarks = made.remarks(step)
            print(
                f"whole    {step}  {manifest.total_bytes:,} bytes in {len(manifest.files)} files{remarks}", flush=True
            )
        for fault in faults:
            print(f"DAMAGED  {step}  {fault.what}\n         {fault.fix}", flush=True)
    for name in [name for name in store.links(run) if name not in made.places]:
        damaged.append(name)
        print(f"DAMAGED  {name}  {store.place}/runs/{run}/{name} leads to what is no step of the run", flush=True)
        print("         Delete that link, or run the sweep again, which takes it away.", flush=True)
    if damaged:
        what = f"{len(damaged)} of {len({*made.places, *damaged})} steps of {run!r} are not what was made: {', '.join(damaged)}"
        raise ArtifactError(what, fix="What to do is said at each.")
    if not to_make:
        return 0
    print(f"{len(to_make)} steps are under way, waiting or failed: `status` says more.")
    return EXIT_INCOMPLETE


@dataclass
class _Look:
    """What a run has in the store, and what there is to be said of it."""

    store: Store
    run: str
    places: Mapping[str, tuple[str, str]]  # stage and fingerprint of every planned step, and of the report
    seals: Mapping[str, Seal]
    artifacts: dict[str, Artifact] = field(default_factory=dict)  # those with a manifest that can be read
    unreadable: dict[str, ArtifactError] = field(default_factory=dict)

    def faults(self, step: str) -> Iterator[ArtifactError]:
        """Everything that is wrong with one step's artifact."""
        if step in self.unreadable:
            yield self.unreadable[step]
        artifact = self.artifacts.get(step)
        if artifact is None:
            if step not in self.unreadable and self._is_listed(step):
                yield ArtifactError(f"{self._place(step)} was made and is gone", fix=AGAIN)
            return
        yield from self._manifest_faults(step, artifact)
        yield from self._file_faults(artifact)
        taken = self._is_listed(step) or self.store.linked(self.run, step)
        if taken and not self.store.leads_to(self.run, step, artifact):
            link = f"{self.store.place}/runs/{self.run}/{step}"
            yield ArtifactError(f"{link} does not lead to it", fix="Run the sweep again: the link is made anew.")

    def _manifest_faults(self, step: str, artifact: Artifact) -> Iterator[ArtifactError]:
        manifest, place = artifact.manifest, self._place(step)
        fix = f"Delete {place} and run again: it is made anew."
        if (manifest.stage, manifest.fingerprint) != self.places[step]:
            told = f"{place} holds the manifest of {manifest.stage}/{manifest.fingerprint}"
            yield ArtifactError(told, fix=fix)
        elif fingerprint_of(asdict(manifest)) != manifest.fingerprint:
            yield ArtifactError(f"{place}: its manifest's settings are not those of its fingerprint", fix=fix)
        try:
            check_seal(self.seals, step, artifact, self.store.place)
        except ArtifactError as error:
            yield error
        if others := sorted(other for other, read in made_of_another(self.artifacts) if read == artifact.fingerprint):
            told = f"{place} is not what {', '.join(others)} {'was' if len(others) == 1 else 'were'} made of"
            yield ArtifactError(
                told,
                fix="Bring it back; or delete the folder that was changed, or else those that were made of it, and run again.",
            )

    def _file_faults(self, artifact: Artifact) -> Iterator[ArtifactError]:
        """Files that are torn, missing or too many. Those of an object storage are fetched anew, one at a time."""
        fetched = self.store.making_folder("verify") if self.store.storage else None
        hashed = replace(artifact, folder=fetched) if fetched else artifact
        try:
            for entry in artifact.manifest.files:
                try:
                    hashed.verify_file(entry)
                except ArtifactError as error:
                    yield error
                if fetched:
                    (fetched / entry.name).unlink(missing_ok=True)
        finally:
            if fetched:
                shutil.rmtree(fetched, ignore_errors=True)
        for name in sorted(self._names(artifact) - set(artifact.names()) - {FILE_NAME}):
            place = f"{self.store.place}/{artifact.below}"
            yield ArtifactError(f"{place}/{name} is no file of it: it was put there later", fix="Delete that file.")

    def _names(self, artifact: Artifact) -> set[str]:
        """Every file that lies there, relative to the artifact's folder."""
        if self.store.storage:
            below = artifact.below + "/"
            return {name.removeprefix(below) for name in self.store.storage.names(below)}
        files = (path for path in artifact.folder.rglob("*") if path.is_file() or path.is_symlink())
        return {path.relative_to(artifact.folder).as_posix() for path in files}

    def not_of_the_run(self, report: Artifact) -> str:
        """The steps of which a report has another artifact than the run, or none: it is of an earlier configuration, or was
        made before a missing step was. Empty where there are none."""
        own = {step: artifact.fingerprint for step, artifact in self.artifacts.items() if step != REPORT}
        read = report.manifest.inputs
        gone = {step for step, fingerprint in read.items() if self.places.get(step, ("", ""))[1] != fingerprint}
        differing = sorted(gone | {step for step in own if step not in read})
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        return ", ".join(differing[:3]) + more

    def remarks(self, step: str) -> str:
        """What could not be checked of a whole artifact, since it was made before there were seals, or its seal was lost."""
        unchecked = []
        if not self.artifacts[step].manifest.is_sealed:
            unchecked.append("its manifest has no seal: it was made before there were any")
        if not self._is_listed(step):
            unchecked.append(f"the run's {NOTE} does not name it")
        return "".join(f"; {remark}" for remark in unchecked)

    def _is_listed(self, step: str) -> bool:
        """Whether the run's list has a step's artifact, and not that of an earlier configuration."""
        seal = self.seals.get(step)
        return seal is not None and (seal.stage, seal.fingerprint) == self.places[step]

    def _place(self, step: str) -> str:
        return "/".join((self.store.place, *self.places[step]))


def _look(store: Store, run: str) -> _Look:
    """Read every manifest. Raises ArtifactError when there is no such run."""
    places = {step: (recipe["stage"], recipe["fingerprint"]) for step, recipe in planned(store, run).items()}
    seals = read_seals(store, run)
    linked = store.linked(run, REPORT)  # a run that is older than the list of seals has the link alone
    report = seals.get(REPORT) or Seal(REPORT, linked.rpartition("/")[2], "")
    found = _Look(store, run, places | {REPORT: (report.stage, report.fingerprint)}, seals)
    for step, (stage, fingerprint) in found.places.items():
        try:
            if fingerprint and (artifact := store.find(stage, fingerprint)):
                found.artifacts[step] = artifact
        except ArtifactError as error:
            found.unreadable[step] = error
    return found
