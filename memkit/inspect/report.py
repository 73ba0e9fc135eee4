"""SessionReport: one session as JSON, plain text for a terminal, HTML for a notebook, or data frames.

Redacted unless it was made with ``reveal``: only then does it hold the texts at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from memkit.formats import superseded
from memkit.formats.model import Problem
from memkit.inspect.redaction import Message
from memkit.policy import JITTER, PartEnd, ends_apart
from memkit.render import SHOWN_CHARS, Table, counted, duration, escaped, printable, wrapped

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 2
SHARED = "shared"
"""How the parts begin that hold other sessions' entries too, and may be persistent."""
_MAX_ROWS = 200
_CELL_CHARS = 300
_COLUMNS = {
    "messages": ("role", "text", "chars", "tool", "at", "hash"),
    "keys": ("key", "type", "part", "ttl_s", "idle_s", "bytes", "encoding"),
    "problems": ("cause", "key", "message"),
}
_TITLES = {"ttl_s": "TTL", "idle_s": "idle", "at": "at (UTC)"}


class KeyReport(NamedTuple):
    """One key of the session. ``ttl_s`` None: no TTL. ``payload`` is the guessed encoding, for unknown stores."""

    key: str
    type: str
    part: str
    ttl_s: float | None
    bytes: int | None
    idle_s: int | None
    encoding: str | None
    payload: str | None = None
    preview: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the key as ``inspect --json`` shows it."""
        optional = ("payload", "preview")
        return {name: value for name, value in self._asdict().items() if value is not None or name not in optional}


@dataclass(frozen=True, slots=True)
class SessionReport:
    """One session: its messages, its keys, and its problems."""

    store: str
    session: str
    messages: Sequence[Message]
    keys: tuple[KeyReport, ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    revealed: bool

    def __repr__(self) -> str:
        counts = ", ".join(counted(len(getattr(self, name)), name.removesuffix("s")) for name in _COLUMNS)
        return f"<SessionReport {self.store} {printable(self.session, 80)}: {counts}>"

    def to_dict(self) -> dict[str, Any]:
        """Return the object that ``inspect --json`` prints."""
        problems = [
            {"cause": problem.cause, "key": problem.key, "message": problem.message}
            | ({"repair": problem.repair} if problem.repair else {})
            for problem in self.problems
        ]
        return {
            "schema": SCHEMA,
            "store": self.store,
            "session": self.session,
            "messages": [message.to_dict() for message in self.messages],
            "keys": [key.to_dict() for key in self.keys],
            "problems": problems,
            "notes": list(self.notes),
        }

    def to_json(self) -> str:
        """Return the report as JSON in ASCII: safe in any terminal, and names that are not UTF-8 survive."""
        return json.dumps(self.to_dict(), indent=2)

    def to_frame(self, table: str = "messages") -> pd.DataFrame:
        """Return one table as a data frame; no terminal acts on its texts.

        Args:
            table: ``messages``, ``keys`` or ``problems``.
        """
        import pandas as pd

        rows = [[_harmless(value) for value in row] for row in self._rows(table)]
        return pd.DataFrame(rows, columns=list(_COLUMNS[table]))

    def to_text(self) -> str:
        """Return the report as plain text that no terminal acts on; at most 200 rows a table, JSON has all."""
        parts = [f"session {printable(self.session, 200)} ({self._store})"]
        for name in ("messages", "keys"):
            table = self._table(name)
            parts.append(f"{table.caption}\n{table.to_text()}" if table.rows else f"no {name}")
        shown = self.problems[:_MAX_ROWS]  # as paragraphs: a table of them is wider than a terminal
        lines = [counted(len(self.problems), "problem") if shown else "no problems"]
        lines += [wrapped(f"{one.cause}: {printable(one.key)} {printable(one.message)}", indent="  ") for one in shown]
        lines += [f"… and {len(self.problems) - _MAX_ROWS:,} more"] if len(self.problems) > _MAX_ROWS else []
        parts.append("\n".join(lines))
        parts += [wrapped(f"suggested fix (review before running): {printable(fix)}") for fix in self._repairs()]
        parts += [wrapped(f"note: {printable(note)}", indent="  ") for note in self.notes]
        parts += ["\n".join(f"    {printable(line)}" for line in key.preview.splitlines()) for key in self._previewed()]
        return "\n\n".join(part for part in parts if part) + "\n"

    def _repr_html_(self) -> str:
        tables = [self._table(name) for name in _COLUMNS]
        shown = [table.to_html() if table.rows else f"<p>{table.caption}.</p>" for table in tables]
        repairs = [
            f"<p>Suggested fix (review before running): <code>{escaped(fix)}</code></p>" for fix in self._repairs()
        ]
        notes = [f"<p>{escaped(note)}</p>" for note in self.notes]
        lines = [map(escaped, key.preview.splitlines()) for key in self._previewed()]
        previews = [f"<pre>{chr(10).join(each)}</pre>" for each in lines]
        head = f"<p>session <code>{escaped(self.session, 200)}</code> (<strong>{escaped(self._store)}</strong>)</p>"
        return f'<div class="memkit">{head}{"".join([*shown, *repairs, *notes, *previews])}</div>'

    @property
    def _store(self) -> str:
        return "format not known to memkit" if self.store == "unknown" else self.store

    def _previewed(self) -> Iterator[Any]:
        return (key for key in self.keys if key.preview)

    def _repairs(self) -> list[str]:
        return [problem.repair for problem in self.problems if problem.repair]

    def _rows(self, table: str) -> Iterator[Sequence[Any]]:
        if table == "messages":
            return map(_message_row, self.messages)
        return (tuple(getattr(each, name) for name in _COLUMNS[table]) for each in getattr(self, table))

    def _table(self, name: str) -> Table:
        total = len(getattr(self, name))
        rows = [[self._cell(*pair) for pair in zip(_COLUMNS[name], row, strict=True)]
                for row in islice(self._rows(name), _MAX_ROWS)]  # fmt: skip
        caption = counted(total, name.removesuffix("s")) if total else f"No {name}"
        return Table(caption, [_TITLES.get(column, column) for column in _COLUMNS[name]], rows, total)

    def _cell(self, column: str, value: Any) -> str:
        if column in ("ttl_s", "idle_s") and value is not None:
            return duration(value * 1000)
        if value is None:
            return "–"
        limit = SHOWN_CHARS if self.revealed else _CELL_CHARS
        return printable(value, limit) if isinstance(value, str) else f"{value:,}"


def early_ends(
    parts: Mapping[str, tuple[float, int | None]], ttl_s: float | None = None, now_ms: float = 0.0
) -> list[str]:
    """Return the keys of a session that expire too long before its last one, by the audit's rule: soonest first.

    Args:
        parts: Each key with its remaining TTL and its idle time, in seconds; None: the server does not report it.
        ttl_s: The configured TTL in seconds; if it is unknown, the longest that was given stands for it.
        now_ms: The server's time, which shows the age of keys with a time in their ids; 0: unknown.
    """
    ends = {
        name: PartEnd(round(left_s * 1000), None if idle_s is None else -idle_s * 1000)
        for name, (left_s, idle_s) in parts.items()
    }
    if len(ends) < 2:
        return []
    longest = max(one.deadline_ms - (one.accessed_ms or 0) for one in ends.values())
    ttl_ms = longest if ttl_s is None else round(ttl_s * 1000)
    # No saver renews old checkpoints: they end earlier, after the whole TTL.
    floor_ms = (1 - JITTER) * ttl_ms
    whole = {
        name
        for name, written_ms in superseded(ends).items()
        if (end := ends[name]).accessed_ms is None
        or end.deadline_ms - end.accessed_ms >= floor_ms
        or (now_ms and (written_ms is None or now_ms + end.deadline_ms - written_ms >= floor_ms))
    }
    last = max(ends.values(), key=lambda one: one.deadline_ms)
    early = [name for name, end in ends.items() if name not in whole and ends_apart(end, last, [ttl_ms])]
    return sorted(early, key=lambda name: ends[name].deadline_ms)


def _message_row(message: Message) -> Sequence[Any]:
    text = message.text if message.text is not None else f"[{message.shape}]"
    tools = ", ".join(f"{tool.name or '?'} ({tool.call_id or 'no id'})" for tool in message.tools)
    at = None if message.at is None else message.at.isoformat(" ", "seconds").removesuffix("+00:00")
    return (message.role, text, message.chars, tools or None, at, message.hash)


def _harmless(value: Any) -> Any:
    """Return a text whole, but characters that a terminal acts on written out, except line breaks."""
    return "\n".join(printable(line, len(line)) for line in value.split("\n")) if isinstance(value, str) else value
