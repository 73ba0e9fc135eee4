"""Logs without timestamps: what is stated about a TTL or a time is true, and what no fact shows is a bound."""

from __future__ import annotations

import os
from contextlib import ExitStack

import pytest
from test_history import logging
from test_replication import in_step, pair

from memkit.history.run import History, history

WEEK_S, HOUR_S = 604_800, 3_600
Steps = list[int | str]
"""A number is a write with that TTL in seconds, a text moves the clock."""


def dense(ttl_s: int, writes: int = 10, every: str = "1s") -> Steps:
    return [ttl_s, every] * writes


def history_of(source: str, steps: Steps, expect: str, session: str | None = None) -> History:
    """Return the history of a server that got these writes, to chat:0, chat:1 …; its log ends when it is read."""
    with ExitStack() as stack:
        if source == "aof":
            server = stack.enter_context(logging("redis-8.2", **{"aof-timestamp-enabled": "no"}))
        else:
            server, replica = stack.enter_context(pair("valkey-9", **{"repl-timeout": 10**6}))
            stack.enter_context(server.clock.together_with([replica.clock]))
        client = stack.enter_context(server.client())
        for number, step in enumerate(steps):
            if isinstance(step, int):
                client.set(f"chat:{number}", "v", px=step * 1_000)
            else:
                server.clock.shift(step)
        if source == "aof":
            now = server.clock.now().timestamp()
            for path in [server.directory / "appendonlydir", *(server.directory / "appendonlydir").iterdir()]:
                os.utime(path, (now, now))
            return history(server.directory, session=session, expect={"*": expect})
        in_step(client, stack.enter_context(replica.client()))
        return history(replica.url, session=session, expect={"*": expect}, replication="replica")


CHANGES: dict[str, tuple[Steps, str, list[tuple[int, int | None, tuple[int, int] | None]]]] = {
    # name: the steps, the expected TTL, and from which TTL to which, or between which
    "5 min in dense traffic": (dense(WEEK_S) + dense(300), "7d", [(WEEK_S, 300, None)]),
    "1 d in dense traffic": (dense(WEEK_S, every="1m") + dense(86_400, every="1m"), "7d", [(WEEK_S, 86_400, None)]),
    "5 min, then a rollback": (
        dense(WEEK_S) + dense(300) + dense(WEEK_S),
        "7d",
        [(WEEK_S, 300, None), (300, WEEK_S, None)],
    ),
    "1 h after an hour of silence": (
        [*dense(WEEK_S, every="1m"), "1h", HOUR_S],
        "7d",
        [(WEEK_S, None, (3_600, 7_260))],
    ),
    "5 min, six minutes apart": (dense(WEEK_S, 2, "6m") + dense(300, 4, "6m"), "7d", [(WEEK_S, None, (0, 660))]),
    "5 min, three hours before the end": ([*dense(WEEK_S), *dense(300), "3h"], "7d", [(WEEK_S, None, (0, 301))]),
    "5 min before the log began": (dense(300), "7d", []),
    "5 min after a silence over the TTL": ([*dense(HOUR_S), "2h", *dense(300)], "1h", []),
    "silent nights": ([*dense(86_400), "8h", *dense(86_400), "8h", *dense(86_400)], "1d", []),
    "one longer TTL": ([*dense(HOUR_S, every="1m"), 2 * HOUR_S, *dense(HOUR_S, 80, "1m")], "1h", []),
    "several TTLs": ([300, WEEK_S, "1s", 300, 300, WEEK_S, "5s", WEEK_S, 300, "1s"] * 3, "5m|7d", []),
    "a clock that was set back": ([*dense(WEEK_S), "-2h", *dense(WEEK_S)], "7d", []),
}


@pytest.mark.parametrize("source", ["aof", "backlog"])
@pytest.mark.parametrize("name", CHANGES)
def test_ttl_that_is_not_known_is_a_bound(name: str, source: str) -> None:
    steps, expect, expected = CHANGES[name]
    found = history_of(source, steps, expect).to_dict()["changes"]
    ranges = [one["to_ttl_between_s"] and tuple(map(round, one["to_ttl_between_s"])) for one in found]
    assert [(one["from_ttl_s"], one["to_ttl_s"]) for one in found] == [(was, is_) for was, is_, _ in expected]
    assert ranges == [between for _, _, between in expected]


def test_bound_of_a_ttl_is_text() -> None:
    steps: Steps = [*dense(WEEK_S), "1h", HOUR_S]
    assert "7d → 1h to 2h between" in history_of("aof", steps, "7d").to_text()
    found = history_of("aof", steps, "7d", session="21")
    assert "written by SET, TTL 1h to 2h" in " ".join(found.to_text().split())
    assert found.to_dict()["events"][0]["ttl_s"] is None


@pytest.mark.parametrize(("ttl_s", "stated"), [(WEEK_S, WEEK_S), (300, None)])
def test_backlog_states_only_a_ttl_that_was_given(ttl_s: int, stated: int | None) -> None:
    """A deadline in 5 minutes may be from a write with 7 d nearly a week ago: where the log begins is not known."""
    fate = history_of("backlog", dense(ttl_s), "7d", session="0").fate
    assert fate is not None
    assert (fate.ttl_s, fate.ttl_set_at is None) == (stated, stated is None)
