"""A figure of one session: how long each of its keys still has."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes

from memkit.inspect.report import SHARED, KeyReport, SessionReport, early_ends
from memkit.plot.style import BLUE, GREY, INK, ORANGE, PAPER, VERMILLION, finish, own_axes, time_axis
from memkit.render import counted, duration, printable

MAX_LINES = 24
TTL_STEPS_PER_E = 30
"""TTLs within about 3 % of one another share a line."""


def plot_lifetimes(report: SessionReport, ax: Axes | None = None) -> Axes:
    """Draw the remaining TTL of each key of a session; similar keys share a line with their number.

    A triangle that points down marks a key that expires before the others, an open one a key without TTL.

    Args:
        report: What ``inspect_session`` returned.
        ax: Axes to draw on; None: a new figure.
    """
    own = [key for key in report.keys if not key.part.startswith(SHARED)]
    early = early_ends({key.key: (key.ttl_s, key.idle_s) for key in own if key.ttl_s is not None})
    rows = _lifetime_rows(report, set(early))
    ends = [row.ttl_s for row in rows if row.ttl_s]
    low, high = min([0.5, *(end / 2 for end in ends)]), 3 * max([10.0, *ends])
    ax = own_axes(ax, (8.4, 1.6 + 0.32 * len(rows)))
    look: Any = {"textcoords": "offset points", "va": "center", "fontsize": 9, "color": INK, "annotation_clip": False}
    for place, row in enumerate(rows):
        if row.early:
            colour, marker = VERMILLION, "v"
        elif row.ttl_s:
            colour, marker = BLUE, "o"
        else:
            colour, marker = (GREY if row.label.startswith(SHARED) else ORANGE), ">"
        end = row.ttl_s or high
        ax.hlines(place, low, end, color=colour, lw=2, ls="-" if row.ttl_s else ":")
        face = colour if row.ttl_s else PAPER
        ax.plot(end, place, marker, color=colour, mfc=face, ms=8, mew=1.5, clip_on=False)
        ax.annotate(duration(None if row.ttl_s is None else row.ttl_s * 1000), (end, place), (9, 0), **look)
    ax.set(xlim=(low, high), ylim=(len(rows) - 0.4, -0.6))
    ax.set(yticks=range(len(rows)), yticklabels=[row.label for row in rows])
    for label in ax.get_yticklabels():
        label.set_parse_math(False)  # a key may contain a dollar sign
    ax.set_xlabel("remaining TTL (log)")
    time_axis(ax.xaxis)
    conclusion = _lifetime_conclusion(own, len(early))
    source = f"{report.store} session {printable(report.session, 40)}".replace("$", r"\$")
    alt = f"Remaining TTL of {counted(len(report.keys), 'key')} of one session of {report.store}. {conclusion}"
    return finish(ax, conclusion, source, alt=alt)


@dataclass(frozen=True, slots=True)
class _Lifetime:
    """One line of the figure; ``ttl_s`` is None without a TTL."""

    label: str
    ttl_s: float | None
    early: bool


def _lifetime_rows(report: SessionReport, early: set[str]) -> list[_Lifetime]:
    alike: dict[tuple[str, bool, int | None], list[KeyReport]] = {}
    for key in report.keys:
        step = None if not key.ttl_s else round(math.log(key.ttl_s) * TTL_STEPS_PER_E)
        alike.setdefault((key.part, key.key in early, step), []).append(key)
    rows = [
        _Lifetime(
            f"{part}  {_short(keys[0].key)}" if len(keys) == 1 else f"{part}  × {len(keys):,}",
            None if step is None else min(key.ttl_s or 0 for key in keys),
            is_early,
        )
        for (part, is_early, step), keys in alike.items()
    ]
    rows.sort(key=lambda row: (row.ttl_s or math.inf, row.label))
    return rows[:MAX_LINES]


def _short(name: str) -> str:
    """Return the beginning and the end of a key's name, short enough for an axis."""
    shown = printable(name, 500)
    return shown if len(shown) <= 28 else f"{shown[:15]}…{shown[-12:]}"


def _lifetime_conclusion(own: Sequence[KeyReport], early: int) -> str:
    ttls_ms = [key.ttl_s * 1000 for key in own if key.ttl_s is not None]
    if not ttls_ms:
        return "No key has a TTL: the session never expires."
    if early:
        verb = "expire" if early > 1 else "expires"
        return (
            f"{early} of {counted(len(own), 'key')} {verb} in {duration(min(ttls_ms))}, the last in "
            f"{duration(max(ttls_ms))}: the session will be partly expired."
        )
    together = f"All {len(ttls_ms)} keys with a TTL expire together" if len(ttls_ms) > 1 else "The session expires"
    without = len(own) - len(ttls_ms)
    rest = f" {counted(without, 'key')} {'has' if without == 1 else 'have'} no TTL." if without else ""
    return f"{together}, in {duration(max(ttls_ms))}.{rest}"
