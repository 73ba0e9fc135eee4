"""Logs of healthy worlds: the TTL of a prefix changes in none of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from worlds import draw_world

from memkit.history.run import history


@pytest.mark.parametrize(
    "name",
    [
        *("of_lists", "jitter", "locks_under_the_prefix", "two_ttls_on_purpose", "migrated_by_restore", "buffers"),
        *("migrated_by_copy", "spring_session", "lazy_migration", "drafts", "never_with_locks", "deadlines_of_clients"),
    ],
)
def test_ttl_changes_in_no_healthy_world(name: str) -> None:
    world = draw_world(name, 31, 40)
    world.config["aof-timestamp-enabled"] = "yes"
    with world.played() as server, server.client(decode_responses=True) as client:
        log = Path(client.config_get("dir")["dir"]) / client.config_get("appenddirname")["appenddirname"]
        found = history(log, expect=world.expect)
    assert found.changes == ()
    assert "exists" in next(iter(found.fates.values()))
