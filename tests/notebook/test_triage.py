"""The triage report: made by the notebook, safe to pass on; and the figures in it, in words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from incidents import Incident, draw

from memkit.audit.run import AuditReport, audit
from memkit.errors import MemkitError, PolicyError
from memkit.server import RedisServer

SECRET, NAME, TEXT = "hunter2-secret", "somebodys-name", "what somebody said"


@pytest.fixture(scope="module")
def incident() -> Iterator[tuple[Incident, AuditReport]]:
    drawn = draw("ttl_too_short", 5)
    with RedisServer(persist=True) as server:
        drawn.play(server)
        yield drawn, audit(server.url, expect=drawn.expect, duty=1)


@pytest.mark.parametrize("name", ["plot_ttl_now", "plot_deadlines", "plot_future", "plot_ends"])
def test_a_figure_says_what_it_shows_and_names_no_key(name: str, incident: tuple[Incident, AuditReport]) -> None:
    plot = pytest.importorskip("memkit.plot.expiry")
    plot_audit = pytest.importorskip("memkit.plot.audit")
    ax = getattr(plot_audit, name)(incident[1])
    shown = plot.show(ax)
    assert len(shown.alt) > 30
    assert ax.get_xlabel()
    assert incident[0].writes[0].key.encode() not in shown.svg
    assert shown.svg.startswith(b"<?xml")


def test_the_report_of_a_live_server_is_safe_to_pass_on(tmp_path: Path) -> None:
    pytest.importorskip("papermill")
    from memkit.notebook.triage import triage

    with RedisServer(persist=True, port=0) as server:
        with server.client() as client:
            for number in range(40):
                client.rpush(f"chat:{NAME}-{number}", f'{{"type":"human","data":{{"content":"{TEXT}"}}}}')
                client.expire(f"chat:{NAME}-{number}", 604_800 if number < 20 else 300)
            before = client.dbsize()
            client.config_set("requirepass", SECRET)
        url = f"redis://:{SECRET}@127.0.0.1:{server.port}/0"
        done = triage(url, expect=["chat:*=7d"], output=tmp_path / "report.html")
        with redis.Redis.from_url(url) as client:
            assert client.dbsize() == before
    page = done.path.read_text("utf-8")
    assert (done.cause, done.exit_code) == ("ttl_too_short", 1)
    assert done.sentence in page
    assert page.count("<img alt=") == 4
    for unwanted in (SECRET, NAME, TEXT, "<script", "http://", "https://", ".ipynb", "&#182;", "¶"):
        assert unwanted not in page
    assert "20 of 40 keys chat:* were given 5m instead of 7d" in page


def test_what_cannot_be_done_is_said_before_a_notebook_is_run(tmp_path: Path) -> None:
    from memkit.notebook.triage import triage

    with pytest.raises(PolicyError, match="expected PATTERN=TTL"):
        triage(None, expect=["chat"], output=tmp_path / "report.html")
    with pytest.raises(redis.ConnectionError):
        triage("redis://127.0.0.1:1/0", output=tmp_path / "report.html")
    with pytest.raises(MemkitError, match="is a folder; give -o the name of the file"):
        triage(None, output=tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_an_expectation_what_is_seen_is_shown_and_what_to_expect(memkit_server: RedisServer) -> None:
    triage = pytest.importorskip("memkit.notebook.triage")
    with memkit_server.client() as client:
        for number in range(60):
            client.set(f"chat:{NAME}-{number}", "{}", ex=604_800 if number < 20 else 300)
    report = triage.examine(memkit_server.url)
    shown = report._repr_html_()
    assert "chat:*: 60 keys (string 60), given 5m, others more: up to 7d left; if that is meant" in shown
    affected = triage.Affected(report)
    assert len(affected.rows) == triage.MOST_ROWS
    assert NAME not in affected._repr_html_()
    assert all(row[3] in ("5m 0s", "5m 1s", "4m 59s") for row in affected.rows)
    assert f"chat:{NAME}-" in triage.Affected(report, reveal=True).rows[0][0]
    with memkit_server.client() as client:
        client.set("chat:🦊\x1b[2J", "{}", ex=60)
    named = triage.Affected(triage.examine(memkit_server.url), reveal=True).rows[0][0]
    assert named.startswith("chat:🦊")
    assert named.isprintable()


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (None, "unknown"),
        (0, "0s"),
        (59_400, "59s"),
        (133_000, "2m 13s"),
        (604_790_000, "7d 0h"),
        (90_000_000, "1d 1h"),
        (3_599_000, "1h 0m"),
    ],
)
def test_durations_are_told_in_two_units(ms: float | None, text: str) -> None:
    assert pytest.importorskip("memkit.notebook.triage").clock_text(ms) == text
