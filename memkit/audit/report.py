"""What an audit found: findings, one verdict, and the proof that it hurt nobody; as text, JSON, HTML and a frame."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from memkit.audit.finding import Finding, Seen, Verdict
from memkit.audit.sampling import KeyFacts
from memkit.render import duration, utc_text

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Proof:
    """That the audit was harmless: every command it sent, and what the server's own counters say."""

    commands: Mapping[str, int]
    writes: int
    idle_clocks_touched: int
    expired_during_audit: int | None
    evicted_during_audit: int | None
    seconds: float
    batches_halved: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the proof as ``audit --json`` shows it."""
        return {
            "commands": dict(sorted(self.commands.items())),
            "writes": self.writes,
            "idle_clocks_touched": self.idle_clocks_touched,
            "expired_during_audit": self.expired_during_audit,
            "evicted_during_audit": self.evicted_during_audit,
            "seconds": round(self.seconds, 2),
        }


@dataclass(frozen=True, slots=True)
class AuditReport:
    """The result of ``audit()``. ``notes`` say what could not be seen or was not checked; ``keys`` are for figures."""

    server: Mapping[str, str]
    findings: tuple[Finding, ...]
    verdict: Verdict
    sample: Mapping[str, Any]
    proof: Proof
    notes: tuple[str, ...] = ()
    seen: tuple[Seen, ...] = ()
    expected: tuple[str, ...] = ()
    expectations: tuple[str, ...] = ()
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    keys: Sequence[KeyFacts] = ()
    counters: Mapping[str, int | None] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0: nothing wrong; 1: something is; 2: there was nothing to audit."""
        if self.verdict.cause == "no_data":
            return 2
        return int(any(finding.severity != "info" for finding in self.findings))

    def __repr__(self) -> str:
        return f"<AuditReport {self.verdict.cause}: {self.verdict.sentence}>"

    def to_dict(self) -> dict[str, Any]:
        """Return the object that ``audit --json`` prints."""
        verdict = self.verdict
        return {
            "schema": 1,
            "at": utc_text(self.at),
            "server": dict(self.server),
            "verdict": {
                "cause": verdict.cause,
                "sentence": verdict.sentence,
                "prefix": verdict.prefix,
                "confidence": verdict.confidence,
            },
            "findings": [finding.to_dict() for finding in self.findings],
            "sample": dict(self.sample),
            "proof": self.proof.to_dict(),
            "expected": list(self.expected),
            "seen": [{name: getattr(one, name) for name in Seen.__slots__} for one in self.seen],
            "notes": list(self.notes),
        }

    def to_json(self) -> str:
        """Return ``to_dict()`` as JSON in ASCII, so that names that are not UTF-8 survive."""
        return json.dumps(self.to_dict(), indent=2)

    def to_frame(self) -> pd.DataFrame:
        """Return the findings as a data frame, one row each."""
        import pandas as pd

        columns = [
            "cause",
            "severity",
            "prefix",
            "keys",
            "sampled",
            "expected_ttl_s",
            "observed_ttl_s",
            "since",
            "since_is",
        ]
        rows = [[getattr(finding, column) for column in columns] for finding in self.findings]
        return pd.DataFrame(rows, columns=columns)

    def to_text(self, *, color: bool = False) -> str:
        """Return the report for a terminal: the verdict first, then what shows it, then what it cost."""
        return "\n".join([*self._head(color=color), *self._body(color=color), *self._foot()])

    def _head(self, *, color: bool) -> list[str]:
        where = f"{self.server['flavour']} {self.server['version']} at {self.server['url']}"
        severity = self.findings[0].severity if self.findings else "healthy"
        return [where, _painted(f"{severity}: {_shown(self.verdict.sentence)}", severity, color=color)]

    def _body(self, *, color: bool) -> list[str]:
        lines: list[str] = []
        for finding in self.findings:
            scope = "the whole server" if finding.prefix is None else _shown(finding.prefix)
            lines += [
                "",
                _painted(
                    f"{finding.severity} {finding.cause} ({scope}, {finding.confidence})", finding.severity, color=color
                ),
            ]
            lines += [f"  {name}: {_shown(value)}" for name, value in _rows(finding)]
        if self.seen:
            lines += ["", "seen:", *(f"  {_shown(one.says)}" for one in self.seen)]
        return lines

    def _foot(self) -> list[str]:
        return ["", *(f"note: {_shown(note)}" for note in self.notes), self.proof_sentence()]

    def proof_sentence(self) -> str:
        """Return what the audit did to the server, in one sentence."""
        proof = self.proof
        meanwhile = (
            "" if proof.expired_during_audit is None else f", {proof.expired_during_audit:,} keys expired meanwhile"
        )
        return (
            f"looked at {self.sample['keys']:,} of {self.sample['of']:,} keys in {proof.seconds:.1f} s with "
            f"{sum(proof.commands.values()):,} commands: {proof.writes} writes, {proof.idle_clocks_touched} idle "
            f"clocks touched{meanwhile}"
        )

    def _repr_html_(self) -> str:
        left = ' style="text-align:left"'  # JupyterLab sets all to the right
        rows = "".join(f"<tr>{''.join(f'<td{left}>{cell}</td>' for cell in _cells(one))}</tr>" for one in self.findings)
        head = "".join(f'<th scope="col"{left}>{title}</th>' for title in _TITLES)
        caption = f"<caption{left}>Findings: {len(self.findings)}</caption>"
        table = f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>" if rows else ""
        says = [self.verdict.sentence, *(f"Next: {one.next}" for one in self.findings[:1])]
        verdict = "<br>".join(f"<strong>{html.escape(_shown(line))}</strong>" for line in says)
        below = [*(f"Seen: {one.says}" for one in self.seen), *(f"Note: {note}" for note in self.notes)]
        below.append(self.proof_sentence())
        return f'<div class="memkit"><p>{verdict}</p>{table}{"".join(map(_paragraph, below))}</div>'


_TITLES = ("severity", "cause", "prefix", "what shows it")


def _paragraph(text: str) -> str:
    return f"<p>{html.escape(_shown(text))}</p>"


def _cells(finding: Finding) -> tuple[str, str, str, str]:
    scope = "whole server" if finding.prefix is None else _shown(finding.prefix)
    return finding.severity, finding.cause, html.escape(scope), _html(finding)


def _rows(finding: Finding) -> list[tuple[str, str]]:
    rows = [("what", finding.sentence)]
    expected, observed = (
        None if one is None else one * 1000 for one in (finding.expected_ttl_s, finding.observed_ttl_s)
    )
    if observed is not None or finding.cause == "no_ttl":
        rows.append(("TTL", f"expected {duration(expected)}, seen {duration(observed)}"))
    if finding.since:
        rows.append(
            ("since", f"{utc_text(finding.since, round_up=finding.since_is == 'upper bound')} ({finding.since_is})")
        )
    if finding.keys:
        rows.append(("keys", f"{finding.keys:,} of {finding.sampled:,} looked at"))
    return [*rows, *(("evidence", one) for one in finding.evidence), ("next", finding.next)]


def _html(finding: Finding) -> str:
    rows = [("sure", finding.confidence), *_rows(finding)]
    return "<br>".join(f"{name}: {html.escape(_shown(value))}" for name, value in rows)


def _painted(text: str, severity: str, *, color: bool) -> str:
    code = {"critical": "1;31", "warning": "1;33", "healthy": "1;32"}.get(severity, "1")
    return f"\x1b[{code}m{text}\x1b[0m" if color else text


def _shown(text: str) -> str:
    """Return text that no terminal acts on: names of keys are anybody's."""
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)
