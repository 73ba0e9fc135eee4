"""A case: a question to a store, with the reason why the wrong answer loses memory and the usual fix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memkit.conformance.environment import Bench

Question = Callable[["Bench"], str | None]
"""Raises Forgot or NotAsked; what it returns is a remark on a store that passed."""


@dataclass(frozen=True, slots=True)
class Case:
    """One question: ``name``, ``meaning`` (a sentence), ``why`` a failure loses memory, the usual ``fix``."""

    name: str
    meaning: str
    why: str
    fix: str
    needs_ttl: bool
    ask: Question


def case(*, why: str, fix: str, needs_ttl: bool = False) -> Callable[[Question], Case]:
    """Make a function a case; its docstring's first sentence is the meaning."""

    def made(ask: Question) -> Case:
        meaning = " ".join((ask.__doc__ or "").split())
        return Case(ask.__name__, meaning, why, fix, needs_ttl, ask)

    return made
