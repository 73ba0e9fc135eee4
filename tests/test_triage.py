"""The triage report: made by the notebook, safe to pass on; and the figures in it, in words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from incidents import Incident, draw

from memkit.audit import AuditReport, audit
from memkit.errors import PolicyError
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
    plot = pytest.importorskip("memkit.plot")
    plot_audit = pytest.importorskip("memkit.plot_audit")
    ax = getattr(plot_audit, name)(incident[1])
    shown = plot.show(ax)
    assert len(shown.alt) > 30
    assert ax.get_xlabel()
    assert incident[0].writes[0].key.encode() not in shown.svg
    assert shown.svg.startswith(b"<?xml")


def test_the_report_of_a_live_server_is_safe_to_pass_on(tmp_path: Path) -> None:
    pytest.importorskip("papermill")
    from memkit.triage import triage

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
    for unwanted in (SECRET, NAME, TEXT, "<script", "http://", "https://"):
        assert unwanted not in page


def test_what_cannot_be_done_is_said_before_a_notebook_is_run(tmp_path: Path) -> None:
    from memkit.triage import triage

    with pytest.raises(PolicyError, match="expected PATTERN=TTL"):
        triage(None, expect=["chat"], output=tmp_path / "report.html")
    with pytest.raises(redis.ConnectionError):
        triage("redis://127.0.0.1:1/0", output=tmp_path / "report.html")
    assert not list(tmp_path.iterdir())
