"""Text for people: durations, times, counts, tables, escaping, colours, progress.

Names and values come from databases that may hold any bytes: all that is shown passes ``printable`` or ``escaped``.
"""

import html
import re
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from math import ceil, inf

FEWEST_COLUMNS, MOST_COLUMNS = 40, 80
SHOWN_CHARS = 2_000
# Controls, format characters (bidi overrides, invisible tags), surrogates, private use and unassigned. Joiners stay: an
# emoji family is held together by them.
_UNSAFE_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_JOINERS = frozenset("\u200c\u200d")
_PLAIN = re.compile(r"[ -~\u00a1-\u00ac\u00ae-\u0377\u0400-\u052f\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fa5]*")
_EARLIEST_MS, _LATEST_MS = -62_135_596_800_000, 253_402_300_799_000
"""The years 1 to 9999 of ``datetime``: a Unix time that is taken for a TTL gives later deadlines."""
_UNITS_S = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))
_CODES = {
    "critical": "1;31",
    "failed": "31",
    "warning": "1;33",
    "skipped": "33",
    "healthy": "1;32",
    "undetermined": "1;33",
    "no_data": "1;33",
    "passed": "32",
}


def printable(text: str, limit: int = SHOWN_CHARS) -> str:
    r"""Return the text with every character that a terminal might act on written out (``\x1b``, ``\u202e``).

    At most ``limit`` characters of it, and the number of all if there are more.
    """
    shown = text[:limit]
    if not _PLAIN.fullmatch(shown):
        shown = "".join(map(_safe, shown))
    return shown if len(text) <= limit else f"{shown}… ({len(text):,} characters)"


def _safe(char: str) -> str:
    if char in _JOINERS or unicodedata.category(char) not in _UNSAFE_CATEGORIES:
        return char
    if char == "\n":
        return "\\n"
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def escaped(text: str, limit: int = SHOWN_CHARS) -> str:
    """Return the text for HTML, as content or attribute; unsafe characters are written out there too."""
    return html.escape(printable(text, limit), quote=True)


def width(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    zero = ("Mn", "Me", "Cf")
    shown = (char for char in text if not unicodedata.combining(char) and unicodedata.category(char) not in zero)
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in shown)


def duration(ms: float | None) -> str:
    """Return a duration as people write it: ``7d``, ``36h``, ``6d 13h``, ``4m 58s``, ``1.5s``, ``250ms``; None: no TTL.

    One unit if it is exact to the second and below 100 of that unit, otherwise two units, rounded to the smaller one.
    """
    if ms is None:
        return "no TTL"
    sign, ms = ("-", -ms) if ms < 0 else ("", ms)
    if ms < 999.5:
        return f"{sign}{ms:.3g}ms"
    seconds = round(ms / 1000)
    if ms < 99_950 and "." in (three_digits := f"{ms / 1000:.3g}"):
        return f"{sign}{three_digits}s"
    for unit, size in _UNITS_S:
        if seconds % size == 0 and (seconds < 100 * size or unit == "d"):
            return f"{sign}{seconds // size}{unit}"
    place = next(place for place, (_, size) in enumerate(_UNITS_S) if seconds >= size)
    (unit, size), (smaller_unit, smaller) = _UNITS_S[place : place + 2]
    whole, rest = divmod(round(seconds / smaller) * smaller, size)
    return f"{sign}{whole}{unit} {rest // smaller}{smaller_unit}" if rest else f"{sign}{whole}{unit}"


def utc_time(ms: float) -> datetime:
    """Return a Unix time in milliseconds as a datetime, within the years 1 to 9999."""
    return datetime.fromtimestamp(max(_EARLIEST_MS, min(ms, _LATEST_MS)) / 1_000, UTC)


def utc_text(at: datetime, *, round_up: bool = False) -> str:
    """Return a time as ``2026-11-22T02:17:03Z``; ``round_up`` to the next second keeps an upper bound one."""
    whole = datetime.fromtimestamp(ceil(at.timestamp()) if round_up else int(at.timestamp()), UTC)
    return whole.isoformat().replace("+00:00", "Z")


def ago(at: datetime, now: datetime) -> str:
    """Return how long before now a time was: ``42 min ago``, ``3 h ago``, ``now``, or ``in 5 d`` if it is later."""
    seconds = (now - at).total_seconds()
    unit, size = next((one for one in (("d", 172_800), ("h", 7_200), ("min", 120)) if abs(seconds) >= one[1]), ("s", 1))
    count = round(abs(seconds) / (size / 2 if unit != "s" else 1))
    if not count or -2 < seconds < 0:  # bounds are rounded up to a second, and a file's time is rounded down
        return "now"
    return f"{count} {unit} ago" if seconds >= 0 else f"in {count} {unit}"


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun, and an s unless another plural is given: ``1 key``, ``1,240 keys``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


@dataclass(frozen=True, slots=True)
class Table:
    """A table of texts, for a terminal or a notebook: one title a column; the first cell of a row names it.

    ``total`` is how many rows there are if only the first are in ``rows``.
    """

    caption: str
    titles: Sequence[str]
    rows: Sequence[Sequence[str]]
    total: int | None = None

    def __getitem__(self, name: str) -> Sequence[str]:
        """Return the other cells of the row with this name."""
        return next(row[1:] for row in self.rows if row[0] == name)

    def to_text(self) -> str:
        """Return the table as aligned text, without the caption; one cell a line if the terminal is too narrow."""
        lines = [self.titles, *([printable(cell) for cell in row] for row in self.rows)]
        widths = [max(map(width, column)) for column in zip(*lines, strict=True)]
        padded = ([cell + " " * (w - width(cell)) for cell, w in zip(line, widths, strict=True)] for line in lines)
        text = ["  ".join(line).rstrip() for line in padded]
        if max(map(width, text)) > terminal_columns():
            names = max(map(width, self.titles)) + 2
            named = ([name.ljust(names) + cell for name, cell in zip(self.titles, line, strict=True)] for line in lines)
            rows = ["\n".join(wrapped(cell, indent=" " * names) for cell in line) for line in list(named)[1:]]
            text = ["\n\n".join(rows)]
        return "\n".join([*text, *([f"… and {self._left_out:,} more"] if self._left_out else [])])

    def to_html(self) -> str:
        """Return the table as HTML, escaped."""
        left = ' style="text-align:left"'  # JupyterLab aligns cells to the right
        head = "".join(f'<th scope="col"{left}>{escaped(title)}</th>' for title in self.titles)
        body = "".join(f"<tr>{''.join(f'<td{left}>{escaped(cell)}</td>' for cell in row)}</tr>" for row in self.rows)
        shown = f", the first {len(self.rows):,} shown" if self._left_out else ""
        caption = f"<caption{left}>{escaped(self.caption + shown)}</caption>"
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    @property
    def _left_out(self) -> int:
        return 0 if self.total is None else self.total - len(self.rows)

    __repr__ = to_text
    _repr_html_ = to_html


def terminal_columns() -> float:
    """Return the width of the terminal; infinite if stdout is none."""
    return shutil.get_terminal_size().columns if sys.stdout and sys.stdout.isatty() else inf


def report_columns() -> int:
    """Return the width of reports: that of the terminal within 40 and 80 columns; 80 if stdout is no terminal."""
    return int(max(FEWEST_COLUMNS, min(MOST_COLUMNS, terminal_columns())))


def wrapped(text: str, *, indent: str = "", columns: int | None = None) -> str:
    """Return a paragraph broken at words; a longer word stays whole, and so does ``--option 'value'``, to be pasted."""
    text = re.sub("(--[a-z]+) (?=')", "\\1\0", text)
    columns = columns or report_columns()
    filled = textwrap.fill(text, columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return filled.replace("\0", " ")


def colored(text: str, style: str, *, color: bool) -> str:
    """Return a text in a terminal's colour for a severity or an outcome; bold for any other style."""
    return f"\x1b[{_CODES.get(style, '1')}m{text}\x1b[0m" if color else text


@contextmanager
def progress(description: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Show the progress of work that takes over a second, on stderr, if that is a terminal.

    Yields:
        A function to call with how many are done, of how many.
    """
    if not (sys.stderr and sys.stderr.isatty()):
        yield lambda *_: None
        return
    from tqdm import tqdm

    with tqdm(desc=description, unit=f" {unit}", leave=False, delay=1, dynamic_ncols=True, file=sys.stderr) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show
