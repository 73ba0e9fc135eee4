"""Figures: what is on them, said in words too, readable on any background, the same bytes each time."""

from __future__ import annotations

import random
import re
from base64 import b64decode
from collections.abc import Iterator
from html import unescape

import matplotlib as mpl
import numpy as np
import pytest
from expiry_logs import WEEK_MS, Row, as_meant, early, made_log

from memkit.observe.log import ExpiryLog, Sweep
from memkit.plot.expiry import KINDS, alt_text, plot_expiry, plot_lateness, plot_survival, show

mpl.use("agg")
from matplotlib import pyplot as plt
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgb

INCIDENT = [as_meant(WEEK_MS)] * 9 + [early(WEEK_MS, 300_000)] * 3


@pytest.fixture(autouse=True)
def no_figure_is_left() -> Iterator[None]:
    yield
    plt.close("all")


def texts(ax: plt.Axes) -> list[str]:
    return [text.get_text() for text in [*ax.texts, ax.title, ax.get_legend()] if hasattr(text, "get_text")] + [
        text.get_text() for text in ax.get_legend().get_texts()
    ]


def late_log(late_s: list[float]) -> ExpiryLog:
    log = made_log([as_meant(3_600_000)] * len(late_s))
    for index, late in enumerate(late_s):
        log.event_us[index] = log.deadline_us[index] + round(late * 1e6)
    log.sweep = Sweep(len(late_s), 5_000, 10, 1)
    return log


def test_the_incident_names_both_ttls_under_the_line() -> None:
    ax = plot_expiry(made_log(INCIDENT))
    said = texts(ax)
    assert "meant 7d, lived 5m\n3 keys" in said
    assert "7d: 9 keys, within 3ms" in said
    assert {"died early", "expired as meant", "exactly as meant"} <= set(said)
    assert {"60 times too short", "1,000 times too short"} <= set(said)
    arrow = next(text for text in ax.texts if text.get_text() == "")
    assert arrow.xy == (604_800, pytest.approx(300))
    assert "Not as meant: 3 of 12 keys meant to live 7d lived 5m (expired)." in alt_text(ax)
    assert ax.get_title("left").replace("\n", " ").strip() == made_log(INCIDENT).verdict


def test_what_is_as_meant_carries_no_reproach() -> None:
    ax = plot_expiry(made_log([as_meant(ttl) for ttl in (1000, 60_000, WEEK_MS)]))
    assert not set(texts(ax)) & {"died early", "60 times too short"}
    assert "As meant: 3 keys lived their TTL of 1s to 7d and expired." in alt_text(ax)


def test_axes_go_from_seconds_to_weeks_in_units_people_use() -> None:
    ax = plot_expiry(made_log([as_meant(60_000)]))
    ax.figure.canvas.draw()
    for axis in (ax.xaxis, ax.yaxis):
        low, high = axis.get_view_interval()
        shown = [label.get_text() for label, at in zip(axis.get_ticklabels(), axis.get_ticklocs(), strict=True)
                 if low <= at <= high]  # fmt: skip
        assert shown == ["1 s", "10 s", "1 min", "10 min", "1 h", "6 h", "1 d", "1 wk"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("TTL that was meant", "life that was observed")
    assert ax.get_xscale() == ax.get_yscale() == "log"


def test_the_axes_grow_with_the_data() -> None:
    low, high = plot_expiry(made_log([as_meant(20), as_meant(365 * 86_400_000)])).get_xlim()
    assert low < 0.02
    assert high > 365 * 86_400


def test_every_outcome_has_a_mark_of_its_own() -> None:
    assert len({kind.marker + str(kind.filled) for kind in KINDS.values()}) == len(KINDS)
    rows: list[Row] = [
        as_meant(1000),
        early(60_000, 1000),
        early(60_000, 600_000),
        (3_600_000, 7_000, 7_010, "evicted"),
        (3_600_000, 7_000, 7_010, "deleted"),
        (3_600_000, 7_000, 7_010, "evicted or deleted"),
        (86_400_000, 7_000, 0, "alive"),
    ]
    assert {kind.name for kind in KINDS.values()} <= set(texts(plot_expiry(made_log(rows))))


def test_many_ttls_become_a_density_and_some_are_single_intervals() -> None:
    dice = random.Random(1)
    ttls = [round(10 ** dice.uniform(3, 8.7)) for _ in range(2_000)]
    ax = plot_expiry(made_log([as_meant(ttl) if n % 10 else early(ttl, ttl / 60) for n, ttl in enumerate(ttls)]))
    (colourbar,) = (one for one in ax.figure.axes if one is not ax)
    assert colourbar.get_ylabel() == "keys"
    counted = sum(float(np.nansum(drawn.get_array())) for drawn in ax.collections if drawn.get_array() is not None)
    assert counted == 1_800
    assert "at worst 1 key meant to live" in alt_text(ax)
    ax = plot_expiry(made_log([as_meant(ttl) for ttl in ttls[:100]]))
    assert ax.figure.axes == [ax]


def marks_at(ax: plt.Axes, x: float, y: float) -> list[float]:
    """Return the sizes of the filled marks at a place."""
    drawn = [one for one in ax.collections if isinstance(one, PathCollection)]
    places = [(at, float(one.get_sizes()[0])) for one in drawn for at in np.asarray(one.get_offsets())]
    return [size for at, size in places if tuple(at) == pytest.approx((x, y), rel=0.2)]


def test_a_few_of_many_thousands_that_are_not_as_meant_stand_out() -> None:
    rows: list[Row] = [as_meant((3_600 + n % 500 * 1_000) * 1000) for n in range(20_000)]
    for n, end in ((5, "expired"), (6, "evicted"), (7, "deleted")):
        rows[n] = (rows[n][0], 299_000, 301_000, end)
    rows[300] = (rows[300][0], rows[300][0] * 20, 0, "alive")
    rows[400] = early(rows[400][0], rows[400][0] * 3)
    ax = plot_expiry(made_log(rows))
    said = texts(ax)
    assert "1 key meant 2h 23m,\nlived 5m" in said
    assert "1 key meant 2h 40m,\nevicted after 5m" in said
    assert "1 key meant 2h 56m,\ndeleted after 5m" in said
    assert {"died early: 1 key", "evicted: 1 key", "deleted: 1 key", "outlived its TTL: 1 key"} <= set(said)
    assert "expired as meant: 19,995 keys" in said
    assert "60 times too short" in said
    assert min(marks_at(ax, 8_600, 300)) >= 45
    assert len(show(ax).svg) < 400_000


def test_many_that_are_not_as_meant_share_marks_by_their_place() -> None:
    dice = random.Random(1)
    ttls = [round(10 ** dice.uniform(6, 8.7)) for _ in range(20_000)]
    ax = plot_expiry(made_log([early(ttl, 300_000) if n % 2 else as_meant(ttl) for n, ttl in enumerate(ttls)]))
    assert len([one for one in ax.collections if len(one.get_offsets()) == 1]) < 60
    assert "died early: 10,000 keys" in texts(ax)
    assert any(re.fullmatch(r"10,000 keys meant 16m \d+s to 5d \d+h,\nlived 5m", text) for text in texts(ax))


def test_many_keys_stay_a_small_figure() -> None:
    log = made_log([as_meant(ttl) for ttl in (1000, 60_000, 3_600_000, 86_400_000, WEEK_MS) for _ in range(4_000)])
    assert "7d: 4,000 keys, 99 % within 3ms" in texts(plot_expiry(log))
    assert len(show(plot_expiry(log)).svg) < 200_000
    assert len(show(plot_survival(log)).svg) < 400_000


def test_survival_has_a_line_style_for_each_ttl_and_the_end_that_was_meant() -> None:
    ax = plot_survival(made_log([as_meant(60_000)] * 4 + [early(WEEK_MS, 300_000)] * 4))
    observed = [line for line in ax.lines if line.get_linestyle() != ":"]
    assert len({str(line.get_linestyle()) for line in observed}) == 2
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["meant 1m", "meant 7d"]
    x, y = observed[1].get_data()
    assert (x[-1], y[-1]) == (pytest.approx(300), 0)
    assert max(ax.lines[-1].get_xdata()) == 604_800
    assert ax.get_ylabel() == "keys still readable"


def test_survival_of_what_lives_on_and_of_many_ttls() -> None:
    ax = plot_survival(made_log([(WEEK_MS, 100, 0, "alive"), as_meant(60_000)]))
    (of_a_minute,), (alive,) = ([one for one in ax.lines if one.get_label() == f"meant {ttl}"] for ttl in ("1m", "7d"))
    assert list(of_a_minute.get_ydata()) == [1, 0]
    assert list(alive.get_ydata()) == [1, 1]
    assert alive.get_xdata()[-1] == ax.get_xlim()[1]
    ax = plot_survival(made_log([(WEEK_MS, 100, 0, "alive")] * 3_000 + [early(WEEK_MS, 300_000)] * 1_000))
    assert min(ax.lines[0].get_ydata()) == 0.75
    ax = plot_survival(made_log([as_meant(1000 * n) for n in range(1, 50)]))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["TTLs 1s to 49s"]


def test_lateness_shows_what_is_predicted_and_events_that_did_not_come() -> None:
    log = late_log([0.5, 2, 12, 20])
    log.event_us[0] = -1
    ax = plot_lateness(log)
    assert "predicted for the last: 25.1s" in texts(ax)
    assert "3 of 4 events came, half within 12s, the last 20s late; 25.1s is predicted for the last." in alt_text(ax)
    assert max(ax.lines[0].get_ydata()) == 0.75
    assert ax.get_xlim()[1] > 25.1


def test_the_lateness_of_a_single_event_is_a_line() -> None:
    (line,) = (line for line in plot_lateness(late_log([3])).lines if line.get_linestyle() == "-")
    x, y = line.get_data()
    assert list(y) == [0, 1, 1]
    assert x[1] == pytest.approx(3)
    assert x[2] > 3
    assert not [line for line in plot_lateness(made_log([as_meant(1000)])).lines if line.get_linestyle() == "-"]


def test_lateness_blames_no_server_for_events_that_were_not_heard() -> None:
    log = late_log([0.5, 2])
    log.events = "lost"
    assert "2 of 2 events heard; then the subscription was lost, half within" in alt_text(plot_lateness(log))
    log.event_us[:] = made_log([as_meant(1000)] * 2).event_us
    assert "deadline. Events not heard: the subscription was lost; " in alt_text(plot_lateness(log))


@pytest.mark.parametrize("draw", [plot_expiry, plot_survival])
def test_keys_that_have_no_place_on_the_axis_are_said(draw: object) -> None:
    log = made_log([(-1, 100, 0, "alive"), (-2, 100, 0, "alive"), (WEEK_MS, 0, 0, "absent"), as_meant(1000)])
    log.deadline_us[0] = -1
    said = [text.get_text() for text in draw(log).texts]  # type: ignore[operator]
    assert "not drawn: 3 keys without a known TTL, or not there" in said


@pytest.mark.parametrize("draw", [plot_expiry, plot_survival, plot_lateness])
def test_nothing_at_all_is_drawn_without_a_crash(draw: object) -> None:
    ax = draw(ExpiryLog("Redis 0", "by jumps", 5))  # type: ignore[operator]
    assert alt_text(ax)
    assert show(ax).svg


@pytest.mark.parametrize("draw", [plot_expiry, plot_survival, plot_lateness])
def test_faces_are_white_and_writing_is_dark_under_a_dark_style(draw: object) -> None:
    with plt.style.context("dark_background"):
        given = plt.subplots()[1]
        ax = draw(late_log([0.1, 0.2]), given)  # type: ignore[operator]
        ax.figure.canvas.draw()
    assert ax is given
    assert to_rgb(ax.get_facecolor()) == to_rgb(ax.figure.get_facecolor()) == (1, 1, 1)
    words = [ax.title, ax.xaxis.label, ax.yaxis.label, *ax.get_xticklabels(), *ax.texts]
    words += ax.get_legend().get_texts()
    assert all(max(to_rgb(word.get_color())) < 0.9 for word in words if word.get_text())


def test_shown_in_a_notebook_it_has_alt_text_and_the_same_bytes_each_time() -> None:
    log = made_log(INCIDENT)
    log.server = 'Redis "<8>"'
    figure, again = show(plot_expiry(log)), show(plot_expiry(log))
    assert figure == again
    assert plt.get_fignums() == []
    html = figure._repr_html_()
    alt = re.search(r'<figure[^>]*><img alt="([^"]*)"', html)
    assert alt
    assert unescape(alt[1]) == figure.alt == repr(figure)
    assert "<8>" not in html
    data = re.search(r"base64,([^\"]+)", html)
    assert data
    assert b64decode(data[1]) == figure.svg
    assert b"<dc:date>" not in figure.svg
