"""What expiry was meant: units, refusals, and how a policy reads."""

from __future__ import annotations

import math
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memkit.errors import MemkitError, PolicyError
from memkit.policy import MAX_TTL_MS, UNIT_MS, ExpiryPolicy, duration_ms, human, ttl_ms


@pytest.mark.parametrize(
    ("value", "expected_ms"),
    [
        (300, 300_000),
        (0.25, 250),
        ("7d", 604_800_000),
        ("36h", 129_600_000),
        ("5m", 300_000),
        ("90s", 90_000),
        ("1500ms", 1_500),
        ("2w", 1_209_600_000),
        (" 1.5 h ", 5_400_000),
        (timedelta(days=7), 604_800_000),
        (timedelta(milliseconds=1), 1),
        (0.001, 1),
    ],
)
def test_a_bare_number_is_seconds_and_a_text_says_its_unit(value: Any, expected_ms: int) -> None:
    assert ttl_ms(value) == expected_ms


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (0, "0 seconds"),
        (-5, "-5 seconds"),
        (-0.0, "-0.0 seconds"),
        (math.nan, "nan seconds"),
        (math.inf, "inf seconds"),
        (10**400, "seconds is not a duration"),
        (True, "True is no duration but bool"),
        (None, "None is no duration but NoneType"),
        (Decimal(5), "is no duration but Decimal"),
        (b"7d", "is no duration but bytes"),
        ("", "'' is not a duration"),
        ("300", "'300' is not a duration; write a number and a unit"),
        ("7 days", "'7 days' is not a duration"),
        ("7D", "'7D' is not a duration"),
        ("٧d", "is not a duration"),
        ("1e3s", "is not a duration"),
        ("-7d", "'-7d'"),
        ("0s", "'0s'"),
        (timedelta(0), "datetime.timedelta(0)"),
        (0.0004, "0.0004 seconds is under a millisecond"),
        (604_800_000_000, "604800000000 seconds is over 3,170 years: is the unit right?"),
    ],
)
def test_what_cannot_be_meant_is_refused_naming_value_and_unit(value: Any, says: str) -> None:
    with pytest.raises(PolicyError) as caught:
        ttl_ms(value)
    assert says in str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, MemkitError)


@given(st.integers(1, MAX_TTL_MS))
def test_what_human_writes_means_the_same(ms: int) -> None:
    assert ttl_ms(human(ms)) == ms


@given(st.integers(1, 10_000), st.sampled_from(sorted(UNIT_MS)))
def test_units_are_exact(number: int, unit: str) -> None:
    assert duration_ms(f"{number}{unit}") == duration_ms(f"-{number}{unit}") * -1 == number * UNIT_MS[unit]


def test_a_bare_ttl_means_sliding_and_none_means_never() -> None:
    assert ExpiryPolicy.of("7d") == ExpiryPolicy.sliding("7d") == ExpiryPolicy("sliding", 604_800_000)
    assert ExpiryPolicy.of(None) == ExpiryPolicy.never()
    absolute = ExpiryPolicy.absolute("1h")
    assert ExpiryPolicy.of(absolute) is absolute
    assert (absolute.ttl_s, ExpiryPolicy.never().ttl_s) == (3600.0, None)


@pytest.mark.parametrize(
    ("policy", "reads"),
    [
        (ExpiryPolicy.sliding("7d"), "sliding 7d"),
        (ExpiryPolicy.sliding("5m", refresh_on_read=True), "sliding 5m, renewed by reads"),
        (ExpiryPolicy.absolute("1500ms"), "absolute 1500ms"),
        (ExpiryPolicy.never(), "never expires"),
    ],
)
def test_a_policy_reads_as_people_write_it(policy: ExpiryPolicy, reads: str) -> None:
    assert str(policy) == reads


@pytest.mark.parametrize(
    "make",
    [
        lambda: ExpiryPolicy("weekly", 1),  # type: ignore[arg-type]
        lambda: ExpiryPolicy("sliding"),
        lambda: ExpiryPolicy("never", 5),
        lambda: ExpiryPolicy("absolute", 5, refresh_on_read=True),
        lambda: ExpiryPolicy.absolute(0),
        lambda: ExpiryPolicy.sliding("-1s"),
    ],
)
def test_policies_that_contradict_themselves_are_refused(make: Any) -> None:
    with pytest.raises(PolicyError):
        make()
