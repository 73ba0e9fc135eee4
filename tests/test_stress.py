"""The short forms of tests/stress: exactly once while everything goes wrong, controls that must fail, histories."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from servers import one_lane
from stress.exactly_once import CONTROLS, Plan, run_standalone
from stress.ttl_histories import confidence_of, draw_history

SHORT = Plan(one_lane(), seconds=3, acknowledged=100, faults=20, writers=4, rate=0.05)


@pytest.mark.parametrize("writer", ["sync", "async"])
def test_exactly_once_while_everything_goes_wrong(writer: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = run_standalone(replace(SHORT, writer=writer))  # type: ignore[arg-type]
    with capsys.disabled():
        print(f"\n{SHORT.server} {writer}: {result}")
    assert result.clean, result


@pytest.mark.parametrize("fault", sorted(CONTROLS))
def test_stress_finds_each_known_fault(fault: str) -> None:
    for seed in range(5):
        result = run_standalone(replace(CONTROLS[fault], server=one_lane(), seconds=0.8, acknowledged=50, seed=seed))
        if not result.clean:
            return
    pytest.fail(f"{fault}, but it was not seen: {result}")


@pytest.mark.parametrize("short", [False, True])
def test_short_ttls_are_found_in_drawn_histories(short: bool) -> None:
    drawn = [analysis for seed in range(500) if (analysis := draw_history(seed, short=short))]
    counts = Counter(map(confidence_of, drawn))
    if short:
        assert counts["proven"] + counts["likely"] > 0.75 * len(drawn), counts
    else:
        assert counts["proven"] == 0, counts
        assert counts["likely"] < 0.01 * len(drawn), counts
