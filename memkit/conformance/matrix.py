"""Matrix: the results of the libraries that people use, shipped as matrix.json, as a table of cases and stores."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from memkit.conformance.cases.all_cases import CASES
from memkit.render import Table, wrapped

SHIPPED = Path(__file__).parent / "matrix.json"
MOST_COLUMNS = 12
"""With the longest name of a case, 28 letters, so many columns of four fit a line of 80."""
MARKS = {"passed": "ok", "failed": "X", "skipped": "–"}


class Matrix:
    """The results of several stores, each as JSON types: store, version, server, date, cases.

    A store that could not be tested has ``error`` instead of cases.
    """

    def __init__(self, stores: Sequence[dict[str, Any]]) -> None:
        self.stores = [result for result in stores if "cases" in result]
        self.not_tested = [result for result in stores if "cases" not in result]

    @classmethod
    def shipped(cls) -> Self:
        """Return the matrix that comes with memkit."""
        return cls(json.loads(SHIPPED.read_text())["stores"])

    def outcome(self, store: str, case: str) -> str:
        """Return ``passed``, ``failed`` or ``skipped``; nothing if the case was not run."""
        return str(self._of(store).get(case, {}).get("outcome", ""))

    def failures(self, store: str) -> dict[str, str]:
        """Return the cases that a store failed, with what was observed."""
        return {name: case["message"] for name, case in self._of(store).items() if case["outcome"] == "failed"}

    def _of(self, store: str) -> dict[str, dict[str, Any]]:
        for result in self.stores:
            if result["store"] == store:
                return {case["name"]: case for case in result["cases"]}
        tested = ", ".join(result["store"] for result in self.stores)
        raise LookupError(f"there is no result of {store!r}; there are {tested}")

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """A row for each case that was run: its name, and a mark for each store."""
        found = []
        for case in CASES:
            outcomes = [self.outcome(result["store"], case.name) for result in self.stores]
            if any(outcomes):
                found.append((case.name, *(MARKS.get(outcome, "") for outcome in outcomes)))
        return found

    def __repr__(self) -> str:
        lines = [f"{result['store']}: not tested: {result['error']}" for result in self.not_tested]
        lines += [
            f"({number}) {result['store']} {result['version']} on {result['server']}, {result['date']}"
            for number, result in enumerate(self.stores, 1)
        ]
        parts = [wrapped(line, indent="    ") for line in lines]
        for start in range(0, len(self.stores), MOST_COLUMNS):
            columns = range(start + 1, min(start + MOST_COLUMNS, len(self.stores)) + 1)
            rows = [(row[0], *(row[column] for column in columns)) for row in self.rows]
            parts.append(Table("", ("X failed, – skipped", *map(str, columns)), rows).to_text())
        return "\n".join(parts)

    def _repr_html_(self) -> str:
        titles = ("case", *(f"{result['store']} {result['version']}" for result in self.stores))
        dates = sorted({result["date"] for result in self.stores})
        caption = f"Which store failed (X) which case, tested {' to '.join(dict.fromkeys((dates[0], dates[-1])))}"
        return Table(caption, titles, self.rows).to_html()
