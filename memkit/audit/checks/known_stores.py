"""Sessions of known stores, each read with all its parts, anywhere in the database; what their decoders find wrong.

A session's keys need not be neighbours (LangGraph's names begin with the kind of part, agno's runs have ids of their
own), and one part names the next: an order its checkpoints, a checkpoint its blobs. Keys that several sessions share
hold each session's entries, so all of these are requested.
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from memkit import formats
from memkit.audit.sampling import KeyFacts
from memkit.formats.model import KeyOwner, Problem, SessionKey, SessionValues
from memkit.readonly.reader import Budget, Reader, batches
from memkit.readonly.values import KeyRequest, RedisValue

BATCH_KEYS = 200
BATCH_BYTES = 8 << 20
FEWEST_SESSIONS = 1_000
ROUNDS = 5
"""LangGraph's parts name each other over four steps: pointer, checkpoint, blobs, writes."""

Owners = Mapping[str, KeyOwner]
Problems = dict[tuple[str, str], Problem]


@dataclass
class ValueReader:
    """Reads values and remembers the names: a key that is read twice has one idle clock."""

    reader: Reader
    names: set[str] = field(default_factory=set)

    def load(self, requests: Iterable[KeyRequest]) -> dict[str, RedisValue | None]:
        """Return the requested keys, None for those that do not exist."""
        loaded = self.reader.load(requests)
        self.names.update(name for name, one in loaded.items() if one)
        return {name: one.value if one else None for name, one in loaded.items()}

    def renew_budget(self) -> None:
        """Let the next keys be read within a whole budget, because the values before them have been dropped."""
        self.reader.budget = Budget()


@dataclass
class KnownSessions:
    """The known stores' keys by session, and what their decoders found.

    ``incomplete`` are the sessions with keys outside the batch that was read.
    """

    owners: defaultdict[SessionKey, dict[str, KeyOwner]] = field(default_factory=lambda: defaultdict(dict))
    incomplete: set[SessionKey] = field(default_factory=set)
    problems: Problems = field(default_factory=dict)

    def add(self, values: Sequence[RedisValue], owners: Mapping[str, KeyOwner | None]) -> None:
        """Decode the sessions that are complete with these values; keep the names of the others."""
        by_name = {value.name: value for value in values}
        here: defaultdict[SessionKey, dict[str, KeyOwner]] = defaultdict(dict)
        for name, owner in owners.items():
            if owner:
                here[owner.group][name] = owner
        for group, own in here.items():
            self.owners[group] |= own
            stored = SessionValues(_first(own), {name: by_name[name] for name in own})
            if formats.lacking(stored):
                self.incomplete.add(group)
            else:
                self.problems |= _problems(stored)

    def finish(self, loads: ValueReader, sizes: Mapping[str, KeyFacts], *, within_s: float) -> tuple[int, int]:
        """Read the incomplete sessions, each completely; return how many were read in time, and how many there are."""
        left = [owners for group, owners in self.owners.items() if group in self.incomplete]
        until, done = time.monotonic() + within_s, 0

        def share_of_batch(owners: Owners) -> float:
            size = sum(sizes[name].size_bytes or 0 for name in owners if name in sizes)
            return len(owners) / BATCH_KEYS + size / BATCH_BYTES

        for batch in batches(left, share_of_batch, 1.0):
            if done >= FEWEST_SESSIONS and time.monotonic() > until:
                break
            for found in _confirmed(loads, batch):
                self.problems |= found
            done += len(batch)
        return done, len(left)


def _first(owners: Owners) -> KeyOwner:
    return next(iter(owners.values()))


def _confirmed(loads: ValueReader, sessions: Sequence[Owners]) -> list[Problems]:
    """Return each session's problems; what is missing is read twice, because the application keeps writing."""
    found = [_problems(stored) for stored in _completed(loads, sessions)]
    missing = [at for at, problems in enumerate(found) if any(cause == "dangling" for cause, _ in problems)]
    again = _completed(loads, [sessions[at] for at in missing])
    for at, stored in zip(missing, again, strict=True):
        still = _problems(stored)
        found[at] = {key: one for key, one in found[at].items() if one.cause != "dangling" or key in still}
    return found


def _completed(loads: ValueReader, sessions: Sequence[Owners]) -> list[SessionValues]:
    """Return sessions with all the parts that can be named, some of which name others."""
    loads.renew_budget()
    stored = [SessionValues(_first(owners), {}) for owners in sessions]
    requests = [[KeyRequest(name, owner.part) for name, owner in owners.items()] for owners in sessions]
    for _ in range(ROUNDS + 1):
        if not any(requests):
            break
        loaded = loads.load(_merged(one for each in requests for one in each))
        stored = [
            one._replace(keys={**one.keys, **{request.name: loaded[request.name] for request in each}})
            for one, each in zip(stored, requests, strict=True)
        ]
        requests = [formats.lacking(one) for one in stored]
    return stored


def _merged(requests: Iterable[KeyRequest]) -> list[KeyRequest]:
    """Return one request a key, with the entries that any session requests; all, if one requests all."""
    merged: dict[str, KeyRequest] = {}
    for one in requests:
        other = merged.setdefault(one.name, one)
        only = tuple(dict.fromkeys((*other.only, *one.only))) if other.only and one.only else ()
        merged[one.name] = other._replace(only=only)
    return list(merged.values())


def _problems(stored: SessionValues) -> Problems:
    """Return what a session's decoder finds wrong.

    A session of which the last key expired between two reads misses nothing, and neither does a key that was not read.
    """
    if not any(stored.keys.values()):
        return {}
    found = (item for item in formats.decode(stored) if isinstance(item, Problem))
    return {
        (item.cause, item.key): item
        for item in found
        if item.cause != "dangling" or not ((value := stored.get(item.key)) and (value.unread_reason or value.partial))
    }
