"""The demo incident: what the lab opens with, for as long as it is open."""

from __future__ import annotations

from waiting import wait_for

from memkit.audit import audit
from memkit.notebook.demo import demo_server, keep_talking, load_incident


def verdict(url: str) -> str:
    return audit(url, expect={"chat:*": "7d"}).verdict.cause


def test_it_is_found_and_goes_on_while_people_talk() -> None:
    with demo_server() as server:
        incident = load_incident(server)
        assert verdict(incident.url) == "ttl_too_short"
        server.clock.shift("6m")
        assert verdict(incident.url) != "ttl_too_short"
        over = keep_talking(incident.url, every_s=0.005)
        wait_for("a short TTL", lambda: verdict(incident.url), lambda cause: cause == "ttl_too_short")
        over.set()
