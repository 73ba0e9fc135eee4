"""The short form of tests/stress: exactly once while everything goes wrong, and controls that must fail."""

from __future__ import annotations

from dataclasses import replace

import pytest
from servers import every_server
from stress.exactly_once import CONTROLS, Plan, run_standalone

FIRST = next((name for name in ("redis-8.2", "valkey-9", "redis-7.0") if every_server().get(name)), "redis-8.2")
SHORT = Plan(FIRST, seconds=5, acknowledged=100, faults=20, writers=4, rate=0.05)


@pytest.mark.parametrize("writer", ["sync", "async"])
def test_exactly_once_while_everything_goes_wrong(writer: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = run_standalone(replace(SHORT, writer=writer))  # type: ignore[arg-type]
    with capsys.disabled():
        print(f"\n{FIRST} {writer}: {result}")
    assert result.clean, result


@pytest.mark.parametrize("says", sorted(CONTROLS))
def test_the_harness_sees(says: str) -> None:
    for seed in range(5):
        result = run_standalone(replace(CONTROLS[says], server=FIRST, seconds=0.8, acknowledged=50, seed=seed))
        if not result.clean:
            return
    pytest.fail(f"{says}, but it was not seen: {result}")
