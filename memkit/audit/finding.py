"""A finding: one cause with its evidence, severity and next step; the verdict of all findings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from memkit.render import utc_text

SEVERITIES = {
    "ttl_too_short": "critical",
    "unit_mistake": "critical",
    "mixed_ttl": "critical",
    "not_refreshed": "critical",
    "evicted": "critical",
    "deleted": "critical",
    "dangling": "critical",
    "corrupt": "critical",
    "wrong_prefix": "critical",
    "no_ttl": "warning",
    "ttl_too_long": "warning",
    "eviction_risk": "warning",
    "persistence_risk": "warning",
    "clock_skew": "warning",
    "no_data": "info",
}


RANK = {"critical": 0, "warning": 1, "info": 2}


SURE = {"proven": 0, "likely": 1, "possible": 2}


@dataclass(frozen=True, slots=True)
class Finding:
    """One cause that shortens (or needlessly prolongs) lives, with what shows it and what to type next.

    ``keys`` of ``sampled`` keys looked at are hurt; ``prefix`` None: the whole server. TTLs in seconds. ``since`` is
    on the server's clock; ``since_is``: ``"exact"``, ``"lower bound"`` (it happened no earlier), ``"upper bound"``.
    ``confidence``: ``"proven"``, ``"likely"`` or ``"possible"``.
    """

    cause: str
    prefix: str | None
    keys: int
    sampled: int
    sentence: str
    confidence: str
    expected_ttl_s: float | None = None
    observed_ttl_s: float | None = None
    since: datetime | None = None
    since_is: str | None = None
    evidence: tuple[str, ...] = ()
    next: str = ""

    @property
    def severity(self) -> str:
        """``"critical"`` (memory is being lost), ``"warning"`` (it will be, or grows for ever) or ``"info"``."""
        return SEVERITIES[self.cause]

    @property
    def order(self) -> tuple[int, int, int, int]:
        """Sorts the one that matters most first."""
        return RANK[self.severity], -self.keys, SURE[self.confidence], list(SEVERITIES).index(self.cause)

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as ``audit --json`` shows it."""
        return {
            "cause": self.cause,
            "severity": self.severity,
            "prefix": self.prefix,
            "keys": self.keys,
            "sampled": self.sampled,
            "expected_ttl_s": _plain(self.expected_ttl_s),
            "observed_ttl_s": _plain(self.observed_ttl_s),
            "since": None if self.since is None else utc_text(self.since, round_up=self.since_is == "upper bound"),
            "since_is": self.since_is,
            "confidence": self.confidence,
            "says": self.sentence,
            "evidence": list(self.evidence),
            "next": self.next,
        }


@dataclass(frozen=True, slots=True)
class Verdict:
    """The one sentence: the most severe finding, or that all is well."""

    cause: str
    sentence: str
    prefix: str | None
    confidence: str


@dataclass(frozen=True, slots=True)
class Seen:
    """What lives under one prefix: how many keys, of which types, and the TTL they seem to be given."""

    prefix: str
    keys: int
    kinds: str
    immortal: int
    ttl_s: float | None
    says: str


def verdict_of(findings: Sequence[Finding], healthy: str, *, looked: int) -> Verdict:
    """Return the most severe finding's verdict; where no key was there to look at, a mere risk is not the verdict."""
    first = findings[0] if findings else None
    empty = next((finding for finding in findings if finding.cause == "no_data"), None)
    if empty and not looked and first and first.severity != "critical":
        first = empty
    if first is None:
        return Verdict("healthy", healthy, None, "proven")
    return Verdict(first.cause, first.sentence, first.prefix, first.confidence)


def _plain(seconds: float | None) -> float | int | None:
    if seconds is None:
        return None
    return int(seconds) if seconds == int(seconds) else round(seconds, 3)
