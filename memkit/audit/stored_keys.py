"""The keys of RDB files for an audit that reads no values: read as a stream, without a server, whatever the size."""

import random
from collections.abc import Callable, Sequence

from memkit.audit.sampling import (
    ENOUGH_KEYS,
    ENOUGH_OF_A_PATTERN,
    READ_ALL_UP_TO,
    KeyFacts,
    Progress,
    Reservoir,
    Sample,
)
from memkit.history.snapshots import PROGRESS_EVERY_KEYS, RdbContents
from memkit.readonly.target import Snapshot

ALL_KEYS = int(READ_ALL_UP_TO * ENOUGH_KEYS)
"""If there are hardly more than enough, every key is kept, as ``Sampler`` does."""
HALF_SECOND_MS = 500
"""Saves and idle times are whole seconds of one clock: their difference is the second in which a key was accessed."""
STRING_OVERHEAD_BYTES = 56
"""MEMORY USAGE of Redis 7.0 is 48 to 68 bytes more than the name and the value of a string of up to 1,000 bytes."""


class StoredKeys:
    """Reads the keys of RDB files as ``Sampler`` reads those of servers; each call reads the files once more."""

    def __init__(self, contents: RdbContents, snapshot: Snapshot, progress: Progress | None) -> None:
        self.snapshot = snapshot
        self._contents, self._progress = contents, progress
        self._weights: dict[bytes, int] = {}

    def sample(self) -> Sample:
        """Return a fair sample, or every key if there are hardly more."""
        keys = self._read(ALL_KEYS, lambda _: True)
        of = self.snapshot.keys
        return Sample("scan", of, keys, seen=len(keys), complete=len(keys) == of)

    def more_of(self, sample: Sample, _pattern: str, matches: Callable[[bytes], object]) -> list[KeyFacts]:
        """Return keys of a pattern that the sample has too few of."""
        known = {facts.key for facts in sample.keys if matches(facts.key)}
        found = self._read(ENOUGH_OF_A_PATTERN, lambda name: matches(name) and name not in known)
        sample.seen += len(found)
        return found

    def look_up(self, names: Sequence[bytes]) -> list[KeyFacts]:
        """Return the facts of those of the named keys that exist."""
        return self._read(len(names), frozenset(names).__contains__) if names else []

    def value_bytes(self, names: Sequence[bytes]) -> dict[bytes, int]:
        """Return the bytes that the values take, 0 for an integer; of those keys that are strings."""
        return {name: self._weights[name] for name in names if name in self._weights}

    def _read(self, most: int, wanted: Callable[[bytes], object]) -> list[KeyFacts]:
        """Return the wanted keys, or a fair part of them if there are more than so many."""
        reservoir = Reservoir(most, random.Random())  # noqa: S311  # a sample, not a secret
        now_ms, idle_times = self._contents.now_ms, self.snapshot.has_idle_times
        for done, (key, saved_ms) in enumerate(self._contents.keys(self.snapshot.database)):
            if self._progress and done % PROGRESS_EVERY_KEYS == 0:
                self._progress(done, self.snapshot.keys)
            if wanted(key.name) and reservoir.picks(1):
                touched_ms = None
                if idle_times and key.idle_s is not None:
                    touched_ms = saved_ms - key.idle_s * 1_000 + HALF_SECOND_MS
                weight = None if key.string_bytes is None else key.string_bytes + STRING_OVERHEAD_BYTES
                reservoir.put(KeyFacts(key.name, key.kind, key.deadline_ms, touched_ms, now_ms, weight))
        kept = reservoir.kept()
        self._weights |= {one.key: one.size_bytes or 0 for one in kept if one.kind == "string"}
        return [one._replace(size_bytes=None) for one in kept]
