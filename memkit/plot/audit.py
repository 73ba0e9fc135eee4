"""Figures of an audit: time left, deadlines with the cliff, the sessions' future, expired against evicted.

As in ``memkit.plot.expiry``: every function takes ``ax=None`` and returns Axes, ``plot.show(ax)`` puts it on a page. No
key's name is in a figure.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from memkit.audit.finding import Finding
from memkit.audit.report import AuditReport
from memkit.audit.sampling import KeyFacts
from memkit.plot.expiry import BLUE, GREEN, INK, ORANGE, SKY, VERMILLION, finish, own_axes, time_axis
from memkit.render import duration as said

DAY_S = 86_400.0


def plot_ttl_now(report: AuditReport, ax: Axes | None = None) -> Axes:
    """Draw how many sessions have how long to live now, on a log axis; dashed: the TTL that was expected."""
    ax = own_axes(ax, (8.0, 4.0))
    left = np.array([(one.left_ms or 0) / 1000 for one in _mortal(report)])
    left = left[left > 0]
    low = max(0.5, left.min() / 2) if len(left) else 0.5
    high = max(3 * (_expected_s(report) or 1.0), 2 * left.max() if len(left) else 60.0)
    ax.hist(left, bins=np.geomspace(low, high, 60).tolist(), color=SKY, edgecolor=BLUE, lw=0.6)
    expected = _expected_s(report)
    if expected:
        ax.axvline(expected, color=GREEN, lw=2, ls="--")
        ax.annotate(f"expected {said(expected * 1000)}", (expected, 0.95), (-4, 0), **_near(ax), ha="right")
    short = _shortened(report)
    if short and short.observed_ttl_s:
        ax.axvline(short.observed_ttl_s, color=VERMILLION, lw=2, ls="-.")
        text = f"given now: {said(short.observed_ttl_s * 1000)}"
        ax.annotate(text, (short.observed_ttl_s, 0.95), (4, 0), **_near(ax))
    ax.set(xlabel="time left (log)", ylabel="keys", xlim=(low, high))
    time_axis(ax.xaxis)
    conclusion = _shortened_share(report) or f"{_which(report)} with a deadline: {_share_below(left, expected)}"
    finish(ax, conclusion, _source(report))
    ax.set_label(f"How long the sessions have left. {conclusion}. {report.verdict.sentence}")
    return ax


def plot_deadlines(report: AuditReport, ax: Axes | None = None) -> Axes:
    """Draw when the sessions will die; a cliff shows when writes stopped getting the expected TTL."""
    ax = own_axes(ax, (8.0, 4.0))
    now_s = report.at.timestamp()
    days = np.array([((one.deadline_ms or 0) / 1000 - now_s) / DAY_S for one in _mortal(report)])
    expected = _expected_s(report)
    horizon = 1.15 * max([(expected or DAY_S) / DAY_S, *days[days < 400]])
    ax.hist(np.clip(days, 0, horizon), bins=np.linspace(0, horizon, 80).tolist(), color=SKY, edgecolor=BLUE, lw=0.6)
    conclusion = f"{_which(report)}: the last deadline is in {said(1000 * DAY_S * max([0.0, *days]))}"
    if expected:
        conclusion = "deadlines reach as far as the expected TTL"
        ax.axvline(expected / DAY_S, color=GREEN, lw=2, ls="--")
        ax.annotate("a write now should\nend here", (expected / DAY_S, 0.95), (-4, 0), **_near(ax), ha="right")
    short = _shortened(report)
    if short and short.since and expected:
        cliff = (short.since.timestamp() + expected - now_s) / DAY_S
        ax.axvline(cliff, color=VERMILLION, lw=2, ls="-.")
        ax.annotate("the cliff: the last\nwrite that got it", (cliff, 0.62), (-4, 0), **_near(ax), ha="right")
        conclusion = f"no deadline after the cliff: writes get another TTL since {_minute(short.since)}"
    ax.set(xlabel="deadline (days from the audit)", ylabel="keys", xlim=(0, horizon))
    finish(ax, conclusion, _source(report))
    ax.set_label(f"When the sessions will die. {conclusion}.")
    return ax


def plot_future(report: AuditReport, ax: Axes | None = None) -> Axes:
    """Draw which share of today's sessions is still there after a time in which nobody writes: survival."""
    ax = own_axes(ax, (8.0, 4.0))
    left = np.sort([(one.left_ms or 0) / 1000 for one in _mortal(report)])
    expected = _expected_s(report)
    low, high = 1.0, 2 * max([expected or 60.0, *left[-1:]])
    times = np.geomspace(low, high, 400)
    alive = 1 - np.searchsorted(left, times, side="right") / max(len(left), 1)
    ax.step(times, alive, where="post", color=BLUE, lw=2, ls="-", label="as found")
    if expected:
        ideal = np.clip(1 - times / expected, 0, 1)
        ax.plot(times, ideal, color=GREEN, lw=2, ls="--", label="steady traffic under the expected TTL")
    ax.set(
        xscale="log", xlim=(low, high), ylim=(-0.02, 1.05), xlabel="time from now (log)", ylabel="sessions still there"
    )
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    time_axis(ax.xaxis)
    ax.legend(loc="lower left", framealpha=0.85, edgecolor="none", facecolor="white", fontsize=9, labelcolor=INK)
    soon = int(np.sum(left < 600))
    conclusion = f"{soon:,} of {len(left):,} sessions will be gone in ten minutes, unless they are renewed"
    short = _shortened(report)
    if short and short.observed_ttl_s:
        conclusion += f"; so will all that are written now, {said(1000 * short.observed_ttl_s)} later"
    finish(ax, conclusion, _source(report))
    ax.set_label(f"Which share of the sessions is still there after a time. {conclusion}.")
    return ax


def plot_ends(report: AuditReport, ax: Axes | None = None) -> Axes:
    """Draw how many keys the server says have expired, and how many it has evicted."""
    ax = own_axes(ax, (8.0, 2.4))
    counts = [report.counters.get(name) or 0 for name in ("expired_keys", "evicted_keys")]
    ax.barh([0, 1], counts, color=[SKY, ORANGE], edgecolor=INK, hatch=["", "//"], height=0.6)
    for place, count in enumerate(counts):
        ax.annotate(f"{count:,}", (count, place), (5, 0), textcoords="offset points", va="center", color=INK)
    ax.set(yticks=[0, 1], yticklabels=["expired", "evicted"], xlabel="keys since the server started")
    ax.set_xlim(0, max(1, *counts) * 1.15)
    ax.invert_yaxis()
    conclusion = (
        "keys are evicted for lack of memory"
        if counts[1]
        else "nothing was evicted: what is gone expired or was deleted"
    )
    finish(ax, conclusion, _source(report))
    ax.set_label(f"Expired: {counts[0]:,} keys; evicted: {counts[1]:,} keys. {conclusion}.")
    return ax


def _near(ax: Axes) -> dict[str, Any]:
    return {
        "xycoords": ax.get_xaxis_transform(),
        "textcoords": "offset points",
        "fontsize": 9,
        "color": INK,
        "va": "top",
        "bbox": {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1},
    }


def _mortal(report: AuditReport) -> list[KeyFacts]:
    """Return the keys with a deadline under the first expectation that has any; all, where nothing is expected."""
    for meant in report.expectations:
        own = [one for one in meant.of(report.keys) if one.deadline_ms is not None]
        if own:
            return own
    return [one for one in report.keys if one.deadline_ms is not None]


def _which(report: AuditReport) -> str:
    """Return how many keys the figures show, and which."""
    pattern = next((meant.pattern for meant in report.expectations if meant.of(report.keys)), None)
    return f"{len(_mortal(report)):,} keys{f' {pattern}' if pattern else ''}"


def _shortened_share(report: AuditReport) -> str | None:
    short = _shortened(report)
    if not short or not short.observed_ttl_s or not short.expected_ttl_s:
        return None
    given, meant = said(1000 * short.observed_ttl_s), said(1000 * short.expected_ttl_s)
    return f"{short.keys:,} of {_which(report)} were given {given} instead of {meant}"


def _expected_s(report: AuditReport) -> float | None:
    ttls = [meant.ttl_ms / 1000 for meant in report.expectations if meant.ttl_ms and meant.of(report.keys)]
    return ttls[0] if ttls else None


def _shortened(report: AuditReport) -> Finding | None:
    causes = ("ttl_too_short", "unit_mistake")
    return next((finding for finding in report.findings if finding.cause in causes), None)


def _share_below(left: Any, expected: float | None) -> str:
    if not len(left):
        return "none has one"
    edge = 600.0 if expected is None or expected > 1_200 else expected / 2
    return f"{np.mean(left < edge):.0%} have less than {said(edge * 1000)}"


def _source(report: AuditReport) -> str:
    server = report.server
    grey = (
        f"{server['flavour']} {server['version']}, {report.sample['keys']:,} of {report.sample['of']:,} keys looked at"
    )
    return f"{grey}, {_minute(report.at)}"


def _minute(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
