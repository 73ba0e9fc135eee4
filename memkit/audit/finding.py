"""A finding: one cause with its evidence, severity and next step; the verdict of all findings."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple, Self

from memkit.config import Expectation
from memkit.policy import JITTER
from memkit.readonly.values import to_bytes
from memkit.render import utc_text, utc_time

Severity = Literal["critical", "warning", "info"]
Confidence = Literal["proven", "likely", "possible"]
Bound = Literal["exact", "lower bound", "upper bound", "until"]
Status = Literal["findings", "healthy", "undetermined", "no_data"]

SEVERITIES: dict[str, Severity] = {
    "ttl_too_short": "critical",
    "unit_mistake": "critical",
    "two_ttls": "critical",
    "mixed_ttl": "critical",
    "not_refreshed": "critical",
    "out_of_memory": "critical",
    "writes_refused": "critical",
    "flushed": "critical",
    "evicted": "critical",
    "deleted": "critical",
    "dangling": "critical",
    "corrupt": "critical",
    "shared_key": "critical",
    "wrong_prefix": "critical",
    "restarted": "warning",
    "replica_stale": "warning",
    "no_ttl": "warning",
    "ttl_too_long": "warning",
    "persistent_renewal": "warning",
    "stale_index": "warning",
    "trimmed": "warning",
    "eviction_risk": "warning",
    "persistence_risk": "warning",
    "clock_skew": "warning",
    "encoding_changed": "info",
    "no_data": "info",
}
"""Every cause, in the order in which findings of equal weight are reported."""
_SHORTENED = ("ttl_too_short", "unit_mistake", "two_ttls", "not_refreshed")
_ENDED = ("evicted", "deleted", "restarted", "dangling", "stale_index")
"""The keys of these findings no longer exist, and were not among those that were checked."""
_COLUMNS = "cause severity confidence prefix keys sampled expected_ttl_s observed_ttl_s since since_is"
COLUMNS = tuple(_COLUMNS.split())
WITH_JITTER = 1 + JITTER
"""A TTL may be a tenth longer than the observed one (the default jitter of an expectation)."""
RANKS = {"critical": 0, "warning": 1, "info": 2}
BOUND_TEXTS = {"lower bound": ", at the earliest", "upper bound": ", at the latest"}
"""How ``since_is`` is printed behind the time; the others need no words."""
CONFIDENCE_RANKS = {"proven": 0, "likely": 1, "possible": 2}


class Since(NamedTuple):
    """When a change happened, in milliseconds on the server's clock, and which bound that is."""

    at_ms: float
    bound: Bound


@dataclass(frozen=True, slots=True)
class Finding:
    """One cause that shortens or needlessly prolongs observed lifetimes, with its evidence and what to type next.

    Args:
        cause: A key of ``SEVERITIES``.
        prefix: The narrowest prefix that holds all affected keys; None: the whole server.
        keys: How many of the ``sampled`` keys are affected.
        sampled: How many keys were looked at; the audit fills it in.
        message: The finding in one sentence.
        confidence: ``"proven"`` (the first line of ``evidence`` is the proof), ``"likely"`` or ``"possible"``.
        expected_ttl_s: The expected TTL in seconds.
        observed_ttl_s: The TTL in seconds that the keys were given.
        since: When it began, or ended, on the server's clock.
        since_is: ``"exact"``, ``"lower bound"`` (it began no earlier), ``"upper bound"`` (no later) or ``"until"`` (it
            ended then).
        evidence: What shows it, one fact a line.
        next: What to do.
    """

    cause: str
    _: KW_ONLY
    prefix: str | None = None
    keys: int = 0
    sampled: int = 0
    message: str
    confidence: Confidence
    expected_ttl_s: float | None = None
    observed_ttl_s: float | None = None
    since: datetime | None = None
    since_is: Bound | None = None
    evidence: Sequence[str] = ()
    next: str = ""

    @classmethod
    def of(
        cls,
        cause: str,
        expected: Expectation | None = None,
        *,
        prefix: str | None = None,
        observed_ms: float | None = None,
        since: Since | None = None,
        **given: Any,
    ) -> Self:
        """Return a finding about the keys of an expectation, perhaps under a narrower prefix, or about the server."""
        if expected:
            prefix = expected.prefix if prefix is None else prefix
            given["expected_ttl_s"] = expected.policy.ttl_s
        if observed_ms is not None:
            given["observed_ttl_s"] = round(observed_ms / 1000, 3)
        if since:
            given |= {"since": utc_time(since.at_ms), "since_is": since.bound}
        return cls(cause, prefix=prefix, **given)

    def __post_init__(self) -> None:
        if self.confidence == "proven" and not self.evidence:
            raise ValueError(f"{self.cause} is not proven without the fact that proves it: {self.message}")

    @property
    def severity(self) -> Severity:
        """``"critical"`` (memory is being lost), ``"warning"`` (it may be, or grows for ever) or ``"info"``."""
        severity = SEVERITIES[self.cause]
        return "warning" if severity == "critical" and self.confidence == "possible" else severity

    @property
    def keys_text(self) -> str:
        """How many keys are affected, and of how many if they were among those that were checked."""
        return f"{self.keys:,}" if self.cause in _ENDED else f"{self.keys:,} of {self.sampled:,} checked"

    @property
    def is_short(self) -> bool:
        """Whether its keys expire before the expected TTL."""
        longer = self.expected_ttl_s is not None and (self.observed_ttl_s or 0) > self.expected_ttl_s
        return self.cause in _SHORTENED and not longer

    def affects(self, key: bytes, given_ms: int | None) -> bool:
        """Return whether this finding is about a key: under its prefix, and given at most the observed TTL.

        Args:
            key: The key's name.
            given_ms: The TTL that it was given, or what is left of it; None: it has none.
        """
        if not self.is_short or not self.observed_ttl_s or given_ms is None:
            return False
        return given_ms <= self.longest_ms and key.startswith(to_bytes(self.prefix or ""))

    @property
    def longest_ms(self) -> float:
        """The longest TTL that its keys may have been given, in milliseconds."""
        return WITH_JITTER * 1000 * (self.observed_ttl_s or 0)

    @property
    def order(self) -> tuple[int, ...]:
        """Sorts the finding that matters most first; of warnings, those that may be losses before risks."""
        own, cause = RANKS[self.severity], RANKS[SEVERITIES[self.cause]]
        causes = list(SEVERITIES)
        return own, cause, -self.keys, CONFIDENCE_RANKS[self.confidence], causes.index(self.cause)

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as ``audit --json`` shows it."""
        return {name: getattr(self, name) for name in (*COLUMNS, "message", "evidence", "next")} | {
            "expected_ttl_s": _plain(self.expected_ttl_s),
            "observed_ttl_s": _plain(self.observed_ttl_s),
            "since": None if self.since is None else utc_text(self.since, round_up=self.since_is == "upper bound"),
            "evidence": list(self.evidence),
        }


@dataclass(frozen=True, slots=True)
class Verdict:
    """The one sentence: the most severe finding, that nothing is wrong, or what would settle it.

    Args:
        status: ``"findings"``, ``"healthy"``, ``"undetermined"`` (too little to judge) or ``"no_data"``.
        cause: The cause of the first finding; otherwise the status.
        sentence: The verdict with its numbers.
        prefix: The prefix of the first finding.
        confidence: That of the first finding.
    """

    status: Status
    cause: str
    _: KW_ONLY
    sentence: str
    prefix: str | None = None
    confidence: Confidence = "proven"


@dataclass(frozen=True, slots=True)
class PrefixSummary:
    """What is stored under one prefix: how many keys, of which types, and the TTL that they seem to be given."""

    prefix: str
    _: KW_ONLY
    keys: int
    kinds: str
    persistent: int
    ttl_s: float | None
    message: str


def verdict_of(findings: Sequence[Finding], *, sessions: int, healthy: str, undetermined: str | None) -> Verdict:
    """Return the verdict of findings that are in order.

    Args:
        findings: All of them.
        sessions: How many keys of sessions were looked at; if there was none, a risk of the server is not the verdict.
        healthy: The sentence if nothing is wrong.
        undetermined: Why too little is known to call it healthy; None if enough is.
    """
    first = next((one for one in findings if one.severity != "info"), None)
    empty = next((one for one in findings if one.cause == "no_data"), None)
    if empty and (first is None or (not sessions and first.severity != "critical")):
        return Verdict("no_data", "no_data", sentence=empty.message, prefix=empty.prefix)
    if first:
        return Verdict(
            "findings", first.cause, sentence=first.message, prefix=first.prefix, confidence=first.confidence
        )
    if undetermined:
        return Verdict("undetermined", "undetermined", sentence=undetermined, confidence="possible")
    return Verdict("healthy", "healthy", sentence=healthy)


def _plain(seconds: float | None) -> float | int | None:
    return int(seconds) if seconds is not None and seconds == int(seconds) else seconds
