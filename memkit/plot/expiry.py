"""Figures of an ExpiryLog: observed lifetimes against configured TTLs, survival, and how late events are."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.text import Annotation, Text
from matplotlib.ticker import PercentFormatter
from matplotlib.transforms import Bbox

from memkit.observe.log import MIN_TOLERANCE_MS, TOLERANCE, ExpiryLog
from memkit.plot import style
from memkit.render import counted, duration

SECONDS_TO_WEEKS = (0.5, 3 * 604_800)
FEW_TTLS = 12
"""Up to this many TTLs are drawn as one mark each."""
FEW_KEYS = 400
"""Up to this many keys of more TTLs are drawn one by one; of more, those as configured become a density."""
MAX_STEPS = 400
SHORTEST_S = 1e-3
"""A lifetime of zero has no place on a logarithmic axis."""
MANY_KEYS = 200
"""From this many keys on, the label gives the precision of 99 % instead of the worst."""
MAX_OBSTACLES = 2_000
MARK_WEIGHT, FORBIDDEN_WEIGHT = 20, 1_000_000
"""The cost of covering a mark, and another label, relative to covering a point of a line."""
ALIGNED_LEFT = {"left": 0.0, "center": 0.5, "right": 1.0}
LABEL_PLACES = [
    *(
        (sign * x, y, align)
        for x in (12, 30, 60)
        for y in (0, 14, -14, 28, -28)
        for sign, align in ((1, "left"), (-1, "right"))
    ),
    *((x, sign * y, "center") for y in (28, 50, 80, 120, 160) for sign in (-1, 1) for x in range(-120, 121, 20)),
]
"""Places of a label relative to its mark, in points."""
GUIDES = {60: "60 times too short", 1_000: "1,000 times too short"}
"""The lifetimes of a TTL in minutes, or in milliseconds, that was read as seconds."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the keys of one outcome are drawn: each has its own colour and marker."""

    name: str
    colour: str
    marker: str
    filled: bool = True


OUTCOMES = {
    "on time": Outcome("expired on time", style.BLUE, "o"),
    "early": Outcome("expired early", style.VERMILLION, "v"),
    "late": Outcome("expired late", style.PURPLE, "^"),
    "evicted": Outcome("evicted", style.ORANGE, "s"),
    "deleted": Outcome("deleted", style.GREEN, "X"),
    "evicted or deleted": Outcome("evicted or deleted", style.ORANGE, "D", filled=False),
    "not expired": Outcome("not expired", style.SKY, "^", filled=False),
}
ENDED = {"early": "expired", "late": "expired"}


def _points(log: ExpiryLog) -> Any:
    """Return a log's rows as an array of records, in seconds.

    ``ttl`` is the granted TTL if the configured one is unknown. ``lifetime`` is the middle of the interval from ``low``
    to ``high``; for a key that has not expired it is ``low``, and ``high`` is NaN.
    """
    frame = log.to_frame()
    frame["ttl"] = frame["configured_ttl_s"].fillna(frame["granted_ttl_s"])
    # A key without a TTL has no place on the axis.
    frame = frame[np.isfinite(frame["ttl"]) & (frame["ttl"] > 0) & (frame["end"] != "absent")]
    ttl, low, high = (frame[name].to_numpy() for name in ("ttl", "lifetime_min_s", "lifetime_max_s"))
    lifetime = np.where(np.isnan(high), low, (low + high) / 2)
    ends = frame["end"].to_numpy(dtype=str)
    slack = np.maximum(ttl * TOLERANCE, MIN_TOLERANCE_MS / 1000)
    outcome = np.where(high < ttl - slack, "early", np.where(low > ttl + slack, "late", "on time"))
    outcome = np.where(ends == "expired", outcome, ends)
    columns = [ttl, low, high, lifetime, outcome]
    return np.rec.fromarrays(columns, names="ttl,low,high,lifetime,outcome")  # type: ignore[call-overload]


def _by_outcome(points: Any) -> Iterator[tuple[str, Any]]:
    for name in OUTCOMES:
        if (points.outcome == name).any():
            yield name, points[points.outcome == name]


def plot_expiry(log: ExpiryLog, ax: Axes | None = None) -> Axes:
    """Draw the observed lifetime of keys against their configured TTL, both axes from seconds to weeks.

    Keys on the dashed line expired on time; keys under it expired early, and a label names both TTLs. Up to 12 TTLs are
    drawn as one mark each, with the range of lifetimes as a bar. More TTLs are drawn as single intervals, and more than
    400 keys as a density of those that expired on time; each other mark stands for keys that lie close together.

    Args:
        log: What ``observe_expiry`` returned.
        ax: Axes to draw on; None: a new figure.
    """
    ax = style.own_axes(ax, (7.2, 6.4))
    points = _points(log)
    low, high = _range(np.concatenate([points.ttl, points.lifetime]))
    ax.fill_between([low, high], [low, high], [low, low], color=style.SHADE, lw=0, zorder=0)
    ax.plot([low, high], [low, high], color=style.INK, lw=1, ls="--", zorder=1, label="lifetime = TTL")
    for factor, name in GUIDES.items() if (points.outcome == "early").any() else ():
        ax.plot([low, high], [low / factor, high / factor], color=style.GREY, lw=0.8, ls=":", zorder=1)
        look: Any = {"fontsize": 8, "color": style.GREY, "rotation": 45, "rotation_mode": "anchor", "va": "top"}
        ax.annotate(name, (low * factor * 4, low * 4), (4, 0), textcoords="offset points", **look)
    labels = _draw_keys(ax, points, low, high)
    _note_keys_not_drawn(ax, log, points)
    ax.legend(loc="upper left", frameon=False, fontsize=9, labelcolor=style.INK, handletextpad=0.6)
    ax.set(xlim=(low, high), ylim=(low, high), xlabel="configured TTL", ylabel="observed lifetime")
    ax.set_aspect("equal")
    style.time_axis(ax.xaxis)
    style.time_axis(ax.yaxis)
    typical, worst = log.exact_to_ms
    source = f"{log.server}, {log.clock}; lifetimes exact to {duration(typical)} (worst {duration(worst)})"
    alt = "Observed lifetime against configured TTL, both from seconds to weeks on logarithmic axes. "
    style.finish(ax, log.verdict, source, alt=f"{alt}{log.verdict} Observed on {log.server}.")
    _place_labels(ax, labels, points)
    return ax


def _note_keys_not_drawn(ax: Axes, log: ExpiryLog, points: Any) -> None:
    left_out = len(log) - len(points.ttl)
    if left_out:
        text = f"not drawn: {counted(left_out, 'key')} without a known TTL, or absent"
        ax.text(0.99, 0.02, text, transform=ax.transAxes, fontsize=9, color=style.INK, ha="right", zorder=5)


def _draw_keys(ax: Axes, points: Any, low: float, high: float) -> list[Annotation]:
    """Draw the keys; return their labels, which have no place yet."""
    many_ttls = len(np.unique(points.ttl)) > FEW_TTLS
    if many_ttls and len(points.ttl) > FEW_KEYS:
        _draw_many(ax, points, low, high)
        return list(_label_outcomes(ax, points))
    labels = list(_label_outcomes(ax, points)) if many_ttls else []
    for name, some in _by_outcome(points):
        outcome = OUTCOMES[name]
        if many_ttls:
            top = np.where(np.isnan(some.high), some.low, some.high)
            bottom = np.maximum(some.low, SHORTEST_S)
            ax.vlines(some.ttl, bottom, top, color=outcome.colour, lw=1, alpha=0.7, zorder=3)
            _scatter(ax, some.ttl, some.lifetime, outcome, 22)
        for ttl in [] if many_ttls else np.unique(some.ttl):
            group = some[some.ttl == ttl]
            _draw_mark(ax, float(ttl), outcome, group)
            labels.append(_label_mark(ax, float(ttl), name, group))
        _scatter(ax, [], [], outcome, 45, label=outcome.name)
    return labels


def _draw_mark(ax: Axes, ttl: float, outcome: Outcome, some: Any) -> None:
    """Draw all keys of one TTL and outcome: a mark at the median, a thin bar from least to most, a thick one 5-95 %."""
    lifetime, colour = some.lifetime, outcome.colour
    shortest, longest = np.nanmin(some.low), np.nanmax(np.where(np.isnan(some.high), some.low, some.high))
    ax.plot([ttl, ttl], [max(shortest, SHORTEST_S), longest], color=colour, lw=1.2, zorder=3, solid_capstyle="butt")
    ax.plot([ttl, ttl], np.quantile(lifetime, [0.05, 0.95]), color=colour, lw=4, alpha=0.6, zorder=3)
    _scatter(ax, [ttl], [np.median(lifetime)], outcome, 70 + 15 * np.log10(len(lifetime)))


def _scatter(ax: Axes, x: Any, y: Any, outcome: Outcome, size: float, label: str = "") -> None:
    face, edge, width = (outcome.colour, style.PAPER, 0.6) if outcome.filled else (style.PAPER, outcome.colour, 1.6)
    ax.scatter(
        x, y, s=size, marker=outcome.marker, facecolor=face, edgecolor=edge, linewidth=width, zorder=4, label=label
    )


def _label_mark(ax: Axes, ttl: float, name: str, some: Any) -> Annotation:
    """Label a mark beside it; if it is not on the dashed line, an arrow from there leads to it."""
    lifetime, colour = float(np.median(some.lifetime)), OUTCOMES[name].colour
    keys = counted(len(some.ttl), "key")
    if name == "on time":
        off_ms = 1000 * np.maximum(np.abs(some.low - some.ttl), np.abs(some.high - some.ttl))
        most, of_most = (0.99, "99 % ") if len(off_ms) >= MANY_KEYS else (1, "")
        most_off = duration(float(np.quantile(off_ms, most)))
        return _label(ax, f"{duration(ttl * 1000)}: {keys}, {of_most}off by at most {most_off}", (ttl, lifetime))
    arrow = {"arrowstyle": "-|>", "color": colour, "lw": 1.2, "shrinkA": 4, "shrinkB": 8}
    ax.annotate("", (ttl, lifetime), (ttl, ttl), zorder=2, arrowprops=arrow)
    text = f"configured {duration(ttl * 1000)},\n{ENDED.get(name, name)} after {duration(lifetime * 1000)}\n{keys}"
    return _label(ax, text, (ttl, lifetime), color=style.RUST if name == "early" else style.INK, fontweight="bold")


def _label(ax: Axes, text: str, at: tuple[float, float], **look: Any) -> Annotation:
    box = {"facecolor": style.PAPER, "alpha": 0.85, "edgecolor": "none", "pad": 1}
    place: Any = {"textcoords": "offset points", "va": "center", "fontsize": 9, "zorder": 5, "bbox": box}
    label = ax.annotate(text, at, (12, 0), **{"color": style.INK, **place, **look})
    label.set_in_layout(False)
    return label


def _place_labels(ax: Axes, labels: Sequence[Annotation], points: Any) -> None:
    """Move each label to the place near its mark that covers least: marks, lines, other labels, the axes' edge."""
    ax.figure.get_figure(root=True).draw_without_rendering()  # lays the figure out
    rows = np.linspace(0, len(points.ttl) - 1, min(len(points.ttl), MAX_OBSTACLES)).astype(int)
    marks = np.column_stack([points.ttl, np.maximum(points.lifetime, SHORTEST_S)])[rows]
    lines = [np.repeat(np.geomspace(*ax.get_xlim(), 60)[:, None], 2, axis=1)]
    if len(np.unique(points.ttl)) <= FEW_TTLS:  # each has an arrow from the dashed line
        lines += [np.column_stack([np.full(20, ttl), np.geomspace(ttl, end, 20)]) for ttl, end in marks]
    obstacles = ax.transData.transform(np.concatenate([marks, *lines]))
    weights = np.where(np.arange(len(obstacles)) < len(marks), MARK_WEIGHT, 1)
    obstacles, place = np.unique(obstacles.round(1), axis=0, return_inverse=True)  # most of many keys share theirs
    weights = np.bincount(place.ravel(), weights)
    legend, inside = ax.get_legend(), ax.get_window_extent()
    taken = [legend.get_window_extent()] if legend else []
    offsets = np.array([(x, y) for x, y, _ in LABEL_PLACES])
    for label in labels:
        size = Text.get_window_extent(label).size
        left_and_half = np.array([(ALIGNED_LEFT[align], 0.5) for *_, align in LABEL_PLACES]) * size
        low = ax.transData.transform(label.xy) + offsets * ax.figure.dpi / 72 - left_and_half
        high = low + size
        covers = (obstacles > low[:, None] - 3) & (obstacles < high[:, None] + 3)
        overlaps = sum(((low <= other.max) & (other.min <= high)).all(axis=1).astype(int) for other in taken)
        outside = ~((inside.min <= low) & (high <= inside.max)).all(axis=1)
        costs = covers.all(axis=2) @ weights + FORBIDDEN_WEIGHT * (overlaps + outside) + np.hypot(*offsets.T) / 30
        best = int(np.argmin(costs))
        x, y, align = LABEL_PLACES[best]
        label.set(position=(x, y), ha=align)
        taken.append(Bbox([low[best], high[best]]))


def _draw_many(ax: Axes, points: Any, low: float, high: float) -> None:
    """Draw the keys on time as a density, and all others by marks, because a density would hide a few among many."""
    on_time = points[points.outcome == "on time"]
    if len(on_time.ttl):
        drawn = ax.hexbin(
            on_time.ttl,
            np.maximum(on_time.lifetime, SHORTEST_S),
            xscale="log",
            yscale="log",
            gridsize=60,
            bins="log",
            mincnt=1,
            extent=(np.log10(low), np.log10(high)) * 2,
            cmap=LinearSegmentedColormap.from_list("memkit", ["#a5d3f2", style.BLUE, "#00568f"]),
            linewidths=0.2,
            zorder=2,
        )
        bar = ax.figure.colorbar(drawn, ax=ax, shrink=0.6, pad=0.02)
        bar.set_label("keys", color=style.INK)
        bar.ax.tick_params(colors=style.INK)
        label = f"{OUTCOMES['on time'].name}: {counted(len(on_time.ttl), 'key')}"
        ax.scatter([], [], s=70, marker="h", facecolor=style.BLUE, edgecolor=style.PAPER, label=label)
    cell_size = math.log(high / low) / 40
    for name, some in _by_outcome(points):
        if name != "on time":
            outcome = OUTCOMES[name]
            cells = [np.round(np.log(np.maximum(v, SHORTEST_S)) / cell_size) for v in (some.ttl, some.lifetime)]
            _, cell = np.unique(np.stack(cells), axis=1, return_inverse=True)
            for number in np.unique(cell):
                part = some[cell.ravel() == number]
                place = np.median(part.ttl), max(np.median(part.lifetime), SHORTEST_S)
                _scatter(ax, [place[0]], [place[1]], outcome, 45 + 20 * np.log10(len(part.ttl)))
            _scatter(ax, [], [], outcome, 45, label=f"{outcome.name}: {counted(len(some.ttl), 'key')}")


def _label_outcomes(ax: Axes, points: Any) -> Iterator[Annotation]:
    """Label the keys of each outcome but "on time" with their number, TTLs and lifetimes."""
    for name, some in _by_outcome(points):
        if name != "on time":
            middle = np.argsort(some.ttl)[len(some.ttl) // 2]
            x, y = float(some.ttl[middle]), max(float(some.lifetime[middle]), SHORTEST_S)
            keys = f"{counted(len(some.ttl), 'key')} configured {_range_text(some.ttl)}"
            text = f"{keys},\n{ENDED.get(name, name)} after {_range_text(some.lifetime)}"
            colour = style.RUST if name == "early" else style.INK
            arrow = {"arrowstyle": "-|>", "color": OUTCOMES[name].colour, "lw": 1.2, "shrinkB": 6}
            yield _label(ax, text, (x, y), color=colour, fontweight="bold", arrowprops=arrow)


def _range_text(values_s: Any) -> str:
    ends = (duration(1000 * float(values_s.min())), duration(1000 * float(values_s.max())))
    return " to ".join(dict.fromkeys(ends))


def plot_survival(log: ExpiryLog, ax: Axes | None = None) -> Axes:
    """Draw the share of keys that could still be read over the time since they were written, one line per TTL.

    Dotted lines show the configured TTL. A line that ends level has keys that did not expire. Six TTLs or fewer have
    one line each. The band is the time between the last check that found a key and the first that did not.

    Args:
        log: What ``observe_expiry`` returned.
        ax: Axes to draw on; None: a new figure.
    """
    ax = style.own_axes(ax, (7.6, 4.4))
    points = _points(log)
    ttls = [float(ttl) for ttl in np.unique(points.ttl)]
    limits = low, high = _range(np.concatenate([points.ttl, points.lifetime]))
    if len(ttls) > len(style.LINES):
        _survival_line(ax, points, f"TTLs {_range_text(np.array(ttls))}", 0, limits)
    for number, ttl in enumerate(ttls if len(ttls) <= len(style.LINES) else []):
        _survival_line(ax, points[points.ttl == ttl], f"configured {duration(1000 * ttl)}", number, limits)
    _note_keys_not_drawn(ax, log, points)
    ax.set(xscale="log", xlim=(low, high), ylim=(-0.02, 1.05), ylabel="readable keys")
    ax.set_xlabel("time since the write (log)")
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    style.time_axis(ax.xaxis)
    if ttls:
        ax.legend(loc="lower left", **style.LEGEND)
    alt = f"Share of {counted(len(log), 'key')} that can still be read over time, one line per TTL. {log.verdict}"
    return style.finish(ax, log.verdict, f"{log.server}, {log.clock}; dotted: configured TTL", alt=alt)


def _survival_line(ax: Axes, some: Any, label: str, number: int, limits: tuple[float, float]) -> None:
    early = np.isin(some.outcome, ["on time", "not expired"]).mean() < 0.5
    colour = style.VERMILLION if early else (style.BLUE, style.GREEN, style.SKY, style.PURPLE)[number % 4]
    count, exists = len(some.ttl), np.isnan(some.high)
    # The share of the keys that did not expire is one of the steps.
    rows = np.unique(np.append(np.linspace(0, count, min(count, MAX_STEPS) + 1).astype(int), count - int(exists.sum())))
    share = 1 - rows / count

    def reached(values: Any) -> Any:
        """Return when each share was reached; infinity if it was not, because keys did not expire."""
        ordered = np.concatenate([[limits[0]], np.sort(values)])[rows]
        return np.where(np.isfinite(ordered), np.clip(ordered, *limits), np.inf)

    middle, longest = (reached(np.where(exists, np.inf, values)) for values in (some.lifetime, some.high))
    configured, shortest = reached(some.ttl), reached(some.low)
    ended = np.isfinite(middle)
    times, shares = middle[ended], share[ended]
    if not ended.all():
        times, shares = np.append(times, limits[1]), np.append(shares, shares[-1])
    ax.step(times, shares, where="post", color=colour, ls=style.LINES[number], lw=2, label=label)
    ax.step(configured, share, where="post", color=colour, ls=":", lw=1.2)
    ax.fill_betweenx(share[ended], shortest[ended], longest[ended], step="pre", color=colour, alpha=0.2, lw=0)


def plot_lateness(log: ExpiryLog, ax: Axes | None = None) -> Axes:
    """Draw how late ``expired`` events arrive after the deadline, which is when the memory is freed.

    The predicted delay is not a bound: it is the time of one round of active expiry on a machine that is not busy.

    Args:
        log: What ``observe_expiry(leave_to_sweep=True)`` returned; without it the checks make the keys expire.
        ax: Axes to draw on; None: a new figure.
    """
    ax = style.own_axes(ax, (7.6, 4.2))
    late = np.sort(np.maximum(log.to_frame()["event_late_max_s"].dropna(), 1e-4))
    work = log.sweep
    bound_s = work.predicted_s if work else 1.0
    limits = 1e-3, max(10.0, 2 * bound_s, 2 * float(late[-1]) if len(late) else 1)
    if len(late):
        # From the left edge to the right one: the step of a single event is a line, too.
        times = np.concatenate([[limits[0] / 10], late, [limits[1]]])
        share = np.arange(len(late) + 1) / len(log)
        ax.step(times, [*share, share[-1]], where="post", color=style.BLUE, lw=2, label="events received")
    text = log.events_text
    if len(late):
        half, last = (duration(1000 * float(seconds)) for seconds in (np.median(late), late[-1]))
        text += f", half within {half}, the last {last} late"
    if work:
        predicted = f"predicted for the last: {duration(1000 * work.predicted_s)}"
        ax.axvline(work.predicted_s, color=style.VERMILLION, lw=1.5, ls="--", label=predicted)
        text += f"; {predicted}"
    ax.axvspan(1e-4, 2e-3, color=style.PALE, alpha=0.6, lw=0, label="a client may still read the key")
    ax.set(xscale="log", ylim=(0, 1.05), ylabel="keys with an event")
    ax.set_xlabel("time after the deadline (log)")
    ax.set_xlim(limits)
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    style.time_axis(ax.xaxis)
    ax.legend(loc="upper left", frameon=False, fontsize=9, labelcolor=style.INK)
    beside = f", {work.expired_keys:,} expired keys among {work.other_keys:,} others" if work else ""
    conclusion = f"{text[:1].upper()}{text[1:]}."
    alt = f"Share of events received over the time after the deadline. {conclusion}"
    return style.finish(ax, conclusion, f"{log.server}{beside}", alt=alt)


def _range(values: Any) -> tuple[float, float]:
    known = values[np.isfinite(values) & (values > 0)]
    if not len(known):
        return SECONDS_TO_WEEKS
    return min(SECONDS_TO_WEEKS[0], float(known.min()) / 2), max(SECONDS_TO_WEEKS[1], float(known.max()) * 2)
