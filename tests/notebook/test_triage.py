"""The triage page, safe to pass on, and the figures and tables in it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
import redis
from incidents import Incident, draw
from servers import NO_FSYNC
from worlds import draw_world

from memkit.audit import AuditReport, audit
from memkit.audit.finding import Finding
from memkit.errors import MemkitError, PolicyError
from memkit.server import RedisServer

plot = pytest.importorskip("memkit.plot")
pyplot = pytest.importorskip("matplotlib.pyplot")
triage = pytest.importorskip("memkit.notebook.triage")
html_report = pytest.importorskip("memkit.notebook.html_report")
SECRET, NAME, TEXT = "hunter2-secret", "somebodys-name", "a private message"


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="module")
def incident() -> Iterator[tuple[Incident, AuditReport]]:
    drawn = draw("ttl_too_short", 5)
    with RedisServer(persist=True, config=NO_FSYNC) as server:
        drawn.play(server)
        yield drawn, audit(server.url, expect=drawn.expect, duty=1)


DRAWN_KEYS = "plot_ttl_now", "plot_deadlines", "plot_future"


@pytest.mark.parametrize("name", [*DRAWN_KEYS, "plot_ends"])
def test_a_figure_has_alt_text_and_no_key_name(name: str, incident: tuple[Incident, AuditReport]) -> None:
    ax = getattr(plot, name)(incident[1])
    shown = plot.show(ax)
    assert len(shown.alt) > 30
    assert ax.get_xlabel()
    assert incident[0].writes[0].key.encode() not in shown.svg
    assert shown.svg.startswith(b"<?xml")


@pytest.mark.parametrize("name", ["plot_ttl_now", "plot_deadlines", "plot_ends"])
def test_axes_of_counts_have_whole_ticks(name: str, incident: tuple[Incident, AuditReport]) -> None:
    ax = getattr(plot, name)(incident[1])
    axis = ax.xaxis if name == "plot_ends" else ax.yaxis
    assert all(tick == int(tick) for tick in axis.get_ticklocs())
    pyplot.close(ax.figure)


@pytest.mark.parametrize("name", ["plot_ttl_now", "plot_deadlines"])
def test_labels_stand_above_the_bars(name: str, incident: tuple[Incident, AuditReport]) -> None:
    ax = getattr(plot, name)(incident[1])
    ax.figure.canvas.draw()
    labels = [text.get_window_extent() for text in ax.texts if text.get_text() and text.get_position()[1] != 1.012]
    bars = [bar.get_window_extent() for bar in ax.patches if bar.get_height()]
    assert labels
    assert bars
    assert not [label for label in labels for bar in bars if label.overlaps(bar)]
    pyplot.close(ax.figure)


def test_a_figure_names_the_pattern_of_its_keys(memkit_server: RedisServer) -> None:
    with memkit_server.client() as client:
        client.set("a:1", "x")
        client.set("b:1", "x", ex=86_400)
        report = audit(memkit_server.url, expect={"a:*": "7d", "b:*": "30d"}, duty=1)
        client.delete("a:1", "b:1")
    ax = plot.plot_ttl_now(report)
    assert plot.show(ax).alt.startswith("Number of keys by remaining TTL. 0% of 1 key matching b:*")
    assert "expected 30d" in [text.get_text() for text in ax.texts]


def test_figures_claim_no_more_than_the_report(memkit_server: RedisServer) -> None:
    with memkit_server.client() as client:
        for number in range(4):
            client.set(f"chat:{number}", "x", ex=(2 + number) * 86_400)
        report = audit(memkit_server.url, expect={"chat:*": "30d"}, duty=1)
        client.unlink(*client.keys("chat:*"))
    found = Finding("ttl_too_short", message="short", prefix="chat:", keys=4, confidence="possible")
    possible = replace(found, expected_ttl_s=2_592_000, observed_ttl_s=432_000, since=report.at, since_is="until")
    for findings in ((), (possible,)):
        seen = replace(report, findings=findings, counters={})
        texts = [alt_of(name, seen) for name in DRAWN_KEYS]
        assert not [text for text in texts if "instead of" in text or "reach" in text or "written now" in text]
        assert "the source does not report" in alt_of("plot_ends", seen)
    likely = replace(report, findings=(replace(possible, confidence="likely"),))
    assert "have a TTL of 5d instead of 30d" in alt_of("plot_ttl_now", likely)
    assert "writes have set another TTL" not in alt_of("plot_deadlines", likely)


def alt_of(name: str, report: AuditReport) -> str:
    """Draw a figure and return its alt text; rendering takes most of the time, and changes no text."""
    ax = getattr(plot, name)(report)
    pyplot.close(ax.figure)
    return str(plot.alt_text(ax))


def test_the_page_of_a_live_server_is_safe_to_pass_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counting(url: str, **options: object) -> AuditReport:
        calls.append(url)
        return audit(url, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(html_report, "audit", counting)
    with RedisServer(persist=True, port=0, config=NO_FSYNC) as server:
        with server.client() as client:
            for number in range(40):
                client.rpush(f"chat:{NAME}-{number}", f'{{"type":"human","data":{{"content":"{TEXT}"}}}}')
                client.expire(f"chat:{NAME}-{number}", 604_800 if number < 20 else 300)
            before = client.dbsize()
            client.config_set("requirepass", SECRET)
        url = f"redis://:{SECRET}@127.0.0.1:{server.port}/0"
        report = html_report.write_html_report(url, expect=["chat:*=7d"], output=tmp_path / "report.html")
        assert calls == [url], "one triage is one audit"
        with redis.Redis.from_url(url) as client:
            assert client.dbsize() == before
            assert client.info("commandstats").get("cmdstat_flushall") is None
    page = unescape((tmp_path / "report.html").read_text("utf-8"))
    assert report.verdict.cause == "ttl_too_short"
    assert page.count('<svg role="img" aria-label=') == 4
    for unwanted in (SECRET, NAME, TEXT, "<script", 'src="', 'href="http', ".ipynb", "demo"):
        assert unwanted not in page
    assert "20 of 40 keys matching chat:* have a TTL of 5m instead of 7d" in page


def test_the_page_has_the_parts_of_a_ticket_in_order(incident: tuple[Incident, AuditReport]) -> None:
    report = incident[1]
    page = html_report.page(report)
    parts = [
        f'class="status {report.findings[0].severity}"',
        'class="numbers"',
        'role="img"',
        "<h2>Findings</h2>",
        "<dt>evidence</dt>",
        "names hashed",
        "<h2>Details</h2>",
    ]
    places = [page.index(part) for part in parts]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("url", "expect", "message"),
    [
        ("redis://u:hunter2@127.0.0.1:1/0", "chat:*=7d", "redis://u:***@127.0.0.1:1/0 cannot be audited: Error "),
        ("localhost:6379", ["chat:*=7d"], "'localhost:6379' is not a Redis URL: it has no scheme"),
        ("redis://127.0.0.1:1/0", "chat", "'chat' is not an expectation"),
    ],
)
def test_what_cannot_be_audited_is_one_message(url: str, expect: object, message: str) -> None:
    with pytest.raises(triage.NotAudited) as refused:
        triage.examine(url, expect)
    (shown,) = refused.value._render_traceback_()
    assert message in shown
    assert "hunter2" not in shown


def test_another_redis_has_no_expectation_of_the_lab(monkeypatch: pytest.MonkeyPatch) -> None:
    expectations = pytest.importorskip("memkit.notebook.extension").expectations
    assert (expectations(), expectations("redis://other")) == (["chat:*=7d"], [])
    monkeypatch.setenv("MEMKIT_LAB_URL", "redis://lab")
    monkeypatch.setenv("MEMKIT_LAB_EXPECT", "cart:*=1d")
    assert [expectations(url) for url in ("", "redis://lab", "redis://other")] == [["cart:*=1d"], ["cart:*=1d"], []]


def test_without_matplotlib_nothing_is_audited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "memkit.plot", None)
    monkeypatch.delattr("memkit.plot", raising=False)
    with pytest.raises(MemkitError, match=r"pip install 'redis-memkit\[lab\]'"):
        html_report.write_html_report("redis://127.0.0.1:1/0", output=tmp_path / "report.html")


def test_invalid_arguments_write_no_page(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="expected PATTERN=TTL"):
        html_report.write_html_report(None, expect=["chat"], output=tmp_path / "report.html")
    with pytest.raises(redis.ConnectionError):
        html_report.write_html_report("redis://127.0.0.1:1/0", output=tmp_path / "report.html")
    with pytest.raises(MemkitError, match="is a folder; give -o the name of a file"):
        html_report.write_html_report(None, output=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_notebook_asks_for_an_expectation(server: RedisServer) -> None:
    with server.client() as client:
        for number in range(60):
            client.set(f"chat:{NAME}-{number}", "{}", ex=604_800 if number < 20 else 300)
    with pytest.raises(triage.ExpectationNeeded, match="Which TTL should these sessions have") as asked:
        triage.examine(server.url)
    assert "  chat:*: 60 keys (string 60)" in str(asked.value)
    assert asked.value._render_traceback_() == str(asked.value).splitlines()


def test_affected_sessions_are_hashed_or_revealed(server: RedisServer) -> None:
    with server.client() as client:
        for number in range(60):
            client.set(f"chat:{NAME}-{number}", "{}", ex=604_800 if number < 20 else 300)
    report = audit(server.url)
    table = triage.affected(report)
    assert (len(table.rows), table.total) == (triage.MAX_ROWS, 60)
    assert NAME not in table.to_html()
    assert {row[3] for row in table.rows} <= {"5m", "5m 1s", "4m 59s"}
    assert f"chat:{NAME}-" in triage.affected(report, reveal=True).rows[0][0]
    with server.client() as client:
        client.set("chat:🦊\x1b[2J", "{}", ex=60)
    name = triage.affected(audit(server.url), reveal=True).rows[0][0]
    assert name.startswith("chat:🦊")
    assert name.isprintable()


def test_evicted_keys_are_none_of_those_checked(server: RedisServer) -> None:
    with server.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("maxmemory", client.info("memory")["used_memory"] + 300_000)
        for n in range(400):
            client.set(f"cache:{n}", "x" * 4_000, ex=900)
    report = audit(server.url, expect={"chat:*": "7d"}, duty=1)
    assert report.verdict.cause == "evicted"
    assert f"<dt>affected keys</dt><dd>{report.findings[0].keys:,}</dd>" in html_report.page(report)


def test_locks_are_no_affected_sessions() -> None:
    world = draw_world("locks_under_the_prefix", 3, 40)
    with world.played() as server:
        report = audit(server.url, expect=world.expect, duty=1)
    assert report.ignored
    assert [row[0] for row in triage.affected(report, reveal=True).rows if row[0].endswith(":lock")] == []
    alt = plot.show(plot.plot_ttl_now(report)).alt
    assert "0% of " in alt
    assert "have less than 10m left" in alt


def test_timeline_of_a_session_from_a_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "appendonly.aof"
    words = (b"SET", b"chat:user-42", TEXT.encode(), b"PXAT", b"1732500300000")
    log.write_bytes(b"#TS:1732500000\r\n*5\r\n" + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words))
    shown = triage.timeline(str(log), "user-42")
    assert "user-42" in shown.alt
    assert TEXT not in shown.alt
    assert triage.timeline("", "user-42") is None
    assert "memkit record" in capsys.readouterr().out
