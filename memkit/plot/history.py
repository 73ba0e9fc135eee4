"""A figure of one session's history: the TTLs that it got, its end, and the TTL changes of its prefix."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from matplotlib import dates
from matplotlib.axes import Axes

from memkit.history.changes import TtlChange, prefix_of
from memkit.history.fate import ENDS, Fate
from memkit.history.run import History
from memkit.history.states import KeyEvent, Moment
from memkit.plot.style import BLUE, GREEN, GREY, INK, LEGEND, PALE, RUST, VERMILLION, finish, own_axes, time_axis
from memkit.render import counted, printable, utc_time

NO_TTL_S = 31_536_000.0
"""Where a key without TTL is drawn: at the top, above every TTL that people configure."""
ROOM = 0.06
"""Free space at both ends of the time axis, as a part of it."""
LOOKS: dict[str, tuple[str, str, str]] = {
    "written": (BLUE, "o", "written"),
    "renewed": (GREEN, "^", "TTL set"),
    "overwritten": (VERMILLION, "s", "overwritten"),
    "ttl_removed": (VERMILLION, "D", "TTL removed"),
}


def plot_timeline(history: History, ax: Axes | None = None) -> Axes:
    """Draw what happened to a session: each TTL that it got, its end, gaps in the record.

    The grey line is the TTL that the keys under its prefix got at that time.

    Args:
        history: What ``history`` returned for a session.
        ax: Axes to draw on; None: a new figure.

    Raises:
        ValueError: The history is not of one session.
    """
    if history.fate is None or history.session is None:
        raise ValueError("a timeline is of one session; pass session= to history()")
    ax = own_axes(ax, (8.4, 3.6))
    shown = [event for event in history.events if _at(event.moment) is not None]
    begin, end = _limits(history, shown)
    _draw_prefix(ax, history.changes, shown, begin, end)
    for gap in history.gaps:
        if gap.begins and gap.ends:
            ax.axvspan(gap.begins, gap.ends, color=PALE, alpha=0.6, lw=0, label="not recorded")  # type: ignore[arg-type]
    for name, (colour, marker, label) in LOOKS.items():
        found = [event for event in shown if event.name == name]
        if found:
            times: Any = [_at(event.moment) for event in found]
            ax.plot(times, [_ttl_s(event) for event in found], marker, color=colour, ms=8, ls="", label=label, zorder=3)
    _draw_end(ax, shown, history.fate)
    margin = (end - begin) * ROOM
    ax.set(xlim=(begin - margin, end + margin), ylim=(0.5, NO_TTL_S * 2))
    time_axis(ax.yaxis)
    ax.set(xlabel="time (UTC)", ylabel="TTL (log)")
    locator = dates.AutoDateLocator(tz=UTC, maxticks=6)  # type: ignore[no-untyped-call]
    ax.xaxis.set_major_locator(locator)
    ax.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator, tz=UTC))  # type: ignore[no-untyped-call]
    handles, labels = ax.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    ax.legend(unique.values(), unique.keys(), loc="upper left", bbox_to_anchor=(1, 1), **LEGEND)
    sources = ", ".join(source.kind for source in history.sources)
    session, sentence = printable(history.session, 40), history.fate.sentence
    alt = (
        f"Timeline of {session}: {counted(len(history.events), 'event')}, "
        f"{counted(len(history.changes), 'change')} of the TTL under its prefix. {sentence}."
    )
    return finish(ax, sentence.replace("$", r"\$"), f"session {session} from {sources}", alt=alt)


def _at(moment: Moment) -> datetime | None:
    ms = moment.latest_ms if moment.earliest_ms is None else moment.earliest_ms
    return None if ms is None else utc_time(ms)


def _ttl_s(event: KeyEvent) -> float:
    """Return the TTL that an event gave or left: the remaining one if it gave none."""
    if event.ttl_ms is not None:
        return max(event.ttl_ms / 1_000, 1.0)
    at = _at(event.moment)
    if event.deadline_ms is None or at is None or event.name in ("overwritten", "ttl_removed"):
        return NO_TTL_S
    return max(event.deadline_ms / 1_000 - at.timestamp(), 1.0)


def _limits(history: History, shown: Sequence[KeyEvent]) -> tuple[datetime, datetime]:
    times = [at for event in shown if (at := _at(event.moment))]
    times += [at for change in history.changes if (at := _at(change.at))]
    if not times:
        times = [at for source in history.sources for at in (source.begins, source.ends) if at]
    begin, end = min(times), max(times)
    return (begin, end) if begin < end else (begin, begin + timedelta(minutes=1))


def _draw_prefix(
    ax: Axes, changes: Sequence[TtlChange], shown: Sequence[KeyEvent], begin: datetime, end: datetime
) -> None:
    prefixes = {prefix_of(event.key) for event in shown}
    known = [change for change in changes if None not in (change.from_ttl_ms, change.to_ttl_ms)]
    steps = [change for change in known if change.prefix in prefixes]
    if not steps:
        return
    times: list[Any] = [begin, *(_at(change.at) or begin for change in steps), end]
    ttls = [change.from_ttl_ms for change in steps[:1]] + [change.to_ttl_ms for change in steps]
    heights = [NO_TTL_S if ttl is None else max(ttl / 1_000, 1.0) for ttl in ttls]
    label = f"TTL of {printable(steps[0].prefix)}*".replace("$", r"\$")
    ax.step(times, [*heights, heights[-1]], where="post", color=GREY, lw=2, ls="--", label=label)


def _draw_end(ax: Axes, shown: Sequence[KeyEvent], fate: Fate) -> None:
    last = next((event for event in reversed(shown) if event.name in ENDS), None)
    at: Any = fate.at or (last and _at(last.moment))
    if last is None or at is None:
        return
    label = fate.cause if fate.either is None else " or ".join(fate.either)
    ax.axvline(at, color=RUST, lw=2, label=label)
    if fate.not_before is not None:
        ax.axvspan(fate.not_before, at, color=RUST, alpha=0.15, lw=0)  # type: ignore[arg-type]
    ax.plot(at, 1, "X", color=RUST, ms=9, zorder=4, mec=INK, mew=0.5)
