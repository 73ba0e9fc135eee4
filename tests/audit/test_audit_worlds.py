"""Healthy worlds of many kinds raise no alarm, and a world with one fault is never called healthy."""

from __future__ import annotations

import pytest
from worlds import FAULTS, HEALTHY, draw_world, false_alarms

SEED = 20_261_129
"""The same worlds in each run; ``tests/stress/audit_worlds.py`` draws others each time."""


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_world_raises_no_alarm(name: str) -> None:
    report = draw_world(name, SEED).audited()
    assert false_alarms(report) == [], f"draw_world({name!r}, {SEED}): {report.verdict.sentence}"


@pytest.mark.parametrize("count", [1, 30])
@pytest.mark.parametrize("name", FAULTS)
def test_world_with_a_fault_is_not_healthy(name: str, count: int) -> None:
    report = draw_world(name, SEED, count).audited()
    assert report.verdict.status != "healthy", f"draw_world({name!r}, {SEED}, {count}): {report.verdict.sentence}"


@pytest.mark.parametrize("name", ["five_minutes", "no_ttl", "not_renewed", "flushed"])
def test_large_world_with_a_fault_is_not_healthy(name: str) -> None:
    report = draw_world(name, SEED, 3_000).audited()
    assert report.verdict.status in ("findings", "no_data"), (
        f"draw_world({name!r}, {SEED}, 3_000): {report.verdict.sentence}"
    )


@pytest.mark.parametrize(
    ("name", "seed"),
    [
        ("deadlines_of_clients", 639_017),
        ("throttled_renewal", 809_134),
        ("read_at_one_age", 599_797),
        ("job_at_one_age", 217_912),
    ],
)
def test_healthy_world_that_raised_an_alarm_once(name: str, seed: int) -> None:
    assert false_alarms(draw_world(name, seed).audited()) == []
