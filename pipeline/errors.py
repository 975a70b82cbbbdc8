"""What can go wrong, in two lines a person can act on: what is wrong, and what to do.

A `CrateError` is for the user (a wrong key, a torn file, no disk): it is printed without a traceback and ends the program
with its own exit code. A caller's mistake inside the code stays a ValueError, an impossible state an assert.
All of them survive pickling, because they travel from Ray workers to the driver.
"""

from __future__ import annotations


class CrateError(Exception):
    """A failure with its remedy. `what` says what is wrong and where, `fix` what to do about it."""

    exit_code = 1

    def __init__(self, what: str, *, fix: str) -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.what}\n{self.fix}"

    def __reduce__(self):
        # Keyword-only arguments and subclass fields are lost by the default reduction of exceptions.
        return _rebuild, (type(self), self.what, self.fix, dict(self.__dict__))


def _rebuild(cls: type[CrateError], what: str, fix: str, fields: dict) -> CrateError:
    error = cls.__new__(cls)
    Exception.__init__(error, what)
    error.__dict__.update(fields)
    return error


class ConfigError(CrateError):
    """A wrong key or value in the configuration."""

    exit_code = 2


class ArtifactError(CrateError):
    """An artifact is missing, corrupt, or not what was asked for."""

    exit_code = 3


class ResourceError(CrateError):
    """The machine or cluster lacks something: GPU, library, memory, disk, a free port."""

    exit_code = 4


class StageError(CrateError):
    """A stage failed while making its artifact. `stage` and `fingerprint` say which."""

    exit_code = 5

    def __init__(self, what: str, *, fix: str, stage: str = "", fingerprint: str = "") -> None:
        super().__init__(what, fix=fix)
        self.stage = stage
        self.fingerprint = fingerprint


class ClientError(CrateError):
    """A remote service (judge, tracking server, object storage) refused or broke off. `status` is its HTTP status."""

    exit_code = 6

    def __init__(self, what: str, *, fix: str, status: int | None = None, retryable: bool = False) -> None:
        super().__init__(what, fix=fix)
        self.status = status
        self.retryable = retryable
