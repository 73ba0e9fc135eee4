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
from memkit.formats.model import KeyOwner, Problem, SessionValues
from memkit.readonly.reader import Budget, Reader
from memkit.readonly.values import KeyRequest, RedisValue

TOGETHER_KEYS = 200
TOGETHER_BYTES = 8 << 20
FEWEST_SESSIONS = 1_000
ROUNDS = 5

Group = tuple[str, str, str]
Owners = Mapping[str, KeyOwner]


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

    owners: defaultdict[Group, dict[str, KeyOwner]] = field(default_factory=lambda: defaultdict(dict))
    open: set[Group] = field(default_factory=set)
    problems: dict[tuple[str, str], Problem] = field(default_factory=dict)

    def note(self, raws: Sequence[RedisValue]) -> None:
        """Take in keys that were read: sessions that are whole with them are decoded, the others are left open."""
        here: defaultdict[Group, dict[str, KeyOwner]] = defaultdict(dict)
        for raw in raws:
            if owner := formats.recognise(raw):
                here[owner.group][raw.name] = owner
        by_name = {raw.name: raw for raw in raws}
        for group, owners in here.items():
            self.owners[group] |= owners
            stored = SessionValues(_first(owners), {name: by_name[name] for name in owners})
            if any(_lacking(stored)):
                self.open.add(group)
            else:
                self.problems |= _problems(stored)

    def close(self, loads: Loads, sizes: Mapping[str, KeyFacts], *, within_s: float) -> tuple[int, int]:
        """Read the open sessions anew, each whole; return how many there was time for, and how many there are."""
        left = [owners for group, owners in self.owners.items() if group in self.open]
        until, done = time.monotonic() + within_s, 0
        for together in _together(left, sizes):
            if done >= FEWEST_SESSIONS and time.monotonic() > until:
                break
            for found in _confirmed(loads, together):
                self.problems |= found
            done += len(together)
        return done, len(left)


def _first(owners: Owners) -> KeyOwner:
    return next(iter(owners.values()))


def _together(sessions: Sequence[Owners], sizes: Mapping[str, KeyFacts]) -> Iterator[list[Owners]]:
    """Cut sessions into batches that fit into memory; none is cut."""
    batch: list[Owners] = []
    keys = size = 0
    for owners in sessions:
        batch.append(owners)
        keys += len(owners)
        size += sum(sizes[name].size_bytes or 0 for name in owners if name in sizes)
        if keys >= TOGETHER_KEYS or size >= TOGETHER_BYTES:
            yield batch
            batch, keys, size = [], 0, 0
    if batch:
        yield batch


def _confirmed(loads: Loads, sessions: Sequence[Owners]) -> list[dict[tuple[str, str], Problem]]:
    """Return each session's problems; what is missing is looked for twice, for the application goes on writing."""
    found = [_problems(stored) for stored in _completed(loads, sessions)]
    torn = [at for at, problems in enumerate(found) if any(cause == "dangling" for cause, _ in problems)]
    again = _completed(loads, [sessions[at] for at in torn])
    for at, stored in zip(torn, again, strict=True):
        still = _problems(stored)
        found[at] = {key: one for key, one in found[at].items() if one.cause != "dangling" or key in still}
    return found


def _completed(loads: Loads, sessions: Sequence[Owners]) -> list[SessionValues]:
    """Return sessions with all the parts that can be named, some of which name others."""
    loads.afresh()
    stored = [SessionValues(_first(owners), {}) for owners in sessions]
    wants = [[KeyRequest(name, owner.part) for name, owner in owners.items()] for owners in sessions]
    for _ in range(ROUNDS + 1):
        if not any(wants):
            break
        loaded = loads.load(_merged(want for each in wants for want in each))
        stored = [
            one._replace(keys={**one.keys, **{want.name: loaded[want.name] for want in each}})
            for one, each in zip(stored, wants, strict=True)
        ]
        wants = [_next(one) for one in stored]
    return stored


def _next(stored: SessionValues) -> list[KeyRequest]:
    # Of shared keys only this session's entries are read, so those must all be known first.
    wants = list(_lacking(stored))
    return [want for want in wants if not want.shared] or wants


def _lacking(stored: SessionValues) -> Iterator[KeyRequest]:
    return (want for want in formats.format_of(stored.owner.store).siblings(stored) if want.name not in stored.keys)


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


def _problems(stored: SessionValues) -> dict[tuple[str, str], Problem]:
    """Return what a session's decoder finds wrong; nothing is missing from one that is gone, or in what was not read.

    A session whose last key died between two looks has no part left that could point to nowhere.
    """
    if not any(stored.keys.values()):
        return {}
    found = (item for item in formats.decode(stored) if isinstance(item, Problem))
    return {
        (item.cause, item.key): item
        for item in found
        if item.cause != "dangling" or not ((raw := stored.get(item.key)) and (raw.unread_reason or raw.partial))
    }
