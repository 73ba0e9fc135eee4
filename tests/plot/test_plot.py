"""Figures: their content, alt texts, themes and size, and that the same log gives the same bytes."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from html import unescape

import matplotlib as mpl
import numpy as np
import pytest
from expiry_logs import WEEK_MS, Row, early, made_log, on_time

from memkit.observe.log import ExpiryLog, Sweep
from memkit.plot import alt_text, plot_expiry, plot_lateness, plot_survival, show
from memkit.plot.expiry import OUTCOMES
from memkit.plot.style import DARK, ORANGE, PURPLE, SKY

mpl.use("agg")
from matplotlib import pyplot as plt
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgb

INCIDENT = [on_time(WEEK_MS)] * 9 + [early(WEEK_MS, 300_000)] * 3


@pytest.fixture(autouse=True)
def no_figure_is_left() -> Iterator[None]:
    yield
    plt.close("all")


def texts(ax: plt.Axes) -> list[str]:
    return [text.get_text() for text in [*ax.texts, ax.title, ax.get_legend()] if hasattr(text, "get_text")] + [
        text.get_text() for text in ax.get_legend().get_texts()
    ]


def late_log(late_s: list[float]) -> ExpiryLog:
    log = made_log([on_time(3_600_000)] * len(late_s))
    for index, late in enumerate(late_s):
        log.event_us[index] = log.deadline_us[index] + round(late * 1e6)
    log.sweep = Sweep(len(late_s), 5_000, 10, 1)
    return log


def test_an_early_group_is_labelled_with_both_ttls() -> None:
    ax = plot_expiry(made_log(INCIDENT))
    shown = texts(ax)
    assert "configured 7d,\nexpired after 5m\n3 keys" in shown
    assert "7d: 9 keys, off by at most 3ms" in shown
    assert {"expired early", "expired on time", "lifetime = TTL"} <= set(shown)
    assert {"60 times too short", "1,000 times too short"} <= set(shown)
    arrow = next(text for text in ax.texts if text.get_text() == "")
    assert arrow.xy == (604_800, pytest.approx(300))
    assert "Not as configured: 3 of 12 keys with a configured TTL of 7d expired after 5m." in alt_text(ax)
    assert ax.get_title("left").replace("\n", " ").strip() == made_log(INCIDENT).verdict


def test_keys_on_time_have_no_early_mark_or_guide() -> None:
    ax = plot_expiry(made_log([on_time(ttl) for ttl in (1000, 60_000, WEEK_MS)]))
    assert not set(texts(ax)) & {"expired early", "60 times too short"}
    assert "As configured: 3 keys expired after their TTL of 1s to 7d." in alt_text(ax)


def test_axes_have_ticks_from_1s_to_7d() -> None:
    ax = plot_expiry(made_log([on_time(60_000)]))
    ax.figure.canvas.draw()
    for axis in (ax.xaxis, ax.yaxis):
        low, high = axis.get_view_interval()
        shown = [label.get_text() for label, at in zip(axis.get_ticklabels(), axis.get_ticklocs(), strict=True)
                 if low <= at <= high]  # fmt: skip
        assert shown == ["1s", "10s", "1m", "10m", "1h", "6h", "1d", "7d"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("configured TTL", "observed lifetime")
    assert ax.get_xscale() == ax.get_yscale() == "log"


def test_axes_grow_with_the_data() -> None:
    low, high = plot_expiry(made_log([on_time(20), on_time(365 * 86_400_000)])).get_xlim()
    assert low < 0.02
    assert high > 365 * 86_400


def test_every_outcome_has_its_own_mark() -> None:
    assert len({kind.marker + str(kind.filled) for kind in OUTCOMES.values()}) == len(OUTCOMES)
    rows: list[Row] = [
        on_time(1000),
        early(60_000, 1000),
        early(60_000, 600_000),
        (3_600_000, 7_000, 7_010, "evicted"),
        (3_600_000, 7_000, 7_010, "deleted"),
        (3_600_000, 7_000, 7_010, "evicted or deleted"),
        (86_400_000, 7_000, 0, "not expired"),
    ]
    assert {kind.name for kind in OUTCOMES.values()} <= set(texts(plot_expiry(made_log(rows))))


def test_many_ttls_are_drawn_as_a_density() -> None:
    dice = random.Random(1)
    ttls = [round(10 ** dice.uniform(3, 8.7)) for _ in range(2_000)]
    ax = plot_expiry(made_log([on_time(ttl) if n % 10 else early(ttl, ttl / 60) for n, ttl in enumerate(ttls)]))
    (colourbar,) = (one for one in ax.figure.axes if one is not ax)
    assert colourbar.get_ylabel() == "keys"
    counted = sum(float(np.nansum(drawn.get_array())) for drawn in ax.collections if drawn.get_array() is not None)
    assert counted == 1_800
    assert "at worst 1 key with a configured TTL of" in alt_text(ax)
    ax = plot_expiry(made_log([on_time(ttl) for ttl in ttls[:100]]))
    assert ax.figure.axes == [ax]


def marks_at(ax: plt.Axes, x: float, y: float) -> list[float]:
    """Return the sizes of the filled marks at a place."""
    drawn = [one for one in ax.collections if isinstance(one, PathCollection)]
    places = [(at, float(one.get_sizes()[0])) for one in drawn for at in np.asarray(one.get_offsets())]
    return [size for at, size in places if tuple(at) == pytest.approx((x, y), rel=0.2)]


def test_a_few_early_keys_of_thousands_are_marked() -> None:
    rows: list[Row] = [on_time((3_600 + n % 500 * 1_000) * 1000) for n in range(8_000)]
    for n, end in ((5, "expired"), (6, "evicted"), (7, "deleted")):
        rows[n] = (rows[n][0], 299_000, 301_000, end)
    rows[300] = (rows[300][0], rows[300][0] * 20, 0, "not expired")
    rows[400] = early(rows[400][0], rows[400][0] * 3)
    ax = plot_expiry(made_log(rows))
    shown = texts(ax)
    assert "1 key configured 2h 23m,\nexpired after 5m" in shown
    assert "1 key configured 2h 40m,\nevicted after 5m" in shown
    assert "1 key configured 2h 57m,\ndeleted after 5m" in shown
    assert {"expired early: 1 key", "evicted: 1 key", "deleted: 1 key", "expired late: 1 key"} <= set(shown)
    assert "expired on time: 7,995 keys" in shown
    assert "60 times too short" in shown
    assert min(marks_at(ax, 8_600, 300)) >= 45
    assert len(show(ax).svg) < 400_000


def test_many_early_keys_share_marks() -> None:
    dice = random.Random(1)
    ttls = [round(10 ** dice.uniform(6, 8.7)) for _ in range(8_000)]
    ax = plot_expiry(made_log([early(ttl, 300_000) if n % 2 else on_time(ttl) for n, ttl in enumerate(ttls)]))
    assert len([one for one in ax.collections if len(one.get_offsets()) == 1]) < 60
    assert "expired early: 4,000 keys" in texts(ax)
    assert any(
        re.fullmatch(r"4,000 keys configured 16m \d+s to 5d \d+h,\nexpired after 5m", text) for text in texts(ax)
    )


def test_the_svg_of_many_keys_is_small() -> None:
    log = made_log([on_time(ttl) for ttl in (1000, 60_000, 3_600_000, 86_400_000, WEEK_MS) for _ in range(4_000)])
    ax = plot_expiry(log)
    assert "7d: 4,000 keys, 99 % off by at most 3ms" in texts(ax)
    assert len(show(ax).svg) < 200_000
    assert len(show(plot_survival(log)).svg) < 400_000


def test_survival_has_one_line_style_per_ttl() -> None:
    ax = plot_survival(made_log([on_time(60_000)] * 4 + [early(WEEK_MS, 300_000)] * 4))
    observed = [line for line in ax.lines if line.get_linestyle() != ":"]
    assert len({str(line.get_linestyle()) for line in observed}) == 2
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["configured 1m", "configured 7d"]
    x, y = observed[1].get_data()
    assert (x[-1], y[-1]) == (pytest.approx(300), 0)
    assert max(ax.lines[-1].get_xdata()) == 604_800
    assert ax.get_ylabel() == "readable keys"


def test_survival_of_keys_that_do_not_expire() -> None:
    ax = plot_survival(made_log([(WEEK_MS, 100, 0, "not expired"), on_time(60_000)]))
    lines = {str(line.get_label()): line for line in ax.lines}
    assert list(lines["configured 1m"].get_ydata()) == [1, 0]
    existing = lines["configured 7d"]
    assert list(existing.get_ydata()) == [1, 1]
    assert existing.get_xdata()[-1] == ax.get_xlim()[1]
    ax = plot_survival(made_log([(WEEK_MS, 100, 0, "not expired")] * 3_000 + [early(WEEK_MS, 300_000)] * 1_000))
    assert min(ax.lines[0].get_ydata()) == 0.75
    ax = plot_survival(made_log([on_time(1000 * n) for n in range(1, 50)]))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["TTLs 1s to 49s"]


def test_lateness_shows_the_predicted_delay() -> None:
    log = late_log([0.5, 2, 12, 20])
    log.event_us[0] = -1
    ax = plot_lateness(log)
    assert "predicted for the last: 25.1s" in texts(ax)
    assert "3 of 4 events received, half within 12s, the last 20s late; predicted for the last: 25.1s." in alt_text(ax)
    assert max(ax.lines[0].get_ydata()) == 0.75
    assert ax.get_xlim()[1] > 25.1


def test_the_lateness_of_a_single_event_is_a_line() -> None:
    (line,) = (line for line in plot_lateness(late_log([3])).lines if line.get_linestyle() == "-")
    x, y = line.get_data()
    assert list(y) == [0, 1, 1]
    assert x[1] == pytest.approx(3)
    assert x[2] > 3
    assert not [line for line in plot_lateness(made_log([on_time(1000)])).lines if line.get_linestyle() == "-"]


def test_lateness_names_the_reason_for_missing_events() -> None:
    log = late_log([0.5, 2])
    log.events = "lost"
    assert "2 of 2 events received; then the subscription was lost, half within" in alt_text(plot_lateness(log))
    log.event_us[:] = made_log([on_time(1000)] * 2).event_us
    assert "deadline. No events received: the subscription was lost; " in alt_text(plot_lateness(log))


@pytest.mark.parametrize("draw", [plot_expiry, plot_survival])
def test_keys_without_a_place_on_the_axis_are_counted(draw: object) -> None:
    log = made_log([(-1, 100, 0, "not expired"), (-2, 100, 0, "not expired"), (WEEK_MS, 0, 0, "absent"), on_time(1000)])
    log.deadline_us[0] = -1
    shown = [text.get_text() for text in draw(log).texts]  # type: ignore[operator]
    assert "not drawn: 3 keys without a known TTL, or absent" in shown


@pytest.mark.parametrize("draw", [plot_expiry, plot_survival, plot_lateness])
def test_an_empty_log_is_drawn(draw: object) -> None:
    ax = draw(ExpiryLog("Redis 0", "by jumps", 5))  # type: ignore[operator]
    assert alt_text(ax)
    assert show(ax).svg


@pytest.mark.parametrize("draw", [plot_expiry, plot_survival, plot_lateness])
def test_colours_are_memkits_under_a_dark_style(draw: object) -> None:
    with plt.style.context("dark_background"):
        given = plt.subplots()[1]
        ax = draw(late_log([0.1, 0.2]), given)  # type: ignore[operator]
        ax.figure.canvas.draw()
    assert ax is given
    assert to_rgb(ax.get_facecolor()) == to_rgb(ax.figure.get_facecolor()) == (1, 1, 1)
    words = [ax.title, ax.xaxis.label, ax.yaxis.label, *ax.get_xticklabels(), *ax.texts]
    words += ax.get_legend().get_texts()
    assert all(max(to_rgb(word.get_color())) < 0.9 for word in words if word.get_text())


def test_show_has_alt_text_and_is_deterministic() -> None:
    log = made_log(INCIDENT)
    log.server = 'Redis "<8>"'
    figure, again = show(plot_expiry(log)), show(plot_expiry(log))
    assert figure == again
    assert plt.get_fignums() == []
    html = figure._repr_html_()
    alt = re.search(r'<figure[^>]*><svg role="img" aria-label="([^"]*)"', html)
    assert alt
    assert unescape(alt[1]) == figure.alt == repr(figure)
    assert "<8>" not in html
    assert b"<dc:date>" not in figure.svg


@pytest.mark.parametrize("draw", [plot_expiry, plot_survival, plot_lateness])
def test_every_colour_follows_the_theme(draw: object) -> None:
    svg = show(draw(late_log([0.1, 0.2]))).to_svg()  # type: ignore[operator]
    themed = re.findall(r"var\(--memkit-([0-9a-f]{6}), #\1\)", svg)
    assert themed
    assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) <= {*DARK, SKY, ORANGE, PURPLE}
    assert {f"#{colour}" for colour in themed} == set(DARK) & set(re.findall(r"#[0-9a-f]{6}\b", svg))
    # Text without a colour of its own would be black on a dark page.
    assert all("fill" in style for style in re.findall(r'<g style="([^"]*)" transform="translate', svg))


def test_figures_on_one_page_share_no_ids() -> None:
    one, other = (show(plot_expiry(made_log(rows))).to_svg() for rows in (INCIDENT, INCIDENT[:3]))
    ids = [set(re.findall(r'id="([^"]+)"', svg)) for svg in (one, other)]
    assert all(ids)
    assert not ids[0] & ids[1]
    assert set(re.findall(r'href="#([^"]+)"', one)) <= ids[0]


def test_labels_cover_no_mark_and_no_label() -> None:
    rows: list[Row] = [
        on_time(1000),
        early(60_000, 1000),
        early(60_000, 600_000),
        (86_400_000, 7_000, 0, "not expired"),
    ]
    rows += [(3_600_000, 7_000, 7_010, "evicted"), early(WEEK_MS, 300_000), on_time(WEEK_MS)]
    ax = plot_expiry(made_log(rows))
    ax.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in ax.texts if text.get_text().endswith(("key", "3ms"))]
    assert len(boxes) == 7
    marks = [ax.transData.transform(place) for one in ax.collections if isinstance(one, PathCollection)
             for place in np.asarray(one.get_offsets())]  # fmt: skip
    assert len(marks) == 7
    assert not [box for box in boxes for mark in marks if box.contains(*mark)]
    assert not [box for box in boxes for other in boxes if box is not other and box.overlaps(other)]
    assert all(ax.get_window_extent().contains(*corner) for box in boxes for corner in (box.min, box.max))


def test_label_in_a_narrow_place_covers_no_line() -> None:
    rows: list[Row] = [(1_000_000, 999_991.02, 1_000_003, "expired")] * 5 + [
        (1_000_000, 2_000_000, 0, "not expired")
    ] * 8
    ax = plot_expiry(made_log(rows))
    ax.figure.canvas.draw()
    (label,) = [text.get_window_extent() for text in ax.texts if "5 keys" in text.get_text()]
    diagonal = ax.transData.transform(np.repeat(np.geomspace(*ax.get_xlim(), 1_000)[:, None], 2, axis=1))
    assert not [place for place in diagonal if label.contains(*place)]
