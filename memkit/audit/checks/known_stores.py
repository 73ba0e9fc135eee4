"""Sessions of known stores, each read with all its parts, anywhere in the database; what their decoders find wrong.

A session's keys need not be neighbours (LangGraph's names begin with the kind of part, agno's runs have ids of their
own), and one part names the next: an order its checkpoints, a checkpoint its blobs. Keys that several sessions share
hold each session's entries, so all of these are requested.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from memkit import formats
from memkit.audit.sampling import KeyFacts
from memkit.formats import langgraph_redis, langgraph_redis_shallow
from memkit.formats.model import Hit, Known, Problem
from memkit.inspect.search import one_store_a_session
from memkit.readonly.reader import Budget, Reader
from memkit.readonly.values import KeyRequest, RedisValue

BATCH_KEYS = 200
BATCH_BYTES = 8 << 20
FEWEST_SESSIONS = 1_000
ROUNDS = 5
"""LangGraph's parts name each other over four steps: pointer, checkpoint, blobs, writes."""

SessionKey = tuple[str, str, str]
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

    hits: defaultdict[SessionKey, dict[str, Hit]] = field(default_factory=lambda: defaultdict(dict))
    incomplete: set[SessionKey] = field(default_factory=set)
    problems: Problems = field(default_factory=dict)

    def add(self, values: Sequence[RedisValue], hits: Mapping[str, Hit | None]) -> None:
        """Decode the sessions that are complete with these values; keep the names of the others."""
        by_name = {value.name: value for value in values}
        here: defaultdict[SessionKey, dict[str, Hit]] = defaultdict(dict)
        for name, hit in hits.items():
            if hit:
                here[hit.group][name] = hit
        for group, own in here.items():
            self.hits[group] |= own
            known = Known(_first(own), {name: by_name[name] for name in own})
            if any(_lacking(known)):
                self.incomplete.add(group)
            else:
                self.problems |= _problems(known)

    def finish(self, loads: ValueReader, sizes: Mapping[str, KeyFacts], *, within_s: float) -> tuple[int, int]:
        """Read the incomplete sessions, each completely; return how many were read in time, and how many there are."""
        self._find_owners(loads)
        one_store_a_session(self.hits)
        left = [hits for group, hits in self.hits.items() if group in self.incomplete]
        until, done = time.monotonic() + within_s, 0
        for batch in _batches(left, sizes):
            if done >= FEWEST_SESSIONS and time.monotonic() > until:
                break
            for found in _confirmed(loads, batch):
                self.problems |= found
            done += len(batch)
        return done, len(left)

    def _find_owners(self, loads: ValueReader) -> None:
        """Look for the checkpoints of writes that were seen alone: in both of LangGraph's savers they look alike."""
        shallow = langgraph_redis_shallow
        requests: list[KeyRequest] = []
        for group, hits in self.hits.items():
            alone = group[0] == langgraph_redis.STORE and {hit.part for hit in hits.values()} == {"write"}
            if alone and (shallow.STORE, *group[1:]) not in self.hits:
                requests += shallow.wants(Known(_first(hits)._replace(store=shallow.STORE), {}))
        for start in range(0, len(requests), BATCH_KEYS):
            loads.renew_budget()
            for value in loads.load(requests[start : start + BATCH_KEYS]).values():
                if value and (hit := formats.recognise(value)):
                    self.hits[hit.group][value.name] = hit
                    self.incomplete.add(hit.group)


def _first(hits: Mapping[str, Hit]) -> Hit:
    return next(iter(hits.values()))


def _batches(sessions: Sequence[Mapping[str, Hit]], sizes: Mapping[str, KeyFacts]) -> Iterator[list[Mapping[str, Hit]]]:
    """Cut sessions into batches that fit into memory; no session is cut."""
    batch: list[Mapping[str, Hit]] = []
    keys = size = 0
    for hits in sessions:
        batch.append(hits)
        keys += len(hits)
        size += sum(sizes[name].size_bytes or 0 for name in hits if name in sizes)
        if keys >= BATCH_KEYS or size >= BATCH_BYTES:
            yield batch
            batch, keys, size = [], 0, 0
    if batch:
        yield batch


def _confirmed(loads: ValueReader, sessions: Sequence[Mapping[str, Hit]]) -> list[Problems]:
    """Return each session's problems; what is missing is read twice, because the application keeps writing."""
    found = [_problems(known) for known in _completed(loads, sessions)]
    missing = [at for at, problems in enumerate(found) if any(cause == "dangling" for cause, _ in problems)]
    again = _completed(loads, [sessions[at] for at in missing])
    for at, known in zip(missing, again, strict=True):
        still = _problems(known)
        found[at] = {key: one for key, one in found[at].items() if one.cause != "dangling" or key in still}
    return found


def _completed(loads: ValueReader, sessions: Sequence[Mapping[str, Hit]]) -> list[Known]:
    """Return sessions with all the parts that can be named, some of which name others."""
    loads.renew_budget()
    known = [Known(_first(hits), {}) for hits in sessions]
    requests = [[KeyRequest(name, hit.part) for name, hit in hits.items()] for hits in sessions]
    for _ in range(ROUNDS + 1):
        if not any(requests):
            break
        loaded = loads.load(_merged(one for each in requests for one in each))
        known = [
            one._replace(keys={**one.keys, **{request.name: loaded[request.name] for request in each}})
            for one, each in zip(known, requests, strict=True)
        ]
        requests = []
        for one in known:
            # Of shared keys only this session's entries are read, so those must all be known first.
            lacking = list(_lacking(one))
            requests.append([request for request in lacking if not request.shared] or lacking)
    return known


def _lacking(known: Known) -> Iterator[KeyRequest]:
    return (one for one in formats.format_of(known.hit.store).wants(known) if one.name not in known.keys)


def _merged(requests: Iterable[KeyRequest]) -> list[KeyRequest]:
    """Return one request a key, with the entries that any session requests; all, if one requests all."""
    merged: dict[str, KeyRequest] = {}
    for one in requests:
        other = merged.setdefault(one.name, one)
        only = tuple(dict.fromkeys((*other.only, *one.only))) if other.only and one.only else ()
        merged[one.name] = other._replace(only=only)
    return list(merged.values())


def _problems(known: Known) -> Problems:
    """Return what a session's decoder finds wrong.

    A session of which the last key expired between two reads misses nothing, and neither does a key that was not read.
    """
    if not any(known.keys.values()):
        return {}
    found = (item for item in formats.decode(known) if isinstance(item, Problem))
    return {
        (item.cause, item.key): item
        for item in found
        if item.cause != "dangling" or not ((value := known.there(item.key)) and (value.unread_reason or value.partial))
    }
