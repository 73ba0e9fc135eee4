"""The result of a conformance run, and its text in pytest's form: a line a case, each failure in full, a summary."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from html import escape
from textwrap import fill
from typing import Any, Literal

WIDTH = 100
COLOURS = {"passed": "32", "failed": "31", "skipped": "33"}


def to_text(result: Result, *, color: bool = False) -> str:
    """Return a result as text of up to 100 columns, with ANSI colours if asked for."""
    return "\n".join(_lines(result, color))


def _lines(result: Result, color: bool) -> Iterator[str]:
    yield rule("does your store forget?")
    yield f"store: {result.store}"
    yield f"server: {result.server}"
    yield ""
    for case in result.cases:
        yield f"{case.name:<26} {_painted(case.outcome.upper(), case.outcome, color)}"
    failed = [case for case in result.cases if case.outcome == "failed"]
    if failed:
        yield rule("FAILURES")
    for case in failed:
        yield _painted(rule(case.name, "_"), "failed", color)
        yield failure_text(case)
    yield from _summary(result)
    counts = {outcome: result.count(outcome) for outcome in ("failed", "passed", "skipped")}
    told = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
    yield _painted(rule(f"{told} in {result.took_s:.2f}s"), "failed" if failed else "passed", color)


def _summary(result: Result) -> Iterator[str]:
    noted = [case for case in result.cases if case.outcome != "passed" or case.says != case.meaning]
    if noted:
        yield rule("short test summary info")
    for case in noted:
        word = "REMARK" if case.outcome == "passed" else case.outcome.upper()
        yield f"{word} {case.name} - {case.says}"


def failure_text(case: CaseResult) -> str:
    """Return what is said of a failed case: what was seen, what was asked, why that loses memory, the usual fix."""
    told = {"seen": case.says, "asked": case.meaning, "why it loses memory": case.why, "usual fix": case.fix}
    return "\n".join(
        fill(f"{name}: {text}", WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
        for name, text in told.items()
    )


def rule(title: str, char: str = "=") -> str:
    """Return a title in the middle of a line."""
    return f" {title} ".center(WIDTH, char)


def _painted(text: str, outcome: str, color: bool) -> str:
    return f"\x1b[{COLOURS[outcome]}m{text}\x1b[0m" if color else text


def to_html(result: Result) -> str:
    """Return a result as a table: each case that did not pass plainly, its outcome in words, and what was seen."""
    rows = [case for case in result.cases if case.outcome != "passed" or case.says != case.meaning]
    counts = {outcome: result.count(outcome) for outcome in ("passed", "failed", "skipped")}
    told = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
    head = "".join(f'<th style="text-align:left">{title}</th>' for title in ("case", "outcome", "seen", "usual fix"))
    body = "".join(_row(case) for case in rows)
    caption = f'<caption style="text-align:left">{escape(result.store)}: {told}; on {escape(result.server)}</caption>'
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _row(case: CaseResult) -> str:
    word = f"<b>{case.outcome}</b>" if case.outcome == "failed" else case.outcome
    cells = (escape(case.name), word, escape(case.says), escape(case.fix) if case.outcome == "failed" else "")
    return "<tr>" + "".join(f'<td style="text-align:left">{cell}</td>' for cell in cells) + "</tr>"


Outcome = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class CaseResult:
    """How a store answered one case; ``says`` is what was seen, the reason of a skip, or a remark."""

    name: str
    outcome: Outcome
    says: str
    meaning: str
    why: str
    fix: str
    took_s: float
    hung: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """How a store answered the suite; ``server`` is the server it was asked on, in words."""

    store: str
    server: str
    cases: tuple[CaseResult, ...]
    took_s: float = field(default=0.0)

    def count(self, outcome: Outcome) -> int:
        """Return how many cases ended so."""
        return sum(case.outcome == outcome for case in self.cases)

    @property
    def exit_code(self) -> int:
        """0: nothing failed; 1: something did."""
        return int(self.count("failed") > 0)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON types: schema, store, passed, failed, skipped, cases, and what it ran on."""
        counts = {outcome: self.count(outcome) for outcome in ("passed", "failed", "skipped")}
        cases = [{name: value for name, value in asdict(case).items() if name != "hung"} for case in self.cases]
        return {
            "schema": 1,
            "store": self.store,
            **counts,
            "cases": cases,
            "server": self.server,
            "took_s": self.took_s,
        }

    def to_json(self) -> str:
        """Return to_dict() as text."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    def to_text(self, *, color: bool = False) -> str:
        """Return the result in pytest's form; see report.to_text."""
        return to_text(self, color=color)

    def __repr__(self) -> str:
        return to_text(self)

    def _repr_html_(self) -> str:
        return to_html(self)
