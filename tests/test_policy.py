"""TTLs and policies: units, refusals and texts."""

from __future__ import annotations

import math
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memkit.errors import MemkitError, PolicyError
from memkit.policy import MAX_TTL_MS, UNIT_MS, ExpiryPolicy, duration_ms, ttl_ms, ttl_text


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
def test_a_number_is_seconds_a_string_has_a_unit(value: Any, expected_ms: int) -> None:
    assert ttl_ms(value) == expected_ms


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0, "0 seconds"),
        (-5, "-5 seconds"),
        (-0.0, "-0.0 seconds"),
        (math.nan, "nan seconds"),
        (math.inf, "inf seconds"),
        (10**400, "seconds is not a duration"),
        (True, "got bool True"),
        (None, "got NoneType None"),
        (Decimal(5), "got Decimal"),
        (b"7d", "got bytes"),
        ("", "got str ''"),
        ("300", "got str '300'; a string is a number and a unit"),
        ("7 days", "got str '7 days'"),
        ("7D", "got str '7D'"),
        ("٧d", "got str"),
        ("1e3s", "got str '1e3s'"),
        ("-7d", "'-7d'"),
        ("0s", "'0s'"),
        (timedelta(0), "datetime.timedelta(0)"),
        (0.0004, "0.0004 seconds is under a millisecond"),
        (604_800_000_000, "604800000000 seconds is over 3,170 years: check the unit"),
    ],
)
def test_an_invalid_ttl_names_value_and_unit(value: Any, message: str) -> None:
    with pytest.raises(PolicyError) as caught:
        ttl_ms(value)
    assert message in str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, MemkitError)


@given(st.integers(1, MAX_TTL_MS))
def test_ttl_text_is_read_back(ms: int) -> None:
    assert ttl_ms(ttl_text(ms)) == ms


@given(st.integers(1, 10_000), st.sampled_from(sorted(UNIT_MS)))
def test_units_are_exact(number: int, unit: str) -> None:
    assert duration_ms(f"{number}{unit}") == duration_ms(f"-{number}{unit}") * -1 == number * UNIT_MS[unit]


def test_a_duration_is_sliding_and_none_is_never() -> None:
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
def test_a_policy_as_text(policy: ExpiryPolicy, reads: str) -> None:
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
def test_contradictory_policies_are_refused(make: Any) -> None:
    with pytest.raises(PolicyError):
        make()
