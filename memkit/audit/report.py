"""The result of an audit: findings, one verdict, and proof that nothing was changed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from memkit.audit.finding import BOUND_TEXTS, COLUMNS, Finding, PrefixSummary, Verdict
from memkit.audit.sampling import KeyFacts
from memkit.config import Expectation, glob_expression
from memkit.render import Table, ago, colored, counted, duration, escaped, printable, utc_text, wrapped

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 2
INDENT = 11
SOON_MS = 300_000
EXIT_CODES = {"healthy": 0, "findings": 1, "undetermined": 2, "no_data": 2}


@dataclass(frozen=True, slots=True)
class Proof:
    """Proof that the audit was harmless: every command it sent, and what the server's own counters show."""

    commands: Mapping[str, int]
    writes: int
    idle_clocks_touched: int
    expired_during_audit: int | None
    evicted_during_audit: int | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the proof as ``audit --json`` shows it."""
        return asdict(self) | {"commands": dict(sorted(self.commands.items())), "seconds": round(self.seconds, 2)}


@dataclass(frozen=True, slots=True)
class AuditReport:
    """The result of ``audit()``.

    Args:
        server: ``flavour``, ``version``, ``url`` and ``source`` (``kind``, ``name``, ``taken_at``).
        findings: The findings, the one that matters most first.
        verdict: The one sentence.
        sample: How many keys were looked at, of how many, and how.
        proof: That nothing was changed.
        notes: What could not be seen, what was not checked, and facts that are no findings.
        seen: What is stored under each prefix, if nothing was expected.
        expectations: What was expected.
        ignored: Patterns of keys that match and are no sessions.
        at: The server's time.
        keys: The keys that were looked at, for figures.
        scales: By prefix, how many keys there are for each one that was looked at.
        counters: Some of INFO's numbers.
    """

    server: Mapping[str, Any]
    findings: tuple[Finding, ...]
    verdict: Verdict
    sample: Mapping[str, Any]
    proof: Proof
    notes: tuple[str, ...] = ()
    seen: tuple[PrefixSummary, ...] = ()
    expectations: tuple[Expectation, ...] = ()
    ignored: tuple[str, ...] = ()
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    keys: Sequence[KeyFacts] = ()
    scales: Mapping[str, float] = field(default_factory=dict)
    counters: Mapping[str, int | None] = field(default_factory=dict)

    @property
    def expected(self) -> tuple[str, ...]:
        """The expectations as texts."""
        return tuple(map(str, self.expectations))

    @property
    def sessions(self) -> list[KeyFacts]:
        """The keys that match an expectation, without those that are no sessions; without expectations all keys."""
        matching = {one.key: one for expectation in self.expectations for one in expectation.matching(self.keys)}
        no_sessions = [glob_expression(pattern) for pattern in self.ignored]
        shown = matching.values() if self.expectations else self.keys
        return [one for one in shown if not any(pattern.fullmatch(one.key) for pattern in no_sessions)]

    @property
    def exit_code(self) -> int:
        """0: healthy; 1: findings; 2: there was too little to judge."""
        return EXIT_CODES[self.verdict.status]

    @property
    def affected(self) -> dict[str, int | None] | None:
        """How many keys end too early: ``now`` existing, of these ``within_5_min``, and ``expired_at_most`` already.

        Of a sample, the first two are estimates for all keys. None if no finding is of TTLs that are too short.
        """
        findings = [one for one in self.findings if one.is_short and one.keys]
        if not findings:
            return None
        left = [one for one in self.keys if one.left_ms is not None and one.left_ms <= SOON_MS]
        now = soon = 0.0
        for finding in findings:
            own = [one for one in left if finding.affects(one.key, one.ttl_at_last_access_ms)]
            left = [one for one in left if not finding.affects(one.key, one.ttl_at_last_access_ms)]
            # How many keys there are for each one under the prefix that was looked at.
            known = [one for one in self.scales if (finding.prefix or "").startswith(one)]
            scale = self.scales.get(max(known, key=len, default=""), 1.0) if self.sample["error_bound"] else 1.0
            now += scale * finding.keys
            soon += scale * min(finding.keys, len(own))
        expired = self.counters.get("expired_keys")
        return {"now": round(now), "within_5_min": round(soon), "expired_at_most": expired}

    @property
    def affected_text(self) -> str | None:
        """``affected`` in words."""
        counts = self.affected
        if counts is None:
            return None
        about = "" if self.sample["error_bound"] == 0 else "about "
        expired = counts["expired_at_most"]
        already = "" if expired is None else f"; on the whole server {counted(expired, 'key')} expired since it started"
        return f"{about}{counted(counts['now'] or 0, 'key')}; {counts['within_5_min']:,} with up to 5 min left{already}"

    def __repr__(self) -> str:
        return f"<AuditReport {self.verdict.cause}: {self.verdict.sentence}>"

    def to_dict(self) -> dict[str, Any]:
        """Return the object that ``audit --json`` prints."""
        return {
            "schema": SCHEMA,
            "at": utc_text(self.at),
            "server": dict(self.server),
            "verdict": asdict(self.verdict),
            "affected": self.affected,
            "findings": [finding.to_dict() for finding in self.findings],
            "sample": dict(self.sample),
            "proof": self.proof.to_dict(),
            "expected": list(self.expected),
            "seen": [asdict(one) for one in self.seen],
            "notes": list(self.notes),
        }

    def to_json(self) -> str:
        """Return ``to_dict()`` as JSON in ASCII, so that names that are not UTF-8 survive."""
        return json.dumps(self.to_dict(), indent=2)

    def to_frame(self) -> pd.DataFrame:
        """Return the findings as a data frame, one row each."""
        import pandas as pd

        rows = [[getattr(finding, column) for column in COLUMNS] for finding in self.findings]
        return pd.DataFrame(rows, columns=list(COLUMNS))

    def to_text(self, *, color: bool = False) -> str:
        """Return the report for a terminal: the verdict first, then each finding, then notes and what was read."""
        style = self.findings[0].severity if self.verdict.status == "findings" else self.verdict.status
        lines = _painted(f"{style}: {printable(self.verdict.sentence)}", style, color=color)
        lines += [wrapped(f"affected: {self.affected_text}")] if self.affected_text else []
        lines += [wrapped(self._place())]
        for finding in self.findings:
            lines += ["", *_painted(_title(finding), finding.severity, color=color)]
            lines += [_row(name, value) for name, value in self._rows(finding)]
        if self.seen:
            lines += ["", *(wrapped(printable(one.message), indent="  ") for one in self.seen)]
        lines += ["", *(wrapped(f"note: {printable(note)}", indent="  ") for note in self.notes)]
        return "\n".join([*lines, wrapped(self.proof_sentence(), indent="  ")])

    def _place(self) -> str:
        return f"{self.server['flavour']} {self.server['version']} at {self.server['url']}, {utc_text(self.at)}"

    def _rows(self, finding: Finding) -> list[tuple[str, str]]:
        """Return what to show of a finding under its head; the verdict's own sentence is not repeated."""
        rows = [] if finding.message == self.verdict.sentence else [("what", finding.message)]
        expected, observed = (
            None if one is None else one * 1000 for one in (finding.expected_ttl_s, finding.observed_ttl_s)
        )
        if finding.cause == "two_ttls" and expected is None:
            rows.append(("TTL", f"observed {duration(observed)}; nothing was expected"))
        elif observed is not None or finding.cause == "no_ttl":
            rows.append(("TTL", f"expected {duration(expected)}, observed {duration(observed)}"))
        rows += self.since_rows(finding)
        if finding.keys:
            rows.append(("keys", finding.keys_text))
        return [*rows, *(("evidence", one) for one in finding.evidence), ("next", finding.next)]

    def since_rows(self, finding: Finding) -> list[tuple[str, str]]:
        """Return "since" or "until" and the time of a finding's change, or nothing."""
        if finding.since is None:
            return []
        name = "until" if finding.since_is == "until" else "since"
        text = utc_text(finding.since, round_up=finding.since_is == "upper bound")
        return [(name, f"{text} ({ago(finding.since, self.at)}{BOUND_TEXTS.get(finding.since_is or '', '')})")]

    def proof_sentence(self) -> str:
        """Return what the audit did to the server, in one sentence."""
        proof = self.proof
        expired = proof.expired_during_audit
        meanwhile = "" if expired is None else f"; {counted(expired, 'key')} expired during the audit"
        return (
            f"checked {self.sample['keys']:,} of {self.sample['of']:,} keys in {duration(proof.seconds * 1000)} with "
            f"{sum(proof.commands.values()):,} commands: {proof.writes} writes, {proof.idle_clocks_touched} idle "
            f"times reset{meanwhile}"
        )

    def _repr_html_(self) -> str:
        counts = [f"Affected: {self.affected_text}"] if self.affected_text else []
        top = [self.verdict.sentence, *counts, *(f"Next: {one.next}" for one in self.findings[:1])]
        verdict = "<br>".join(f"<strong>{escaped(line)}</strong>" for line in top)
        tables = "".join(Table(_title(one), ("fact", "value"), self._rows(one)).to_html() for one in self.findings)
        below = [*(one.message for one in self.seen), *(f"Note: {note}" for note in self.notes)]
        paragraphs = "".join(f"<p>{escaped(text)}</p>" for text in [*below, self.proof_sentence()])
        return f'<div class="memkit"><p>{verdict}</p>{tables}{paragraphs}</div>'


def _title(finding: Finding) -> str:
    scope = "the whole server" if finding.prefix is None else printable(f"{finding.prefix}*")
    return f"{finding.severity} {finding.cause} ({scope}, confidence: {finding.confidence})"


def _row(name: str, value: str) -> str:
    return wrapped(f"  {name:<{INDENT - 3}} {printable(value)}", indent=" " * INDENT)


def _painted(text: str, style: str, *, color: bool) -> list[str]:
    return [colored(line, style, color=color) for line in wrapped(text).splitlines()]
