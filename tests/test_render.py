from datetime import UTC, datetime, timedelta

import pytest

from memkit.policy import duration_ms
from memkit.render import Table, ago, colored, counted, duration, progress, utc_text, wrapped


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (None, "no TTL"),
        (0, "0ms"),
        (0.25, "0.25ms"),
        (250, "250ms"),
        (999.7, "1s"),
        (1_500, "1.5s"),
        (59_940, "59.9s"),
        (60_000, "1m"),
        (90_000, "90s"),
        (298_000, "4m 58s"),
        (299_650, "5m"),
        (300_000, "5m"),
        (75 * 60_000, "75m"),
        (86_400_000, "1d"),
        (36 * 3_600_000, "36h"),
        (157 * 3_600_000, "6d 13h"),
        (604_799_650, "7d"),
        (6.99 * 86_400_000, "7d"),
        (120 * 86_400_000, "120d"),
        (86_400_000 * 20_800 + 3_600_000, "20800d 1h"),
        (-90_000, "-90s"),
    ],
)
def test_duration_has_at_most_two_units(ms, text):
    assert duration(ms) == text


def test_option_and_its_value_stay_on_one_line():
    text = "two TTLs under one prefix; if that is intended: --expect 'chat:*=5m|7d' --full"
    assert wrapped(text, columns=60).splitlines()[1] == "--expect 'chat:*=5m|7d' --full"


@pytest.mark.parametrize("text", ["7d", "36h", "5m", "90s", "1.5s", "250ms", "75m"])
def test_duration_of_one_unit_can_be_typed_as_a_ttl(text):
    assert duration(duration_ms(text)) == text


def test_utc_text_keeps_an_upper_bound():
    at = datetime(2026, 11, 22, 2, 17, 3, 500_000, tzinfo=UTC)
    assert utc_text(at) == "2026-11-22T02:17:03Z"
    assert utc_text(at, round_up=True) == "2026-11-22T02:17:04Z"


def test_counted_noun_has_its_plural():
    assert [counted(n, "key") for n in (0, 1, 1_240)] == ["0 keys", "1 key", "1,240 keys"]
    assert counted(2, "entry", "entries") == "2 entries"


def test_table_is_aligned_and_escaped():
    table = Table("a < b", ("case", "value"), [("x", "1"), ("你好 <x>\x1b", "22")], total=5)
    assert repr(table) == "case          value\nx             1\n你好 <x>\\x1b  22\n… and 3 more"
    assert table["x"] == ("1",)
    html = table._repr_html_()
    assert '<caption style="text-align:left">a &lt; b, the first 2 shown' in html
    assert "你好 &lt;x&gt;\\x1b" in html


def test_wrapped_breaks_only_between_words():
    text = wrapped("next: " + "word " * 20 + "x" * 90, indent="    ")
    first, *_, last = text.splitlines()
    assert len(first) <= 80
    assert last == "    " + "x" * 90


def test_colored_only_if_asked():
    assert colored("x", "critical", color=False) == "x"
    assert colored("x", "critical", color=True) == "\x1b[1;31mx\x1b[0m"


def test_no_progress_without_a_terminal(capsys):
    with progress("auditing", "keys") as show:
        show(1, 2)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "now"),
        (-0.4, "now"),
        (-1.6, "now"),
        (1, "1 s ago"),
        (150, "2 min ago"),
        (10_800, "3 h ago"),
        (-432_000, "in 5 d"),
    ],
)
def test_ago_uses_one_unit(seconds: float, text: str) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert ago(now - timedelta(seconds=seconds), now) == text
