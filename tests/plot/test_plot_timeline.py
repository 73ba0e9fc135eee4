"""The figure of one session's history shows its TTLs, its end, gaps and the TTL changes of its prefix."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from memkit.history.changes import TtlChange
from memkit.history.fate import fate_of
from memkit.history.run import History, Span
from memkit.history.states import KeyEvent, Moment
from memkit.plot import alt_text, plot_timeline, show

KEY = b"chat:user-42"
HOUR_MS = 3_600_000
WEEK_MS = 604_800_000
BEGIN_MS = 1_795_000_000_000


def at(hours: float) -> Moment:
    return Moment.at(BEGIN_MS + int(hours * HOUR_MS))


def events(*, expired: bool = True) -> list[KeyEvent]:
    written = KeyEvent(0, KEY, "written", at(0), "SET", BEGIN_MS + WEEK_MS, WEEK_MS, created=True)
    renewed = KeyEvent(0, KEY, "renewed", at(5), "SET", BEGIN_MS + 5 * HOUR_MS + 300_000, 300_000)
    end = KeyEvent(0, KEY, "expired", at(6), "DEL", renewed.deadline_ms, 300_000, ("expired",))
    return [written, renewed, *([end] if expired else [])]


def a_history(found: list[KeyEvent]) -> History:
    change = TtlChange("chat:", WEEK_MS, 300_000, at(4), at(3), exact=True)
    source = Span("aof", "appendonlydir", datetime.fromtimestamp(BEGIN_MS / 1000, UTC), None)
    fate = fate_of(KEY, found, None)
    return History("user-42", fate, tuple(found), {}, (change,), (), (source,))


def test_ttls_the_end_and_the_prefix_are_drawn() -> None:
    ax = plot_timeline(a_history(events()))
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["TTL of chat:*", "written", "TTL set", "expired"]
    assert "expired: chat:user-42" in ax.get_title(loc="left").replace("\n", " ")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("time (UTC)", "TTL (log)")
    assert "3 events, 1 change of the TTL under its prefix" in alt_text(ax)
    assert b"<svg" in show(ax).svg


def test_gap_is_shaded_as_not_recorded() -> None:
    begin = datetime.fromtimestamp(BEGIN_MS / 1000, UTC)
    gap = Span("gap", "the connection broke", begin, begin.replace(hour=(begin.hour + 1) % 24))
    ax = plot_timeline(replace(a_history(events()), gaps=(gap,)))
    assert "not recorded" in [text.get_text() for text in ax.get_legend().get_texts()]


def test_session_without_events_is_drawn_too() -> None:
    ax = plot_timeline(a_history([]))
    assert "the sources do not contain" in ax.get_title(loc="left").replace("\n", " ")


def test_history_of_all_sessions_is_refused() -> None:
    whole = replace(a_history(events()), session=None, fate=None)
    with pytest.raises(ValueError, match="of one session"):
        plot_timeline(whole)
