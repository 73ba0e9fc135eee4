"""Figures of an audit: remaining TTLs, deadlines, the sessions' future, and expired against evicted keys.

No figure shows a key's name.
"""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from memkit.audit.finding import Finding
from memkit.audit.report import AuditReport
from memkit.audit.sampling import KeyFacts
from memkit.plot import style
from memkit.render import counted, duration, utc_text

DAY_S = 86_400.0
SOON_S = 600.0
"""Sessions that expire within ten minutes are those that people are using now."""
REACHED = 0.9
"""A last deadline this near to the expected TTL was given a moment ago, or has its jitter."""
HEADROOM = 1.3
"""The height of the axes relative to the tallest bar: labels of lines stand above the bars."""


def plot_ttl_now(report: AuditReport, ax: Axes | None = None) -> Axes:
    """Draw the number of keys by remaining TTL, on a log axis; the dashed line is the expected TTL.

    Args:
        report: What ``audit`` returned.
        ax: Axes to draw on; None: a new figure.
    """
    ax = style.own_axes(ax, (8.0, 4.0))
    keys, which, expected, short = _drawn(report)
    left = np.array([(one.left_ms or 0) / 1000 for one in keys])
    left = left[left > 0]
    low = max(0.5, left.min() / 2) if len(left) else 0.5
    high = max(3 * (expected or 1.0), 2 * left.max() if len(left) else 60.0)
    _histogram(ax, left, np.geomspace(low, high, 60))
    if expected:
        _vertical(ax, expected, style.GREEN, "--", f"expected {duration(expected * 1000)}", ha="right")
    ax.set(xlabel="remaining TTL (log)", ylabel="keys", xlim=(low, high))
    style.time_axis(ax.xaxis)
    conclusion = _share_below(left, expected, which)
    if short and short.observed_ttl_s and short.expected_ttl_s:
        ttls = [duration(1000 * ttl_s) for ttl_s in (short.observed_ttl_s, short.expected_ttl_s)]
        _vertical(ax, short.observed_ttl_s, style.VERMILLION, "-.", f"observed: {ttls[0]}")
        conclusion = f"{short.keys:,} of {which} have a TTL of {ttls[0]} instead of {ttls[1]}"
    alt = f"Number of keys by remaining TTL. {conclusion}. {report.verdict.sentence}"
    return style.finish(ax, conclusion, _source(report), alt=alt)


def plot_deadlines(report: AuditReport, ax: Axes | None = None) -> Axes:
    """Draw when the keys expire; the deadlines end at the time of the last write that set the expected TTL.

    Args:
        report: What ``audit`` returned.
        ax: Axes to draw on; None: a new figure.
    """
    ax = style.own_axes(ax, (8.0, 4.0))
    now_s = report.at.timestamp()
    keys, which, expected, short = _drawn(report)
    days = np.array([((one.deadline_ms or 0) / 1000 - now_s) / DAY_S for one in keys])
    horizon = 1.15 * max([(expected or DAY_S) / DAY_S, *days[days < 400]])
    _histogram(ax, np.clip(days, 0, horizon), np.linspace(0, horizon, 80))
    last_s = DAY_S * max([0.0, *days])
    conclusion = f"the last deadline of {which} is in {duration(1000 * last_s)}"
    if expected:
        if last_s >= REACHED * expected:
            conclusion = "deadlines reach as far as the expected TTL"
        _vertical(ax, expected / DAY_S, style.GREEN, "--", "expected deadline of\na write now")
    if short and short.since and expected and short.since_is != "until":
        change = (short.since.timestamp() + expected - now_s) / DAY_S
        _vertical(ax, change, style.VERMILLION, "-.", "last write that set\nthe expected TTL", ha="right")
        conclusion = f"writes have set another TTL since {utc_text(short.since)}: no key has a later deadline"
    ax.set(xlabel="deadline (days after the audit)", ylabel="keys", xlim=(0, horizon))
    return style.finish(ax, conclusion, _source(report), alt=f"Number of keys by deadline. {conclusion}.")


def plot_future(report: AuditReport, ax: Axes | None = None) -> Axes:
    """Draw the share of today's keys that still exist after a time without writes.

    Args:
        report: What ``audit`` returned.
        ax: Axes to draw on; None: a new figure.
    """
    ax = style.own_axes(ax, (8.0, 4.0))
    keys, _, expected, short = _drawn(report)
    left = np.sort([(one.left_ms or 0) / 1000 for one in keys])
    low, high = 1.0, 2 * max([expected or 60.0, *left[-1:]])
    times = np.geomspace(low, high, 400)
    existing = 1 - np.searchsorted(left, times, side="right") / max(len(left), 1)
    ax.step(times, existing, where="post", color=style.BLUE, lw=2, ls="-", label="observed keys")
    if expected:
        ideal = np.clip(1 - times / expected, 0, 1)
        ax.plot(times, ideal, color=style.GREEN, lw=2, ls="--", label="steady traffic with the expected TTL")
    ax.set(xscale="log", xlim=(low, high), ylim=(-0.02, 1.05), xlabel="time from now (log)", ylabel="existing keys")
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    style.time_axis(ax.xaxis)
    ax.legend(loc="lower left", **style.LEGEND)
    soon = int(np.sum(left < SOON_S))
    conclusion = f"{soon:,} of {counted(len(left), 'key')} will expire within {duration(SOON_S * 1000)} unless renewed"
    if short and short.observed_ttl_s and short.since_is != "until":
        conclusion += f"; each key written now expires {duration(1000 * short.observed_ttl_s)} later"
    alt = f"Share of the keys that still exist after a time without writes. {conclusion}."
    return style.finish(ax, conclusion, _source(report), alt=alt)


def plot_ends(report: AuditReport, ax: Axes | None = None) -> Axes:
    """Draw the server's counters of expired and evicted keys.

    Args:
        report: What ``audit`` returned.
        ax: Axes to draw on; None: a new figure.
    """
    ax = style.own_axes(ax, (8.0, 2.4))
    reported = [report.counters.get(name) for name in ("expired_keys", "evicted_keys")]
    counts = [count or 0 for count in reported]
    ax.barh([0, 1], counts, color=[style.SKY, style.ORANGE], edgecolor=style.INK, hatch=["", "//"], height=0.6)
    for place, count in enumerate(counts):
        ax.annotate(f"{count:,}", (count, place), (5, 0), textcoords="offset points", va="center", color=style.INK)
    ax.set(yticks=[0, 1], yticklabels=["expired", "evicted"], xlabel="keys since the server started")
    ax.set_xlim(0, max(1, *counts) * 1.15)
    style.count_axis(ax.xaxis)
    ax.invert_yaxis()
    conclusion = "no key was evicted since the server started"
    if counts[1]:
        conclusion = f"{counted(counts[1], 'key')} evicted since the server started: memory was full"
    if None in reported:
        conclusion = "the source does not report how many keys expired or were evicted"
    alt = f"Expired: {counted(counts[0], 'key')}; evicted: {counted(counts[1], 'key')}. {conclusion}."
    return style.finish(ax, conclusion, _source(report), alt=alt)


def _histogram(ax: Axes, values: Any, edges: Any) -> None:
    counts, _, _ = ax.hist(values, bins=edges.tolist(), color=style.SKY, edgecolor=style.BLUE, lw=0.6)
    ax.set_ylim(0, HEADROOM * max(1.0, float(np.max(counts))))
    style.count_axis(ax.yaxis)


def _vertical(ax: Axes, x: float, colour: str, line: Any, text: str, *, ha: str = "left") -> None:
    """Draw a vertical line with its label above the bars."""
    ax.axvline(x, color=colour, lw=2, ls=line)
    look: Any = {"xycoords": ax.get_xaxis_transform(), "textcoords": "offset points", "ha": ha, "va": "top"}
    ax.annotate(text, (x, 0.98), (4 if ha == "left" else -4, 0), fontsize=9, color=style.INK, **look)


def _drawn(report: AuditReport) -> tuple[list[KeyFacts], str, float | None, Finding | None]:
    """Return the keys to draw, their number as text, their expected TTL, and the finding of a short TTL among them.

    They are those with a TTL of the first expectation that has any; without expectations all keys with a TTL. A finding
    that is only possible is not drawn as a fact.
    """
    volatile = [one for one in report.sessions if one.deadline_ms is not None]
    if not report.expectations:
        return volatile, counted(len(volatile), "key"), None, None
    found = [(expectation.matching(volatile), expectation) for expectation in report.expectations]
    keys, expectation = next((pair for pair in found if pair[0]), found[0])
    expected_s = None if expectation.ttl_ms is None else expectation.ttl_ms / 1000
    short = (
        finding
        for finding in report.findings
        if finding.cause in ("ttl_too_short", "unit_mistake")
        and finding.confidence != "possible"
        and (finding.prefix or "").startswith(expectation.prefix)
        and (finding.observed_ttl_s or 0) < (expected_s or 0)
    )
    return keys, f"{counted(len(keys), 'key')} matching {expectation.pattern}", expected_s, next(short, None)


def _share_below(left: Any, expected: float | None, which: str) -> str:
    if not len(left):
        return f"{which} have a TTL"
    edge = SOON_S if expected is None or expected > 2 * SOON_S else expected / 2
    return f"{np.mean(left < edge):.0%} of {which} with a TTL have less than {duration(edge * 1000)} left"


def _source(report: AuditReport) -> str:
    server, sample = report.server, report.sample
    return (
        f"{server['flavour']} {server['version']}, {sample['keys']:,} of {counted(sample['of'], 'key')} checked, "
        f"{utc_text(report.at)}"
    )
