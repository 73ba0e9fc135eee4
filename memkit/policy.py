"""TTLs in the units that people write, and the expiry policy of a store. No I/O."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, NamedTuple

from memkit.errors import PolicyError

Duration = int | float | str | timedelta
"""A bare number is seconds, as in redis-py; a string is ``"7d"``, ``"36h"``, ``"5m"``, ``"90s"`` or ``"1500ms"``."""

UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
MAX_TTL_MS = 10**14
"""3,170 years. Redis refuses deadlines beyond 2**63 ms; anything near that is a unit mistake."""

_EXPECTED = "expected seconds, a string such as '7d' or a timedelta"
_TEXT = re.compile(r"([+-]?\d+(?:\.\d+)?) ?(ms|s|m|h|d|w)", re.ASCII)


def duration_ms(value: Duration) -> float:
    """Return a duration in milliseconds, with fractions. It may be negative: time can be moved back.

    Raises:
        PolicyError: The value is not a duration; the message names the value and the unit it was read in.
    """
    if isinstance(value, timedelta):
        return value / timedelta(milliseconds=1)
    if isinstance(value, str):
        match = _TEXT.fullmatch(value.strip())
        if not match:
            units = "a string is a number and a unit: 7d, 36h, 5m, 90s or 1500ms"
            raise PolicyError(f"{_EXPECTED}; got str {value!r}; {units}")
        return float(match[1]) * UNIT_MS[match[2]]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PolicyError(f"{_EXPECTED}; got {type(value).__name__} {value!r}")
    try:
        seconds = float(value)
    except OverflowError:
        seconds = math.inf
    if not math.isfinite(seconds):
        raise PolicyError(f"{value!r} seconds is not a duration; it must be finite (None: never expires)")
    return seconds * 1000


def ttl_ms(value: Duration) -> int:
    """Return a TTL in whole milliseconds, at least 1.

    Raises:
        PolicyError: The value is zero, negative, not finite, a bool, or over 3,170 years; the message names the value
            and the unit it was read in.
    """
    exact = duration_ms(value)
    shown = f"{value!r} seconds" if isinstance(value, int | float) else f"{value!r}"
    if exact <= 0:
        raise PolicyError(f"a TTL of {shown} would expire at once; it must be above zero (None: never expires)")
    if round(exact) < 1:
        raise PolicyError(f"a TTL of {shown} is under a millisecond, the shortest TTL of Redis")
    if exact > MAX_TTL_MS:
        raise PolicyError(f"a TTL of {shown} is over 3,170 years: check the unit (None: never expires)")
    return round(exact)


def ttl_text(ms: float) -> str:
    """Return milliseconds as ``duration_ms`` reads them back: ``7d``, ``36h``, ``1500ms``, in the largest exact unit.

    ``render.duration`` is for people.
    """
    if abs(ms) < 1:
        return f"{ms:g}ms"
    whole = round(ms)
    for unit in ("d", "h", "m", "s"):
        if whole % UNIT_MS[unit] == 0:
            return f"{whole // UNIT_MS[unit]}{unit}"
    return f"{whole}ms"


FINEST_JITTER = 0.01
"""Deadlines that clients compute vary by the time that a write takes."""
JITTER = 0.10
"""Many applications spread deadlines by up to this share of the TTL, so that keys do not expire together."""
APART_MS, APART_SHARE = 5_000, 0.01
"""Parts of one session that are written by commands of their own end milliseconds apart; a slow answer may lie between
two writes."""
BOTH_WAYS = 2.2
"""With a jitter either way two parts end up to twice that apart, and the longer TTL has the longer jitter."""
IDLE_TIMES_APART_MS = 3_000
"""The difference of two idle times, each off by up to a second at both ends."""
IDLE_TIMES_APART_SHARE = 0.002
"""The same for large gaps, as a share of them: three minutes of a day."""


class PartEnd(NamedTuple):
    """When a part of a session ends, and when it was written or read last (None: unknown); milliseconds since 1970."""

    deadline_ms: int
    accessed_ms: int | None = None


def ends_apart(early: PartEnd, late: PartEnd, ttls_ms: Sequence[int], *, jitter: float = JITTER) -> bool:
    """Return whether two parts of one session have mixed TTLs: their deadlines are too far apart for one write.

    Args:
        early: The part that ends first.
        late: The part that ends last.
        ttls_ms: The configured TTL, or several on purpose; if it is unknown, the longest observed one.
        jitter: How far each TTL may differ from the configured one, as a share of it, either way.
    """
    gap = late.deadline_ms - early.deadline_ms
    longest = max(ttls_ms)
    on_purpose = {abs(one - other) for one in ttls_ms for other in ttls_ms}
    if any(abs(gap - one) <= max(APART_MS, APART_SHARE * longest) for one in on_purpose):
        return False
    if gap > BOTH_WAYS * jitter * longest or early.accessed_ms is None or late.accessed_ms is None:
        return gap > BOTH_WAYS * jitter * longest
    # Within the jitter: the parts were renewed apart if the later one was also accessed later by as much.
    return abs((late.accessed_ms - early.accessed_ms) - gap) <= max(IDLE_TIMES_APART_MS, IDLE_TIMES_APART_SHARE * gap)


@dataclass(frozen=True, slots=True)
class ExpiryPolicy:
    """The configured TTL of a store's sessions, and what renews it.

    Args:
        kind: ``"sliding"`` (renewed by every write), ``"absolute"`` (set once, when the session is created) or
            ``"never"``.
        ttl_ms: The TTL in milliseconds; None for ``"never"`` and only then.
        refresh_on_read: Reads renew the TTL too; only with ``"sliding"``.

    Raises:
        PolicyError: The arguments do not fit together.
    """

    kind: Literal["sliding", "absolute", "never"]
    ttl_ms: int | None = None
    refresh_on_read: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ("sliding", "absolute", "never"):
            raise PolicyError(f"{self.kind!r} is not a kind of expiry; expected sliding, absolute or never")
        if (self.kind == "never") != (self.ttl_ms is None):
            raise PolicyError(
                f"got kind={self.kind!r} with ttl_ms={self.ttl_ms!r}: kind='never' does not take ttl_ms; 'sliding' and "
                "'absolute' require it"
            )
        if self.refresh_on_read and self.kind != "sliding":
            raise PolicyError(f"refresh_on_read needs a sliding policy, not {self.kind}")

    @classmethod
    def sliding(cls, ttl: Duration, *, refresh_on_read: bool = False) -> ExpiryPolicy:
        """Return a policy that every write renews.

        Args:
            ttl: Seconds, a string such as ``"7d"``, or a timedelta.
            refresh_on_read: Reads renew the TTL too.

        Raises:
            PolicyError: The TTL is invalid.
        """
        return cls("sliding", ttl_ms(ttl), refresh_on_read)

    @classmethod
    def absolute(cls, ttl: Duration) -> ExpiryPolicy:
        """Return a policy with a deadline that is set once, when the session is created.

        Args:
            ttl: Seconds, a string such as ``"1h"``, or a timedelta.

        Raises:
            PolicyError: The TTL is invalid.
        """
        return cls("absolute", ttl_ms(ttl))

    @classmethod
    def never(cls) -> ExpiryPolicy:
        """Return the policy of sessions that do not expire."""
        return cls("never")

    @classmethod
    def of(cls, ttl: Duration | ExpiryPolicy | None) -> ExpiryPolicy:
        """Return the policy for a ``ttl=`` argument.

        Args:
            ttl: A policy, which is returned unchanged; None, which never expires; or a duration, which is sliding.

        Raises:
            PolicyError: The TTL is invalid.
        """
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
        return f"{self.kind} {ttl_text(self.ttl_ms)}{', renewed by reads' if self.refresh_on_read else ''}"
