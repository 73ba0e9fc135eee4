"""Hashes with TTLs of their fields (Redis 7.4, Valkey 9): when such a key ends, and which fields lack one."""

from collections.abc import Callable, Sequence

from memkit.audit.sampling import KeyFacts
from memkit.readonly.connection import ReadOnlyConnection
from memkit.readonly.reader import field_deadlines

HASHES = 1_000
"""As many hashes are looked at: a share of them is known to 4 %."""


def with_field_deadlines(
    keys: Sequence[KeyFacts], route: Callable[[bytes], ReadOnlyConnection]
) -> tuple[list[KeyFacts], dict[bytes, tuple[int, int]], list[KeyFacts]]:
    """Return the keys, hashes that end with their last field with that deadline, and what ends otherwise.

    A hash without a field that can be read has expired.

    Args:
        keys: The keys; of those that are hashes, the first 1,000 are looked at. If some have fields with TTLs, the
            others that have no TTL themselves are left out: they may end with their fields.
        route: Returns the connection for a key.

    Returns:
        The keys; for each hash in which only some fields have a TTL, how many have none, of how many; and the hashes
        of which a field ends before the key, with the deadline of the first such field.
    """
    deadlines: dict[bytes, int] = {}
    without: dict[bytes, tuple[int, int]] = {}
    first: list[KeyFacts] = []
    expired: set[bytes] = set()
    hashes = [one for one in keys if one.kind == "hash"]
    for one in hashes[:HASHES]:
        key, end = one.key, one.deadline_ms
        times = field_deadlines(route(key), key)
        if times is None:
            expired.add(key)
            continue
        if lacking := sum(at <= 0 for at in times):
            without[key] = (lacking, len(times))
        elif times:
            end = deadlines[key] = max(times) if end is None else min(end, max(times))
        earliest = min((at for at in times if at > 0), default=None)
        if earliest is not None and (end is None or earliest < end):
            first.append(one._replace(deadline_ms=earliest))
    others = hashes[HASHES:] if deadlines or without else []
    unknown = expired.union(one.key for one in others if one.deadline_ms is None)
    known = [one._replace(deadline_ms=deadlines.get(one.key, one.deadline_ms)) for one in keys]
    return [one for one in known if one.key not in unknown], without, first
