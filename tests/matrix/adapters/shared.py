"""What several adapters need: TTLs in a library's unit, and an event loop for asynchronous stores."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


def whole_seconds(ttl_s: float | None) -> int | None:
    """Return a TTL for a library that takes whole seconds; ValueError for a fraction."""
    if ttl_s is None or ttl_s == int(ttl_s):
        return None if ttl_s is None else int(ttl_s)
    raise ValueError(f"this library takes whole seconds, not {ttl_s}")


class Loop:
    """An event loop of a handle's own, run only while one of its methods is called."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine to its end."""
        return self._loop.run_until_complete(work)

    def close(self) -> None:
        """Close the loop."""
        self._loop.close()
