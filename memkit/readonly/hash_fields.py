"""TTLs of the fields of hashes (Redis 7.4, Valkey 9)."""

from __future__ import annotations

from collections.abc import Sequence

from memkit.readonly.connection import ReadOnlyConnection, Reply, refused

FIELDS = 1_000
"""Of a hash as many fields are looked at."""


def field_deadlines(connection: ReadOnlyConnection, key: bytes) -> Sequence[int]:
    """Return the deadlines of a hash's fields in ms since 1970, 0 or less for a field without one.

    Empty if no field has one, or if the server does not report it.
    """
    page = connection.ask("HSCAN", key, 0, "COUNT", FIELDS, "NOVALUES")
    names = [] if refused(page) else page[1][:FIELDS]
    times: Reply = connection.ask("HPEXPIRETIME", key, "FIELDS", len(names), *names) if names else []
    return [] if refused(times) or not times or max(times) <= 0 else times
