"""Case and CaseResult: one test of a store, why a failure loses memory, the usual fix, and what was observed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from memkit.conformance.environment import TestEnvironment

Outcome = Literal["passed", "failed", "skipped"]
CaseFunction = Callable[["TestEnvironment"], str | None]
"""Raises CaseFailed, CaseSkipped or Inconclusive; returns a remark on a store that passed, or nothing."""


@dataclass(frozen=True, slots=True)
class Case:
    """One test of a store: what a right store does (``meaning``), why a failure loses memory, and the usual fix."""

    name: str
    _: KW_ONLY
    meaning: str
    why: str
    fix: str
    needs_ttl: bool = False
    function: CaseFunction

    def result(self, outcome: Outcome, message: str, **observed: Any) -> CaseResult:
        """Return what the case observed of a store."""
        about: dict[str, Any] = {"meaning": self.meaning, "why": self.why, "fix": self.fix}
        return CaseResult(self.name, outcome=outcome, message=message, **about, **observed)


def case(*, why: str, fix: str, needs_ttl: bool = False) -> Callable[[CaseFunction], Case]:
    """Make a function a case; its docstring, one line, is the meaning."""
    return lambda function: Case(
        function.__name__, meaning=function.__doc__ or "", why=why, fix=fix, needs_ttl=needs_ttl, function=function
    )


@dataclass(frozen=True, slots=True)
class CaseResult:
    """What one case observed.

    Args:
        name: The case's name.
        outcome: ``passed``, ``failed`` or ``skipped``.
        message: What was observed, the reason of a skip, or a remark.
        meaning: The case's meaning.
        why: Why a failure loses memory.
        fix: The usual fix.
        took_s: Seconds that it took.
        symptom: The kind of a failure: a Symptom, ``hung``, or ``raised`` and the type of the error.
        kept: How many messages were read if they are the newest of those that were appended; negative: the oldest.
    """

    name: str
    _: KW_ONLY
    outcome: Outcome
    message: str
    meaning: str
    why: str
    fix: str
    took_s: float = 0.0
    symptom: str = ""
    kept: int | None = None

    @property
    def hung(self) -> bool:
        """Whether the store did not finish within the time limit."""
        return self.symptom == "hung"
