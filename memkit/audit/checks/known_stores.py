"""Sessions of known stores, each read with all its parts, wherever in the database they lie; what is wrong with them.

A session's keys need not be neighbours (LangGraph's names begin with the kind of part, agno's runs have ids of their
own), and one part names the next: an order its checkpoints, a checkpoint its blobs. Keys that several sessions share
hold each one's entries, so all of these are asked for.
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

TOGETHER_KEYS = 200
TOGETHER_BYTES = 8 << 20
FEWEST_SESSIONS = 1_000
ROUNDS = 5

Group = tuple[str, str, str]
Hits = Mapping[str, Hit]


@dataclass
class Loads:
    """Reads values, and remembers of which keys: one that is read twice has one idle clock."""

    reader: Reader
    names: set[str] = field(default_factory=set)

    def load(self, wants: Iterable[KeyRequest]) -> dict[str, RedisValue | None]:
        """Return the keys that were asked for, None for those that are not there."""
        loaded = self.reader.load(wants)
        self.names.update(name for name, one in loaded.items() if one)
        return {name: one.value if one else None for name, one in loaded.items()}

    def afresh(self) -> None:
        """Let the next keys be read within a whole budget; values of the former ones are let go."""
        self.reader.budget = Budget()


@dataclass
class Parts:
    """The known stores' keys by session, and what their decoders found. ``open``: more keys than were read together."""

    hits: defaultdict[Group, dict[str, Hit]] = field(default_factory=lambda: defaultdict(dict))
    open: set[Group] = field(default_factory=set)
    problems: dict[tuple[str, str], Problem] = field(default_factory=dict)

    def note(self, raws: Sequence[RedisValue]) -> None:
        """Take in keys that were read: sessions that are whole with them are decoded, the others are left open."""
        here: defaultdict[Group, dict[str, Hit]] = defaultdict(dict)
        for raw in raws:
            if hit := formats.recognise(raw):
                here[hit.group][raw.name] = hit
        by_name = {raw.name: raw for raw in raws}
        for group, hits in here.items():
            self.hits[group] |= hits
            known = Known(_first(hits), {name: by_name[name] for name in hits})
            if any(_lacking(known)):
                self.open.add(group)
            else:
                self.problems |= _problems(known)

    def close(self, loads: Loads, sizes: Mapping[str, KeyFacts], *, within_s: float) -> tuple[int, int]:
        """Read the open sessions anew, each whole; return how many there was time for, and how many there are."""
        self._owners(loads)
        one_store_a_session(self.hits)
        left = [hits for group, hits in self.hits.items() if group in self.open]
        until, done = time.monotonic() + within_s, 0
        for together in _together(left, sizes):
            if done >= FEWEST_SESSIONS and time.monotonic() > until:
                break
            for found in _confirmed(loads, together):
                self.problems |= found
            done += len(together)
        return done, len(left)

    def _owners(self, loads: Loads) -> None:
        """Look for the checkpoints of writes that were seen alone: in both of LangGraph's savers they look alike."""
        shallow = langgraph_redis_shallow
        wants: list[KeyRequest] = []
        for group, hits in self.hits.items():
            alone = group[0] == langgraph_redis.STORE and {hit.part for hit in hits.values()} == {"write"}
            if alone and (shallow.STORE, *group[1:]) not in self.hits:
                wants += shallow.wants(Known(_first(hits)._replace(store=shallow.STORE), {}))
        for start in range(0, len(wants), TOGETHER_KEYS):
            loads.afresh()
            for raw in loads.load(wants[start : start + TOGETHER_KEYS]).values():
                if raw and (hit := formats.recognise(raw)):
                    self.hits[hit.group][raw.name] = hit
                    self.open.add(hit.group)


def _first(hits: Hits) -> Hit:
    return next(iter(hits.values()))


def _together(sessions: Sequence[Hits], sizes: Mapping[str, KeyFacts]) -> Iterator[list[Hits]]:
    """Cut sessions into batches that fit into memory; none is cut."""
    batch: list[Hits] = []
    keys = size = 0
    for hits in sessions:
        batch.append(hits)
        keys += len(hits)
        size += sum(sizes[name].size_bytes or 0 for name in hits if name in sizes)
        if keys >= TOGETHER_KEYS or size >= TOGETHER_BYTES:
            yield batch
            batch, keys, size = [], 0, 0
    if batch:
        yield batch


def _confirmed(loads: Loads, sessions: Sequence[Hits]) -> list[dict[tuple[str, str], Problem]]:
    """Return each session's problems; what is missing is looked for twice, for the application goes on writing."""
    found = [_problems(known) for known in _completed(loads, sessions)]
    torn = [at for at, problems in enumerate(found) if any(cause == "dangling" for cause, _ in problems)]
    again = _completed(loads, [sessions[at] for at in torn])
    for at, known in zip(torn, again, strict=True):
        still = _problems(known)
        found[at] = {key: one for key, one in found[at].items() if one.cause != "dangling" or key in still}
    return found


def _completed(loads: Loads, sessions: Sequence[Hits]) -> list[Known]:
    """Return sessions with all the parts that can be named, some of which name others."""
    loads.afresh()
    known = [Known(_first(hits), {}) for hits in sessions]
    wants = [[KeyRequest(name, hit.part) for name, hit in hits.items()] for hits in sessions]
    for _ in range(ROUNDS + 1):
        if not any(wants):
            break
        loaded = loads.load(_merged(want for each in wants for want in each))
        known = [
            one._replace(keys={**one.keys, **{want.name: loaded[want.name] for want in each}})
            for one, each in zip(known, wants, strict=True)
        ]
        wants = [_next(one) for one in known]
    return known


def _next(known: Known) -> list[KeyRequest]:
    # Of shared keys only this session's entries are read, so those must all be known first.
    wants = list(_lacking(known))
    return [want for want in wants if not want.shared] or wants


def _lacking(known: Known) -> Iterator[KeyRequest]:
    return (want for want in formats.format_of(known.hit.store).wants(known) if want.name not in known.keys)


def _merged(wants: Iterable[KeyRequest]) -> list[KeyRequest]:
    """Return one want a key, with the entries that any session asks for; all, where one asks for all."""
    merged: dict[str, KeyRequest] = {}
    only: defaultdict[str, dict[str, None]] = defaultdict(dict)
    whole: set[str] = set()
    for want in wants:
        merged.setdefault(want.name, want)
        only[want.name] |= dict.fromkeys(want.only)
        if not want.only:
            whole.add(want.name)
    return [want._replace(only=() if name in whole else tuple(only[name])) for name, want in merged.items()]


def _problems(known: Known) -> dict[tuple[str, str], Problem]:
    """Return what a session's decoder finds wrong; nothing is missing from one that is gone, or in what was not read.

    A session whose last key died between two looks has no part left that could point to nowhere.
    """
    if not any(known.keys.values()):
        return {}
    found = (item for item in formats.decode(known) if isinstance(item, Problem))
    return {
        (item.cause, item.key): item
        for item in found
        if item.cause != "dangling" or not ((raw := known.there(item.key)) and (raw.unread_reason or raw.partial))
    }
