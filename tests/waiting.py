"""Waiting for what another process or thread does: one helper, which reports what it waited for and what it saw."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Seen = TypeVar("Seen")

WITHIN_S = 120.0
"""Decides that something hangs, and nothing else: what the tests wait for takes 0.01 to 15 s on two idle cores."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.01, 0.1
"""What takes seconds is looked at less and less often: looks at a cluster took a third of the CPU of its tests."""


def wait_for(
    what: str, look: Callable[[], Seen], enough: Callable[[Seen], object] = bool, *, within_s: float = WITHIN_S
) -> Seen:
    """Look again and again until what is seen is enough; return it.

    Args:
        what: what is expected, as a noun phrase: "a replica that has caught up".
        look: returns what there is now. It is reported when it is never enough.
        enough: whether that is what is expected.
        within_s: seconds until an AssertionError is raised.
    """
    deadline, pause_s = time.monotonic() + within_s, FIRST_PAUSE_S
    while not enough(seen := look()):
        assert time.monotonic() < deadline, f"waited {within_s:g} s for {what}; last seen: {seen!r}"
        time.sleep(pause_s)
        pause_s = min(1.2 * pause_s, LONGEST_PAUSE_S)
    return seen


def nothing(seen: object) -> bool:
    """Whether nothing is left of what is looked for, for ``enough``."""
    return not seen
