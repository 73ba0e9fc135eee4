"""Result: what the cases observed, as text, HTML and JSON, the likely root cause first."""

import json
from collections.abc import Iterator
from dataclasses import KW_ONLY, asdict, dataclass
from typing import Any, get_args

from memkit.conformance.case import CaseResult, Outcome
from memkit.conformance.root_causes import RootCause, root_causes
from memkit.render import Table, colored, printable, report_columns, wrapped

INDENT = "    "


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a run: a result for each case, and the seconds that all took.

    ``server`` is the server's version, where it is from, and how its clock is moved.
    """

    store: str
    _: KW_ONLY
    server: str
    cases: tuple[CaseResult, ...]
    took_s: float = 0.0

    def count(self, outcome: Outcome) -> int:
        """Return how many cases have this outcome."""
        return sum(case.outcome == outcome for case in self.cases)

    @property
    def exit_code(self) -> int:
        """0: nothing failed; 1: something did."""
        return int(self.count("failed") > 0)

    @property
    def root_causes(self) -> list[RootCause]:
        """The likely root causes of the failures, the one that explains most of them first."""
        return root_causes(self.cases)

    @property
    def _counts(self) -> str:
        counts = {outcome: self.count(outcome) for outcome in ("failed", "passed", "skipped")}
        return ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)

    @property
    def _remarkable(self) -> list[CaseResult]:
        """The cases that failed, were skipped, or passed with a remark."""
        return [case for case in self.cases if case.outcome != "passed" or case.message != case.meaning]

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON types: schema, store, counts, root_causes, cases, server, took_s."""
        causes = self.root_causes
        roots = {name: cause.case for cause in causes for name in (cause.case, *cause.cases)}
        shown = ("name", "outcome", "message", "meaning", "why", "fix", "took_s")
        return {
            "schema": 2,
            "store": self.store,
            **{outcome: self.count(outcome) for outcome in get_args(Outcome)},
            "root_causes": [asdict(cause) for cause in causes],
            "cases": [
                {name: getattr(case, name) for name in shown} | {"root_cause": roots.get(case.name)}
                for case in self.cases
            ],
            "server": self.server,
            "took_s": self.took_s,
        }

    def to_json(self) -> str:
        """Return to_dict() as text."""
        return json.dumps(self.to_dict(), indent=2)

    def to_text(self, *, color: bool = False) -> str:
        """Return the result as text: root causes, each case in a line, each failure in full, a summary."""
        return "\n".join(self._lines(color))

    def _lines(self, color: bool) -> Iterator[str]:
        causes, by_name = self.root_causes, {case.name: case for case in self.cases}
        if causes:
            first, *others = causes
            yield wrapped(f"likely root cause: {printable(first.sentence)} (case {first.case})", indent=INDENT)
            if first.cases:
                yield wrapped(f"may follow from it: {', '.join(first.cases)}", indent=INDENT)
            if others:
                yield wrapped(f"other root causes: {', '.join(cause.case for cause in others)}", indent=INDENT)
            yield ""
        yield f"store: {printable(self.store)}"
        yield wrapped(f"server: {self.server}", indent=INDENT)
        yield ""
        for case in self.cases:
            yield f"{case.name:<28} {colored(case.outcome.upper(), case.outcome, color=color)}"
        for cause in causes:
            yield colored(_rule(f"FAILED {cause.case}", "_"), "failed", color=color)
            if cause.cases:
                yield wrapped(f"root cause: {printable(cause.sentence)}", indent=INDENT)
            yield failure_text(by_name[cause.case])
            for name in cause.cases:
                yield wrapped(f"may follow from it: {name}: {printable(by_name[name].message)}", indent=INDENT)
        remarks = [case for case in self._remarkable if case.outcome != "failed"]
        yield from (_rule("remarks"),) if remarks else ()
        for case in remarks:
            yield wrapped(f"{case.outcome} {case.name}: {printable(case.message)}", indent=INDENT)
        end = _rule(f"{self._counts} in {self.took_s:.2f}s")
        yield colored(end, "failed" if self.exit_code else "passed", color=color)

    def __repr__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        likely = "".join(f". Likely root cause: {cause.sentence} (case {cause.case})" for cause in self.root_causes[:1])
        rows = [
            (case.name, case.outcome, case.message, case.fix if case.outcome == "failed" else "")
            for case in self._remarkable
        ]
        caption = f"{self.store}: {self._counts}; on {self.server}{likely}"
        return Table(caption, ("case", "outcome", "observed", "usual fix"), rows).to_html()


def failure_text(case: CaseResult) -> str:
    """Return a failed case in full: what was observed, what was tested, why that loses memory, the usual fix."""
    parts = {"observed": case.message, "tested": case.meaning, "why it loses memory": case.why, "usual fix": case.fix}
    return "\n".join(wrapped(f"{name}: {printable(text)}", indent=INDENT) for name, text in parts.items())


def _rule(title: str, char: str = "=") -> str:
    return f" {title} ".center(report_columns(), char)
