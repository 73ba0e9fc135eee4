"""The answers of the stores that people run, as they ship with memkit: a matrix of cases and stores."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any, Self

from memkit.conformance.cases.all_cases import CASES

SHIPPED = Path(__file__).parent / "matrix.json"
MARKS = {"passed": "ok", "failed": "FAILS", "skipped": "–"}


class Matrix:
    """How stores answered: ``stores`` is a list of answers as JSON types, each with store, version, date and cases."""

    def __init__(self, stores: Sequence[dict[str, Any]]) -> None:
        self.stores = [answer for answer in stores if "cases" in answer]
        self.not_asked = [answer for answer in stores if "cases" not in answer]

    @classmethod
    def shipped(cls) -> Self:
        """Return the matrix that comes with memkit."""
        return cls(json.loads(SHIPPED.read_text())["stores"])

    def outcome(self, store: str, case: str) -> str:
        """Return ``passed``, ``failed``, ``skipped``, or nothing where it was not asked."""
        return next((one["outcome"] for one in self._of(store)["cases"] if one["name"] == case), "")

    def says(self, store: str, case: str) -> str:
        """Return what was seen when a store was asked a case, or why it was not."""
        return next((str(one["says"]) for one in self._of(store)["cases"] if one["name"] == case), "")

    def failures(self, store: str) -> dict[str, str]:
        """Return the cases that a store failed, with what was seen."""
        return {one["name"]: one["says"] for one in self._of(store)["cases"] if one["outcome"] == "failed"}

    def _of(self, store: str) -> dict[str, Any]:
        found = next((answer for answer in self.stores if answer["store"] == store), None)
        if found is None:
            raise LookupError(f"{store!r} was not asked; there are {', '.join(one['store'] for one in self.stores)}")
        return found

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """A row a case that was asked: its name, and a word for each store."""
        names = [case.name for case in CASES]
        asked = [name for name in names if any(self.outcome(one["store"], name) for one in self.stores)]
        return [(name, *(MARKS.get(self.outcome(one["store"], name), "") for one in self.stores)) for name in asked]

    @property
    def headings(self) -> list[str]:
        """What was asked: store, version, server and date."""
        return [f"{one['store']} {one['version']} on {one['server']}, {one['date']}" for one in self.stores]

    def __repr__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        for answer in self.not_asked:
            yield f"{answer['store']}: not asked: {answer['error']}"
        for number, heading in enumerate(self.headings, 1):
            yield f"({number}) {heading}"
        yield " " * 26 + "".join(f"{f'({number})':^7}" for number in range(1, len(self.stores) + 1))
        for name, *words in self.rows:
            yield f"{name:<26}" + "".join(f"{word:^7}" for word in words)

    def _repr_html_(self) -> str:
        titles = ["case", *(f"{one['store']} {one['version']}" for one in self.stores)]
        dates = sorted({one["date"] for one in self.stores})
        caption = f"Which store failed which case; asked {' to '.join(dict.fromkeys((dates[0], dates[-1])))}"
        head = "".join(f'<th style="text-align:left;vertical-align:bottom">{escape(title)}</th>' for title in titles)
        body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in self.rows)
        top = f'<caption style="text-align:left">{escape(caption)}</caption><thead><tr>{head}</tr></thead>'
        return f"<table>{top}<tbody>{body}</tbody></table>"


def _cell(word: str) -> str:
    strong = f"<b>{word}</b>" if word == MARKS["failed"] else escape(word)
    return f'<td style="text-align:left">{strong}</td>'
