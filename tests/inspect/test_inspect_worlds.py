"""Sessions of healthy worlds: inspect reports no problem if the audit reports none."""

from __future__ import annotations

import random

import pytest
from worlds import draw_world

from memkit.inspect import inspect_session

KEYS = 8


@pytest.mark.parametrize(
    "name",
    [
        *(
            "of_hashs",
            "two_parts",
            "counters_of_sessions",
            "field_ttls",
            "spring_session",
            "jitter",
            "gzip",
            "channels",
        ),
        *("encoding_changed", "restarted_2_hours_ago", "throttled_renewal", "absolute_deadlines", "migrated_by_copy"),
        *("two_ttls_on_purpose", "never", "binary_names", "one_year"),
    ],
)
def test_session_of_a_healthy_world_has_no_problem(name: str) -> None:
    world = draw_world(name, 77, 12)
    with world.played() as server, server.client() as client:
        names = sorted(client.scan_iter("*", count=1000))
        for key in random.Random(77).sample(names, min(KEYS, len(names))):
            assert inspect_session(server.url, key, expect=world.expect).problems == ()
