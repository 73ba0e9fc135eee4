"""What ``inspect_session`` found, and its renderings: JSON, plain text for a terminal, HTML for a notebook, a frame.

Redacted unless it was made with ``reveal``: then, and only then, it holds the texts at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from itertools import repeat
from secrets import token_bytes
from typing import TYPE_CHECKING, Any, NamedTuple, overload

from memkit.formats.model import Problem, Run, Tool, Turn
from memkit.policy import PartEnd, ends_apart
from memkit.render import SHOWN_CHARS, escaped, printable, width

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
SHARED = "shared"
"""How the parts begin that hold other sessions' entries too, and may live for ever."""
_ROWS = 200
_CELL_CHARS = 300


class Message(NamedTuple):
    """One message. ``text`` is None where it is redacted; ``tools`` hold hashes then, instead of names and ids.

    ``print64`` is Python's own 64-bit hash of the text; it is shown only through the report's secret, as ``hash``.
    """

    role: str
    text: str | None
    chars: int
    lines: int
    print64: int
    tools: tuple[Tool, ...]
    at_s: float | None
    veil: Veil

    @property
    def hash(self) -> str:
        """A short keyed hash: equal texts have equal hashes within one report, and in no other."""
        return self.veil.tag(self.print64)

    @property
    def at(self) -> datetime | None:
        """When it was said, as the payload has it."""
        return None if self.at_s is None else datetime.fromtimestamp(self.at_s, UTC)

    @property
    def shape(self) -> str:
        """What can be said of a text without showing any of it."""
        lines = "line" if self.lines == 1 else "lines"
        return f"{self.chars:,} chars, {self.lines:,} {lines}" if self.chars else "empty"

    def to_dict(self) -> dict[str, Any]:
        """Return the message as ``inspect --json`` shows it."""
        tools = [tool._asdict() for tool in self.tools]
        shown = {
            "role": self.role,
            "text": self.text,
            "chars": self.chars,
            "tool": tools[0] if tools else None,
            "at": None if self.at is None else self.at.isoformat().replace("+00:00", "Z"),
            "hash": self.hash,
            "shape": self.shape,
        }
        return shown | ({"more_tools": tools[1:]} if tools[1:] else {})


class Veil:
    """Takes messages' texts away and leaves hashes under a secret of its own, made for one report and never shown.

    Keeps messages as columns: the report has 10,000 of them in the time in which one object each could be made.
    """

    __slots__ = ("_at_s", "_chars", "_keyed", "_lines", "_prints", "_reveal", "_roles", "_texts", "_tools")

    def __init__(self, *, reveal: bool) -> None:
        self._reveal = reveal
        self._keyed = blake2b(key=token_bytes(32), digest_size=5)
        self._roles: list[str] = []
        self._texts: list[str] = []
        self._chars: list[int] = []
        self._lines: list[int] = []
        self._prints: list[int] = []
        self._tools: list[tuple[Any, ...]] = []
        self._at_s: list[float | None] = []

    def __len__(self) -> int:
        return len(self._roles)

    def add(self, item: Turn | Run) -> None:
        """Take in what was said, as it may be shown."""
        if isinstance(item, Run):
            roles, texts, _, at_s, tools, _ = item
            self._said(roles, texts, tools or repeat((), len(roles)), at_s or repeat(None, len(roles)))
        else:
            self._said((item.role,), (item.text,), (item.tools,), (item.at_s,))

    def _said(
        self,
        roles: Sequence[str],
        texts: Sequence[str],
        tools: Iterable[tuple[Tool, ...]],
        at_s: Iterable[float | None],
    ) -> None:
        self._roles += roles
        if self._reveal:
            self._texts += texts
        self._chars += map(len, texts)
        # Most have one line, and ``in`` sees that ten times as fast as ``count``.
        self._lines += [text.count("\n") + 1 if "\n" in text else 1 for text in texts]
        self._prints += map(hash, texts)
        self._tools += tools if self._reveal else _prints_of(tools)
        self._at_s += at_s

    def messages(self) -> Iterator[Message]:
        """Yield the messages that were taken in."""
        # An empty text hides nothing.
        texts = self._texts if self._reveal else [None if chars else "" for chars in self._chars]
        tools = (
            self._tools if self._reveal else [tuple(map(self._veiled, used)) if used else () for used in self._tools]
        )
        columns = (self._roles, texts, self._chars, self._lines, self._prints, tools, self._at_s)
        return map(Message, *columns, repeat(self))

    def tag(self, print64: int) -> str:
        """Return the hash to show for a 64-bit hash, which alone could be guessed where PYTHONHASHSEED is fixed."""
        keyed = self._keyed.copy()
        keyed.update(print64.to_bytes(8, "big", signed=True))
        return keyed.hexdigest()

    def _veiled(self, prints: tuple[int | None, int | None]) -> Tool:
        name, call_id = prints
        return Tool(self._name(name), self._name(call_id))

    def _name(self, print64: int | None) -> str | None:
        return None if print64 is None else f"#{self.tag(print64)}"


def _prints_of(tools: Iterable[tuple[Tool, ...]]) -> list[tuple[tuple[int | None, int | None], ...]]:
    """Return Python's own hashes in place of names and ids; the report shows them through its secret."""
    return [
        tuple([(None if name is None else hash(name), None if uid is None else hash(uid)) for name, uid in used])
        if used
        else ()
        for used in tools
    ]


class Messages(Sequence[Message]):
    """A report's messages, oldest first; made of columns when the first is looked at."""

    __slots__ = ("_made", "_veil")

    def __init__(self, veil: Veil) -> None:
        self._veil = veil
        self._made: list[Message] | None = None

    def __len__(self) -> int:
        return len(self._veil)

    @overload
    def __getitem__(self, index: int) -> Message: ...
    @overload
    def __getitem__(self, index: slice) -> list[Message]: ...
    def __getitem__(self, index: int | slice) -> Message | list[Message]:
        return self._all()[index]

    def __iter__(self) -> Iterator[Message]:
        return iter(self._all())

    def __repr__(self) -> str:
        return repr(self._all())

    def _all(self) -> list[Message]:
        if self._made is None:
            self._made = list(self._veil.messages())
        return self._made


class KeyReport(NamedTuple):
    """One key behind the session. ``ttl_s`` None: no TTL. ``payload`` is the guessed encoding, for unknown stores."""

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
        shown: dict[str, Any] = {name: getattr(self, name) for name in self._fields[:7]}
        optional = {"payload": self.payload, "preview": self.preview}
        return shown | {name: value for name, value in optional.items() if value is not None}


@dataclass(frozen=True, slots=True)
class SessionReport:
    """One session as it was found: its dialogue, the keys behind it, and what is wrong."""

    store: str
    session: str
    messages: Sequence[Message]
    keys: tuple[KeyReport, ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    revealed: bool

    def __repr__(self) -> str:
        counts = ", ".join(_counted(len(getattr(self, table)), table) for table in ("messages", "keys", "problems"))
        return f"<SessionReport {self.store} {printable(self.session, 80)}: {counts}>"

    def to_dict(self) -> dict[str, Any]:
        """Return the object that ``inspect --json`` prints."""
        problems = [
            {"cause": problem.cause, "key": problem.key, "says": problem.says}
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
        """Return one table (``messages``, ``keys`` or ``problems``) as a data frame; no terminal acts on its texts."""
        import pandas as pd

        titles, rows = self._tables()[table]
        return pd.DataFrame([list(map(_harmless, row)) for row in rows], columns=[title for title, _ in titles])

    def to_text(self) -> str:
        """Return the report as plain text that no terminal acts on; at most 200 rows a table, JSON has all."""
        parts = [f"{self._store} session {printable(self.session, 200)}"]
        for name, (titles, rows) in self._tables().items():
            shown = [[_cell(value, self.revealed) for value in row] for row in _limited(rows)]
            parts.append(_text_table(name, [title for title, _ in titles], shown, self._count(name)))
        parts += [f"repair, for you to judge: {printable(repair)}" for repair in self._repairs()]
        parts += [f"note: {printable(note)}" for note in self.notes]
        parts += [_indented(key.preview) for key in self.keys if key.preview]
        return "\n\n".join(part for part in parts if part) + "\n"

    def _repr_html_(self) -> str:
        tables = [_html_table(name, titles, rows, self._count(name)) for name, (titles, rows) in self._tables().items()]
        repairs = [f"<p>Repair, for you to judge: <code>{escaped(repair)}</code></p>" for repair in self._repairs()]
        notes = [f"<p>{escaped(note)}</p>" for note in self.notes]
        previews = [f"<pre>{escaped_lines(key.preview)}</pre>" for key in self.keys if key.preview]
        head = f"<p><strong>{escaped(self._store)}</strong> session <code>{escaped(self.session, 200)}</code></p>"
        return f'<div class="memkit">{head}{"".join([*tables, *repairs, *notes, *previews])}</div>'

    @property
    def _store(self) -> str:
        return "In a format that memkit does not know:" if self.store == "unknown" else self.store

    def _count(self, table: str) -> int:
        return len(getattr(self, table))

    def _repairs(self) -> list[str]:
        return [problem.repair for problem in self.problems if problem.repair]

    def _tables(self) -> dict[str, tuple[_Titles, Iterator[Sequence[Any]]]]:
        return {
            "messages": (_MESSAGE_TITLES, map(_message_row, self.messages)),
            "keys": (_KEY_TITLES, map(_key_row, self.keys)),
            "problems": (_PROBLEM_TITLES, ((found.cause, found.key, found.says) for found in self.problems)),
        }


def early_ends(parts: Mapping[str, tuple[float, int | None]], ttl_s: float | None = None) -> list[str]:
    """Return the keys of a session that expire too long before its last one, by the audit's rule: soonest first.

    Args:
        parts: Each key with its remaining TTL and its idle time, in seconds; None: the server does not report it.
        ttl_s: The configured TTL in seconds; if it is unknown, the longest that was given stands for it.
    """
    ends = {
        name: PartEnd(round(left_s * 1000), None if idle_s is None else -idle_s * 1000)
        for name, (left_s, idle_s) in parts.items()
    }
    if len(ends) < 2:
        return []
    last = max(ends.values(), key=lambda one: one.deadline_ms)
    given = max(one.deadline_ms - (one.accessed_ms or 0) for one in ends.values())
    ttls_ms = [given if ttl_s is None else round(ttl_s * 1000)]
    early = [name for name, end in ends.items() if ends_apart(end, last, ttls_ms)]
    return sorted(early, key=lambda name: ends[name].deadline_ms)


def span(seconds: float) -> str:
    """Return a length of time as people say it, to three digits."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


_Titles = Sequence[tuple[str, str]]
_MESSAGE_TITLES: _Titles = (
    ("role", ""),
    ("text", ""),
    ("chars", "characters"),
    ("tool", ""),
    ("at", "UTC"),
    ("hash", ""),
)
_KEY_TITLES: _Titles = (
    ("key", ""), ("type", ""), ("part", ""), ("ttl_s", "s"), ("idle_s", "s"), ("bytes", "B"), ("encoding", ""),
)  # fmt: skip
_PROBLEM_TITLES: _Titles = (("cause", ""), ("key", ""), ("says", ""))


def _message_row(message: Message) -> Sequence[Any]:
    text = message.text if message.text is not None else f"[{message.shape}]"
    tools = ", ".join(f"{tool.name or '?'} ({tool.call_id or 'no id'})" for tool in message.tools)
    at = None if message.at is None else message.at.isoformat(" ", "seconds").removesuffix("+00:00")
    return (message.role, text, message.chars, tools or None, at, message.hash)


def _key_row(key: KeyReport) -> Sequence[Any]:
    encoding = key.payload or key.encoding
    return (key.key, key.type, key.part, key.ttl_s, key.idle_s, key.bytes, encoding)


def _cell(value: Any, revealed: bool) -> str:
    if value is None:
        return "–"
    limit = SHOWN_CHARS if revealed else _CELL_CHARS
    return printable(value, limit) if isinstance(value, str) else f"{value:,}"


def _harmless(value: Any) -> Any:
    """Return a text whole, but what a terminal might act on written out, save line breaks; other values as they are."""
    if not isinstance(value, str):
        return value
    return "\n".join(printable(line, len(line)) for line in value.split("\n"))


def _limited(rows: Iterable[Sequence[Any]]) -> list[Sequence[Any]]:
    return [row for row, _ in zip(rows, range(_ROWS), strict=False)]


def _text_table(name: str, titles: Sequence[str], rows: Sequence[Sequence[str]], count: int) -> str:
    if not rows:
        return f"no {name}"
    widths = [max(width(cell) for cell in column) for column in zip(titles, *rows, strict=True)]
    lines = [_padded(titles, widths), *(_padded(row, widths) for row in rows)]
    more = [f"… and {count - len(rows):,} more; --json has all"] if count > len(rows) else []
    return "\n".join([_counted(count, name), *lines, *more])


def _counted(count: int, plural: str) -> str:
    return f"{count:,} {plural.removesuffix('s') if count == 1 else plural}"


def _padded(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (cell + " " * (size - width(cell)) for cell, size in zip(cells, widths, strict=True))
    return "  ".join(padded).rstrip()


def _html_table(name: str, titles: _Titles, rows: Iterable[Sequence[Any]], count: int) -> str:
    shown = _limited(rows)
    if not shown:
        return f"<p>No {name}.</p>"
    head = "".join(f'<th scope="col">{title}{f" ({unit})" if unit else ""}</th>' for title, unit in titles)
    body = "".join(f"<tr>{''.join(map(_html_cell, row))}</tr>" for row in shown)
    more = f", the first {len(shown):,} shown" if count > len(shown) else ""
    caption = f"<caption>{name.capitalize()}: {count:,}{more}</caption>"
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _html_cell(value: Any) -> str:
    shown = "–" if value is None else escaped(value) if isinstance(value, str) else f"{value:,}"
    return f'<td style="text-align:left">{shown}</td>'


def _indented(preview: str) -> str:
    return "\n".join(f"    {printable(line)}" for line in preview.splitlines())


def escaped_lines(text: str) -> str:
    """Return a text of several lines for HTML, each made safe."""
    return "\n".join(escaped(line) for line in text.splitlines())
