"""What a check found, and how it is told."""

from __future__ import annotations

from typing import NamedTuple


class Fact(NamedTuple):
    good: bool | None  # None: not there and not needed
    found: str
    fix: str = ""  # what to do when it is not good

    def line(self, check: str) -> str:
        mark = {None: "--", True: "ok", False: "BAD"}[self.good]
        return f"{mark:<4} {check:<12} {self.found}" + (f": {self.fix}" if self.good is False and self.fix else "")


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
