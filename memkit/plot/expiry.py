"""Figures: every function takes ``ax=None`` and returns Axes; ``show(ax)`` puts it on a notebook's page with alt text.

Colours are Okabe and Ito's, told apart by markers and line styles too; faces are white, so that a figure reads the same
in JupyterLab's light and dark themes.
"""

from __future__ import annotations

import io
import math
import textwrap
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

from memkit.inspect.report import SHARED, KeyReport, SessionReport, early_ends
from memkit.observe.log import ENDS, NONE, ExpiryLog, about
from memkit.render import counted, duration, printable

INK, GREY, PALE, RUST = "#1a1a1a", "#6e6e6e", "#d9d9d9", "#a84600"
BLUE, VERMILLION, GREEN, ORANGE, SKY, PURPLE = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7"
LINES: Sequence[Any] = ("-", "--", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (2, 1)))
STYLE: Any = {
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "svg.hashsalt": "memkit",
    "svg.fonttype": "path",
}
TICKS_S = {
    0.001: "1 ms",
    0.01: "10 ms",
    0.1: "100 ms",
    1: "1 s",
    10: "10 s",
    60: "1 min",
    600: "10 min",
    3_600: "1 h",
    21_600: "6 h",
    86_400: "1 d",
    604_800: "1 wk",
    2_592_000: "30 d",
    31_536_000: "1 y",
}
SECONDS_TO_WEEKS = (0.5, 3 * 604_800)
FEW_TTLS = 12
FEW_KEYS = 400
MOST_LIFETIMES = 24
GUIDES = {60: "60 times too short", 1_000: "1,000 times too short"}
"""Where a TTL lands that was written in minutes or milliseconds and read in seconds."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How one outcome is drawn; never by colour alone."""

    name: str
    colour: str
    marker: str
    filled: bool = True


KINDS = {
    "meant": Kind("expired as meant", BLUE, "o"),
    "short": Kind("died early", VERMILLION, "v"),
    "long": Kind("outlived its TTL", PURPLE, "^"),
    "evicted": Kind("evicted", ORANGE, "s"),
    "deleted": Kind("deleted", GREEN, "X"),
    "evicted or deleted": Kind("evicted or deleted", ORANGE, "D", filled=False),
    "alive": Kind("still alive", SKY, "^", filled=False),
}


@dataclass(frozen=True, slots=True)
class _Points:
    """A log's rows in seconds: TTL meant (granted where that is unknown), life from and to, outcome."""

    ttl: Any
    low: Any
    high: Any
    kind: Any

    @classmethod
    def of(cls, log: ExpiryLog) -> _Points:
        begun, by, seen, gone, deadline = (
            np.array(column, dtype=float) / 1e6
            for column in (log.begun_us, log.begun_by_us, log.seen_us, log.gone_us, log.deadline_us)
        )
        meant = np.array(log.ttl_ms, dtype=float)
        ttl = np.where(
            meant == NONE, np.where(np.array(log.deadline_us) == NONE, np.nan, deadline - begun), meant / 1e3
        )
        lives = np.array(log.gone_us) == NONE
        low = np.maximum(seen - by, 0)
        high = np.where(lives, np.nan, gone - begun)
        ends = np.array(ENDS)[np.frombuffer(bytes(log.ends), dtype=np.uint8)]
        slack = np.maximum(ttl * 0.01, 0.002)
        kind = np.where(high < ttl - slack, "short", np.where(low > ttl + slack, "long", "meant"))
        kind = np.where(ends == "expired", kind, ends)
        rows = (ttl > 0) & (ends != "absent")  # without a TTL to compare with, there is no place on the axis
        return cls(ttl[rows], low[rows], high[rows], kind[rows])

    @property
    def life(self) -> Any:
        """The middle of the interval; the least for a key that still lives."""
        return np.where(np.isnan(self.high), self.low, (self.low + self.high) / 2)

    def where(self, rows: Any) -> _Points:
        return _Points(self.ttl[rows], self.low[rows], self.high[rows], self.kind[rows])

    def by_ttl_and_kind(self) -> Iterator[tuple[float, str, _Points]]:
        for ttl in np.unique(self.ttl):
            for kind in KINDS:
                rows = (self.ttl == ttl) & (self.kind == kind)
                if rows.any():
                    yield float(ttl), kind, self.where(rows)


def plot_expiry(log: ExpiryLog, ax: Axes | None = None) -> Axes:
    """Draw how long keys lived against how long they were meant to; both axes go from seconds to weeks.

    On the line: as meant. Under it: memory that was lost early, with both TTLs named. Up to 12 TTLs are drawn as one
    mark each, with the range of lives as a bar; more as single intervals, and more than 400 keys as a density of those
    as meant, with all others marked on it and told: a mark stands for the keys that lie close together.
    """
    ax = own_axes(ax, (7.2, 6.4))
    points = _Points.of(log)
    low, high = _range(np.concatenate([points.ttl, points.life]))
    ax.fill_between([low, high], [low, high], [low, low], color="#f6f1ee", lw=0, zorder=0)
    ax.plot([low, high], [low, high], color=INK, lw=1, ls="--", zorder=1, label="exactly as meant")
    if (points.kind == "short").any():
        _guides(ax, low, high)
    _draw_keys(ax, points, low, high)
    _say_what_is_not_drawn(ax, log, points)
    ax.legend(loc="upper left", frameon=False, fontsize=9, labelcolor=INK, handletextpad=0.6)
    ax.set(xlim=(low, high), ylim=(low, high), xlabel="TTL that was meant", ylabel="life that was observed")
    ax.set_aspect("equal")
    time_axis(ax.xaxis)
    time_axis(ax.yaxis)
    typical, worst = log.exact_to_ms
    finish(ax, log.verdict, f"{log.server}, {log.clock}; life exact to {about(typical)} (worst {about(worst)})")
    ax.set_label(
        f"Observed life against the TTL that was meant, both from seconds to weeks on logarithmic axes. {log.verdict} "
        f"Seen on {log.server}."
    )
    return ax


def _say_what_is_not_drawn(ax: Axes, log: ExpiryLog, points: _Points) -> None:
    left_out = len(log) - len(points.ttl)
    if left_out:
        said = f"not drawn: {left_out:,} {'key' if left_out == 1 else 'keys'} without a known TTL, or not there"
        ax.text(0.99, 0.02, said, transform=ax.transAxes, fontsize=9, color=INK, ha="right", zorder=5)


def _draw_keys(ax: Axes, points: _Points, low: float, high: float) -> None:
    many_ttls = len(np.unique(points.ttl)) > FEW_TTLS
    if many_ttls and len(points.ttl) > FEW_KEYS:
        _many(ax, points, low, high)
        return
    if many_ttls:
        _intervals(ax, points)
        _tell(ax, points, low, high)
    else:
        for ttl, name, some in points.by_ttl_and_kind():
            _mark(ax, ttl, KINDS[name], some)
            _label(ax, ttl, name, some, (low, high))
    for name, kind in KINDS.items():
        if (points.kind == name).any():
            _scatter(ax, [], [], kind, 45, label=kind.name)


def _mark(ax: Axes, ttl: float, kind: Kind, some: _Points) -> None:
    """Draw all keys of one TTL and outcome: a mark at the median, a thin bar from least to most, a thick one 5-95 %."""
    life = some.life
    least, most = np.nanmin(some.low), np.nanmax(np.where(np.isnan(some.high), some.low, some.high))
    ax.plot([ttl, ttl], [max(least, 1e-3), most], color=kind.colour, lw=1.2, zorder=3, solid_capstyle="butt")
    ax.plot([ttl, ttl], np.quantile(life, [0.05, 0.95]), color=kind.colour, lw=4, alpha=0.6, zorder=3)
    _scatter(ax, [ttl], [np.median(life)], kind, 70 + 15 * np.log10(len(life)))


def _scatter(ax: Axes, x: Any, y: Any, kind: Kind, size: float, label: str = "") -> None:
    face, edge, width = (kind.colour, "white", 0.6) if kind.filled else ("white", kind.colour, 1.6)
    ax.scatter(x, y, s=size, marker=kind.marker, facecolor=face, edgecolor=edge, linewidth=width, zorder=4, label=label)


def _label(ax: Axes, ttl: float, name: str, some: _Points, limits: tuple[float, float]) -> None:
    """Write what a mark stands for beside it; an arrow from the line leads to what is not as meant."""
    life, colour = float(np.median(some.life)), KINDS[name].colour
    left = ttl > 3 * np.sqrt(limits[0] * limits[1])
    keys = _keys(some)
    style: Any = {
        "textcoords": "offset points",
        "ha": "right" if left else "left",
        "va": "center",
        "fontsize": 9,
        "zorder": 5,
        "bbox": {"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 1},
    }
    if name == "meant":
        text = f"{about(ttl * 1000)}: {keys}, {_within(some)}"
        ax.annotate(text, (ttl, life), (-12, 5) if left else (12, -5), color=INK, **style)
        return
    said = f"meant {about(ttl * 1000)}, {_said(name)} {about(life * 1000)}"
    text = f"{said if len(said) < 28 else said.replace(', ', chr(10))}\n{keys}"
    style["va"] = "bottom" if ttl < life < limits[1] / 10 else "center"
    ink = RUST if name == "short" else INK
    ax.annotate(text, (ttl, life), (-14, 0) if left else (14, 0), color=ink, fontweight="bold", **style)
    arrow = {"arrowstyle": "-|>", "color": colour, "lw": 1.2, "shrinkA": 4, "shrinkB": 8}
    ax.annotate("", (ttl, life), (ttl, ttl), zorder=2, arrowprops=arrow)


def _said(kind: str) -> str:
    return {"short": "lived", "long": "lived", "alive": "alive after"}.get(kind, f"{kind} after")


def _intervals(ax: Axes, points: _Points) -> None:
    for name, kind in KINDS.items():
        some = points.where(points.kind == name)
        if len(some.ttl):
            top = np.where(np.isnan(some.high), some.low, some.high)
            ax.vlines(some.ttl, np.maximum(some.low, 1e-3), top, color=kind.colour, lw=1, alpha=0.7, zorder=3)
            _scatter(ax, some.ttl, some.life, kind, 22)


def _many(ax: Axes, points: _Points, low: float, high: float) -> None:
    """Draw what is as meant as a density, which would hide a few among many, and what is not by its own marks."""
    meant = points.where(points.kind == "meant")
    if len(meant.ttl):
        _density(ax, meant, low, high)
        label = f"{KINDS['meant'].name}: {_keys(meant)}"
        ax.scatter([], [], s=70, marker="h", facecolor=BLUE, edgecolor="white", label=label)
    for name, kind in KINDS.items():
        some = points.where(points.kind == name)
        if name != "meant" and len(some.ttl):
            for part in _close_together(some, (high / low) ** (1 / 40)):
                place = np.median(part.ttl), np.median(part.life)
                _scatter(ax, [place[0]], [max(place[1], 1e-3)], kind, 45 + 20 * np.log10(len(part.ttl)))
            _scatter(ax, [], [], kind, 45, label=f"{kind.name}: {_keys(some)}")
    _tell(ax, points, low, high)


def _close_together(some: _Points, step: float) -> Iterator[_Points]:
    """Yield the keys by cells of a grid that is that factor wide."""
    cells = [np.round(np.log(np.maximum(values, 1e-3)) / np.log(step)) for values in (some.ttl, some.life)]
    _, cell = np.unique(np.stack(cells), axis=1, return_inverse=True)
    for number in np.unique(cell):
        yield some.where(cell.ravel() == number)


def _tell(ax: Axes, points: _Points, low: float, high: float) -> None:
    """Write beside the keys of each kind that is not as meant how many they are, and how long they lived."""
    for name in KINDS:
        some = points.where(points.kind == name)
        if name != "meant" and len(some.ttl):
            middle = np.argsort(some.ttl)[len(some.ttl) // 2]
            x, y = float(some.ttl[middle]), max(float(some.life[middle]), 1e-3)
            # Above the line the legend is on the left; the title is over both.
            left = x > low * (high / low) ** (0.5 if y < x else 0.75)
            down = -26 if y < x else -22 if name == "long" else 4
            ax.annotate(
                f"{_keys(some)} meant {_span(some.ttl)},\n{_said(name)} {_span(some.life)}",
                (x, y),
                (-40 if left else 40, down),
                textcoords="offset points",
                ha="right" if left else "left",
                va="center",
                fontsize=9,
                fontweight="bold",
                color=RUST if name == "short" else INK,
                zorder=5,
                bbox={"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 1},
                arrowprops={"arrowstyle": "-|>", "color": KINDS[name].colour, "lw": 1.2, "shrinkB": 6},
            )


def _keys(some: _Points) -> str:
    return f"{len(some.ttl):,} {'key' if len(some.ttl) == 1 else 'keys'}"


def _span(values_s: Any) -> str:
    ends = (about(1000 * float(values_s.min())), about(1000 * float(values_s.max())))
    return " to ".join(dict.fromkeys(ends))


def _density(ax: Axes, points: _Points, low: float, high: float) -> None:
    colours = LinearSegmentedColormap.from_list("memkit", ["#cfe3f1", BLUE, "#00253c"])
    drawn = ax.hexbin(
        points.ttl,
        np.maximum(points.life, 1e-3),
        xscale="log",
        yscale="log",
        gridsize=60,
        bins="log",
        mincnt=1,
        extent=(np.log10(low), np.log10(high)) * 2,
        cmap=colours,
        linewidths=0.2,
        zorder=2,
    )
    bar = ax.figure.colorbar(drawn, ax=ax, shrink=0.6, pad=0.02)
    bar.set_label("keys", color=INK)
    bar.ax.tick_params(colors=INK)


def _within(some: _Points) -> str:
    """How far a life can be from its TTL at most; of many keys, 99 in 100."""
    off_ms = 1000 * np.maximum(np.abs(some.low - some.ttl), np.abs(some.high - some.ttl))
    if len(off_ms) < 200:
        return f"within {about(float(off_ms.max()))}"
    return f"99 % within {about(float(np.quantile(off_ms, 0.99)))}"


def _guides(ax: Axes, low: float, high: float) -> None:
    for factor, name in GUIDES.items():
        ax.plot([low, high], [low / factor, high / factor], color=GREY, lw=0.8, ls=":", zorder=1)
        x = low * factor * 4
        ax.annotate(
            name,
            (x, x / factor),
            (4, 0),
            textcoords="offset points",
            fontsize=8,
            color=GREY,
            rotation=45,
            rotation_mode="anchor",
            va="top",
        )


def plot_survival(log: ExpiryLog, ax: Axes | None = None) -> Axes:
    """Draw the share of keys that were still readable over the time since they were written, a line for each TTL.

    Dotted: the TTL that was meant. A line ends level where keys live on. At most six TTLs have a line style of their
    own; the band is what was not seen.
    """
    ax = own_axes(ax, (7.6, 4.4))
    points = _Points.of(log)
    ttls = [float(ttl) for ttl in np.unique(points.ttl)]
    limits = low, high = _range(np.concatenate([points.ttl, points.life]))
    if len(ttls) > len(LINES):
        _survival_line(ax, points, f"TTLs {about(1000 * ttls[0])} to {about(1000 * ttls[-1])}", 0, limits)
    for number, ttl in enumerate(ttls if len(ttls) <= len(LINES) else []):
        _survival_line(ax, points.where(points.ttl == ttl), f"meant {about(1000 * ttl)}", number, limits)
    _say_what_is_not_drawn(ax, log, points)
    ax.set(xscale="log", xlim=(low, high), ylim=(-0.02, 1.05), ylabel="keys still readable")
    ax.set_xlabel("time since they were written")
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    time_axis(ax.xaxis)
    if ttls:
        ax.legend(loc="lower left", framealpha=0.85, edgecolor="none", facecolor="white", fontsize=9, labelcolor=INK)
    finish(ax, log.verdict, f"{log.server}, {log.clock}; dotted: the end that was meant")
    ax.set_label(f"Share of {len(log):,} keys still readable over time, a line for each TTL. {log.verdict}")
    return ax


def _survival_line(ax: Axes, some: _Points, label: str, number: int, limits: tuple[float, float]) -> None:
    early = np.isin(some.kind, ["meant", "alive"]).mean() < 0.5
    colour = VERMILLION if early else (BLUE, GREEN, SKY, PURPLE)[number % 4]
    share, middle, meant, least, most = _steps(some, limits)
    ended = np.isfinite(middle)
    times, shares = middle[ended], share[ended]
    if not ended.all():
        times, shares = np.append(times, limits[1]), np.append(shares, shares[-1])
    ax.step(times, shares, where="post", color=colour, ls=LINES[number], lw=2, label=label)
    ax.step(meant, share, where="post", color=colour, ls=":", lw=1.2)
    ax.fill_betweenx(share[ended], least[ended], most[ended], step="pre", color=colour, alpha=0.2, lw=0)


def _steps(some: _Points, limits: tuple[float, float]) -> tuple[Any, ...]:
    """Return shares and the times when they were reached: observed, meant, earliest, latest; 400 steps at most.

    Infinity: not reached, since keys live on.
    """
    count = len(some.ttl)
    lives = np.isnan(some.high)
    # The share at which those that live on begin is a step of its own.
    rows = np.unique(np.append(np.linspace(0, count, min(count, 400) + 1).astype(int), count - int(lives.sum())))

    def reached(values: Any) -> Any:
        ordered = np.concatenate([[limits[0]], np.sort(values)])[rows]
        return np.where(np.isfinite(ordered), np.clip(ordered, *limits), np.inf)

    times = (np.where(lives, np.inf, some.life), some.ttl, some.low, np.where(lives, np.inf, some.high))
    return (1 - rows / count, *map(reached, times))


def plot_lateness(log: ExpiryLog, ax: Axes | None = None) -> Axes:
    """Draw how late ``expired`` events came after the deadline (memory is freed then), with what is predicted.

    The prediction is no bound: it is what the sweep takes for one round of the keys, on a machine that is not busy.
    Take a log made with ``leave_to_sweep=True``: otherwise the observation itself made the keys expire.
    """
    ax = own_axes(ax, (7.6, 4.2))
    late = np.array([(e - d) / 1e6 for e, d in zip(log.event_us, log.deadline_us, strict=True) if NONE not in (e, d)])
    late = np.sort(np.maximum(late, 1e-4))
    bound_s = log.sweep.predicted_s if log.sweep else 1.0
    limits = 1e-3, max(10.0, 2 * bound_s, 2 * float(late[-1]) if len(late) else 1)
    if len(late):
        # From the left edge to the right one: the step of a single event is a line, too.
        times = np.concatenate([[limits[0] / 10], late, [limits[1]]])
        share = np.arange(len(late) + 1) / len(log)
        ax.step(times, [*share, share[-1]], where="post", color=BLUE, lw=2, label="event was sent by")
    said = log.events_said
    if len(late):
        said += f", half within {about(1000 * float(np.median(late)))}, the last {about(1000 * float(late[-1]))} late"
    if log.sweep:
        predicted = about(1000 * log.sweep.predicted_s)
        ax.axvline(
            log.sweep.predicted_s, color=VERMILLION, lw=1.5, ls="--", label=f"predicted for the last: {predicted}"
        )
        said += f"; {predicted} is predicted for the last"
    ax.axvspan(1e-4, 2e-3, color=PALE, alpha=0.6, lw=0, label="already unreadable for every reader")
    ax.set(xscale="log", ylim=(0, 1.05), ylabel="keys whose event had come")
    ax.set_xlabel("time after the deadline (log)")
    ax.set_xlim(limits)
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    time_axis(ax.xaxis)
    ax.legend(loc="upper left", frameon=False, fontsize=9, labelcolor=INK)
    beside = f", {log.sweep.dead_keys:,} dead keys beside {log.sweep.live_keys:,} live ones" if log.sweep else ""
    conclusion = f"{said[:1].upper()}{said[1:]}."
    finish(ax, conclusion, f"{log.server}{beside}")
    ax.set_label(f"Share of expired events over the time after the deadline. {conclusion}")
    return ax


def alt_text(ax: Axes) -> str:
    """Return what a figure shows and concludes, in words."""
    return str(ax.get_label())


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure as a notebook shows it: ``<figure><img alt=...>``; its text form is the alt text."""

    svg: bytes
    alt: str

    def _repr_html_(self) -> str:
        data = b64encode(self.svg).decode()
        return (
            f'<figure style="margin:0"><img alt="{escape(self.alt)}" style="max-width:100%;background:white" '
            f'src="data:image/svg+xml;base64,{data}"></figure>'
        )

    def __repr__(self) -> str:
        return self.alt


def show(ax: Axes) -> Figure:
    """Render Axes (and all else in their figure) for a notebook: the same bytes for the same figure, with alt text.

    The figure is taken from pyplot's hands, so that it does not appear a second time.
    """
    from matplotlib import pyplot as plt

    figure: Any = ax.figure
    alt = " ".join(filter(None, (alt_text(one) for one in figure.axes if not alt_text(one).startswith("<"))))
    with mpl.rc_context(STYLE):
        out = io.BytesIO()
        figure.savefig(out, format="svg", metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)
    return Figure(out.getvalue(), alt)


def own_axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """Return the axes to draw on, new ones of this size (inches) where none are given, in memkit's style."""
    if ax is None:
        from matplotlib import pyplot as plt

        with mpl.rc_context(STYLE):
            ax = plt.subplots(figsize=size, layout="constrained")[1]
    ax.figure.set_facecolor("white")
    ax.set_facecolor("white")
    ax.tick_params(colors=INK, which="both")
    for name, spine in ax.spines.items():
        spine.set_color(GREY)
        spine.set_visible(name in ("left", "bottom"))
    ax.grid(visible=True, color="#ececec", lw=0.8)
    ax.set_axisbelow(True)
    return ax


def time_axis(axis: Any) -> None:
    """Make an axis of seconds logarithmic, with ticks in the units that people say."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(FixedLocator(list(TICKS_S)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: TICKS_S.get(value, "")))
    axis.set_minor_locator(NullLocator())


def _range(values: Any) -> tuple[float, float]:
    known = values[np.isfinite(values) & (values > 0)]
    if not len(known):
        return SECONDS_TO_WEEKS
    return min(SECONDS_TO_WEEKS[0], float(known.min()) / 2), max(SECONDS_TO_WEEKS[1], float(known.max()) * 2)


def finish(ax: Axes, conclusion: str, source: str) -> None:
    """Title: the conclusion; under it, small, where it was seen."""
    ax.set_title(
        "\n".join(textwrap.wrap(conclusion, 62)) + "\n", loc="left", fontsize=11.5, fontweight="bold", color=INK
    )
    ax.text(0, 1.012, source, transform=ax.transAxes, fontsize=9, color=GREY, va="bottom")
    ax.xaxis.label.set_color(INK)
    ax.yaxis.label.set_color(INK)


def plot_lifetimes(report: SessionReport, ax: Axes | None = None) -> Axes:
    """Draw how long the keys behind a session have left, a line each; like keys share one, with their number.

    A triangle points down where a key dies before the others, an open one to the right where a key has no TTL.
    """
    rows = _lifetime_rows(report)
    ends = [row.ttl_s for row in rows if row.ttl_s]
    low, high = min([0.5, *(end / 2 for end in ends)]), 3 * max([10.0, *ends])
    ax = own_axes(ax, (8.4, 1.6 + 0.32 * len(rows)))
    for place, row in enumerate(rows):
        colour, marker = _lifetime_look(row)
        end = row.ttl_s or high
        ax.hlines(place, low, end, color=colour, lw=2, ls="-" if row.ttl_s else ":")
        face = colour if row.ttl_s else "white"
        ax.plot(end, place, marker, color=colour, mfc=face, ms=8, mew=1.5, clip_on=False)
        said = duration(1000 * row.ttl_s) if row.ttl_s else "no TTL"
        ax.annotate(
            said,
            (end, place),
            (9, 0),
            "data",
            "offset points",
            va="center",
            fontsize=9,
            color=INK,
            annotation_clip=False,
        )
    ax.set(
        xlim=(low, high), ylim=(len(rows) - 0.4, -0.6), yticks=range(len(rows)), yticklabels=[row.label for row in rows]
    )
    for label in ax.get_yticklabels():
        label.set_parse_math(False)  # a key may have a dollar sign
    ax.set_xlabel("time left (log)")
    time_axis(ax.xaxis)
    conclusion = _lifetime_conclusion(report)
    finish(ax, conclusion, f"{report.store} session {printable(report.session, 40)}".replace("$", r"\$"))
    ax.set_label(f"Time left of the {len(report.keys):,} keys of a session of {report.store}. {conclusion}")
    return ax


def _lifetime_look(row: _Lifetime) -> tuple[str, str]:
    if row.early:
        return VERMILLION, "v"
    if row.ttl_s:
        return BLUE, "o"
    return (GREY if row.label.startswith(SHARED) else ORANGE), ">"


@dataclass(frozen=True, slots=True)
class _Lifetime:
    """One line of the figure; ``ttl_s`` None: no TTL."""

    label: str
    ttl_s: float | None
    early: bool


def _lifetime_rows(report: SessionReport) -> list[_Lifetime]:
    early = set(_early_keys(report))
    alike: dict[tuple[str, bool, int | None], list[KeyReport]] = {}
    for key in report.keys:
        # TTLs within about 3 % of one another stand on one line.
        step = None if not key.ttl_s else round(math.log(key.ttl_s) * 30)
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
    return rows[:MOST_LIFETIMES]


def _short(name: str) -> str:
    """Return a key's name short enough for an axis: its ends, which say more than its middle."""
    shown = printable(name, 500)
    return shown if len(shown) <= 28 else f"{shown[:15]}…{shown[-12:]}"


def _early_keys(report: SessionReport) -> list[str]:
    return early_ends({key.key: key.ttl_s for key in report.keys if key.ttl_s is not None and _own(key)})


def _own(key: KeyReport) -> bool:
    return not key.part.startswith(SHARED)


def _lifetime_conclusion(report: SessionReport) -> str:
    own = [key for key in report.keys if _own(key)]
    ends = [key.ttl_s for key in own if key.ttl_s is not None]
    early = len(_early_keys(report))
    if not ends:
        return "No key has a TTL: the session remains until it is deleted or evicted."
    if early:
        soonest = f"{'expire' if early > 1 else 'expires'} in {duration(1000 * min(ends))}"
        last = duration(1000 * max(ends))
        return f"{early} of {len(own)} keys {soonest}, the last in {last}: mixed TTLs."
    immortal = len(own) - len(ends)
    together = f"All {len(ends)} keys with a TTL expire together" if len(ends) > 1 else "The session expires"
    return f"{together}, in {duration(1000 * max(ends))}." + (
        f" {counted(immortal, 'key has', 'keys have')} no TTL." if immortal else ""
    )
