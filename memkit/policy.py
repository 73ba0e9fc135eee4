"""What expiry was meant: TTLs in the units people write, and the policy that a store gives its sessions. No I/O."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from memkit.errors import PolicyError

Duration = int | float | str | timedelta
"""A bare number is seconds (as redis-py's ``ex``); text is ``"7d"``, ``"36h"``, ``"5m"``, ``"90s"``, ``"1500ms"``."""

UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
MAX_TTL_MS = 10**14
"""3,170 years. Redis refuses deadlines beyond 2**63 ms; anything near that is a unit mistake."""

_TEXT = re.compile(r"([+-]?\d+(?:\.\d+)?) ?(ms|s|m|h|d|w)", re.ASCII)


def duration_ms(value: Duration) -> float:
    """Return a duration in milliseconds; negative ones are allowed (time can be moved back).

    Raises PolicyError, naming the value and the unit it was read in.
    """
    if isinstance(value, timedelta):
        return value / timedelta(milliseconds=1)
    if isinstance(value, str):
        match = _TEXT.fullmatch(value.strip())
        if not match:
            raise PolicyError(f"{value!r} is not a duration; write a number and a unit: 7d, 36h, 5m, 90s or 1500ms")
        return float(match[1]) * UNIT_MS[match[2]]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PolicyError(
            f"{value!r} is no duration but {type(value).__name__}; give seconds, a text such as '7d' or a timedelta"
        )
    try:
        seconds = float(value)
    except OverflowError:
        seconds = math.inf
    if not math.isfinite(seconds):
        raise PolicyError(f"{value!r} seconds is not a duration; it must be finite (None means: never expires)")
    return seconds * 1000


def ttl_ms(value: Duration) -> int:
    """Return a TTL in whole milliseconds, at least 1.

    Raises PolicyError for zero, negative, NaN, bool and absurd values, naming the value and the unit it was read in.
    """
    exact = duration_ms(value)
    seen = f"{value!r} seconds" if isinstance(value, int | float) else f"{value!r}"
    if exact <= 0:
        raise PolicyError(f"a TTL of {seen} would expire at once; it must be above zero (None means: never expires)")
    if round(exact) < 1:
        raise PolicyError(f"a TTL of {seen} is under a millisecond, the least that Redis can keep")
    if exact > MAX_TTL_MS:
        raise PolicyError(f"a TTL of {seen} is over 3,170 years: is the unit right? (None means: never expires)")
    return round(exact)


def human(ms: float) -> str:
    """Return a duration as people write it: ``7d``, ``36h``, ``5m``, ``90s``, ``1500ms``; the largest exact unit."""
    if abs(ms) < 1:
        return f"{ms:g}ms"
    whole = round(ms)
    for unit in ("d", "h", "m", "s"):
        if whole % UNIT_MS[unit] == 0:
            return f"{whole // UNIT_MS[unit]}{unit}"
    return f"{whole}ms"


@dataclass(frozen=True, slots=True)
class ExpiryPolicy:
    """How long a session is meant to live, and what renews it.

    ``kind`` is ``"sliding"`` (renewed by every write, and by reads with ``refresh_on_read``), ``"absolute"`` (set once,
    when the session is created) or ``"never"``; ``ttl_ms`` is None for the last alone.
    """

    kind: Literal["sliding", "absolute", "never"]
    ttl_ms: int | None = None
    refresh_on_read: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ("sliding", "absolute", "never"):
            raise PolicyError(f"{self.kind!r} is not a kind of expiry; expected sliding, absolute or never")
        if (self.kind == "never") != (self.ttl_ms is None):
            raise PolicyError(f"a {self.kind} policy with ttl_ms={self.ttl_ms!r} contradicts itself")
        if self.refresh_on_read and self.kind != "sliding":
            raise PolicyError(f"refresh_on_read needs a sliding policy, not {self.kind}")

    @classmethod
    def sliding(cls, ttl: Duration, *, refresh_on_read: bool = False) -> ExpiryPolicy:
        """Return a policy that every write renews (and every read, if asked for)."""
        return cls("sliding", ttl_ms(ttl), refresh_on_read)

    @classmethod
    def absolute(cls, ttl: Duration) -> ExpiryPolicy:
        """Return a policy whose deadline is set once, when the session is created."""
        return cls("absolute", ttl_ms(ttl))

    @classmethod
    def never(cls) -> ExpiryPolicy:
        """Return the policy of sessions that do not expire."""
        return cls("never")

    @classmethod
    def of(cls, ttl: Duration | ExpiryPolicy | None) -> ExpiryPolicy:
        """Return what a bare ``ttl=`` means: a policy as it is, None never expires, anything else is sliding."""
        if isinstance(ttl, ExpiryPolicy):
            return ttl
        return cls.never() if ttl is None else cls.sliding(ttl)

    @property
    def ttl_s(self) -> float | None:
        """The TTL in seconds, or None for never."""
        return None if self.ttl_ms is None else self.ttl_ms / 1000

    def __str__(self) -> str:
        if self.ttl_ms is None:
            return "never expires"
        return f"{self.kind} {human(self.ttl_ms)}{', renewed by reads' if self.refresh_on_read else ''}"
