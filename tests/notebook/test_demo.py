"""The demo incident, as the lab replays and continues it."""

from __future__ import annotations

import pytest
from waiting import wait_for

from memkit.audit import audit
from memkit.errors import SourceError
from memkit.notebook.demo import continue_incident, demo_server, load_incident, record_incident


def verdict(url: str) -> str:
    return audit(url, expect={"chat:*": "7d"}).verdict.cause


def test_the_audit_finds_it_while_it_continues() -> None:
    with demo_server() as server:
        incident = load_incident(server)
        assert verdict(incident.url) == "ttl_too_short"
        server.clock.shift("6m")
        assert verdict(incident.url) != "ttl_too_short"
        ended = continue_incident(incident.url, every_s=0.005)
        wait_for("a short TTL", lambda: verdict(incident.url), lambda cause: cause == "ttl_too_short")
        ended.set()


def test_a_recording_that_cannot_be_made_is_an_error(tmp_path):
    with pytest.raises(SourceError, match="the recording cannot be made"):
        record_incident(tmp_path / "missing")
