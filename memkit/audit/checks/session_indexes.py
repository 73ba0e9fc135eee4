"""Sets, sorted sets, hashes and short values that name sessions which are gone; what proves that sessions are meant.

A full name of a session's key proves itself. A bare id does not: ``17`` may be a product, a user or a room. Then the
holder's own name, and how much of the living sessions it lists, must say that it is a list of sessions.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from memkit.audit.checks.known_stores import Loads
from memkit.audit.finding import Finding
from memkit.audit.key_shapes import Group, groups_of
from memkit.audit.sampling import KeyFacts
from memkit.config import Expectation
from memkit.formats.model import is_uuid
from memkit.readonly.connection import packed
from memkit.readonly.values import KeyRequest, RedisValue, to_bytes, to_name

MOST_LISTS = 300
MOST_POINTERS = 3_000
MOST_LOOKUPS = 100_000
POINTER_BYTES = 300
HASH_BYTES = 1 << 20
FEWEST_NUMBERED = 10
"""Below this many living sessions, small numbers in a list prove nothing."""
NEARLY_ALL = 0.9
MOST = 0.7
FEWEST_LISTED = 5
"""A list that is not called one of sessions is one if it has so many at least, MOST of the living, and few others."""

_ABOUT_SESSIONS = "session sess thread conversation conv convo chat dialog dialogue memory"
_ABOUT_NOTHING = """
index idx all id list set zset key active live alive recent open known current by time date updated created at last
seen access ttl expiry expire sorted order ordered lru latest
"""
_ABOUT_THE_GONE = """
deleted archived expired closed removed tombstone purged evicted ended banned blocked dead processed finished completed
"""
SESSION_WORDS, NEUTRAL_WORDS = frozenset(_ABOUT_SESSIONS.split()), frozenset(_ABOUT_NOTHING.split())
LEFT_WORDS = frozenset(_ABOUT_THE_GONE.split())
"""In the name of a list of what is gone, or may be, on purpose."""

_NAME_PARTS = re.compile(r"[:/|#.{}]+")
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_ONE_ID = re.compile(r"([^*]*)\*(?:[:/|#]\*)*([^*]*)")


def lists_of_the_gone(
    loads: Loads, wanted: Sequence[Expectation], meant: Sequence[Expectation], keys: Sequence[KeyFacts]
) -> list[Finding]:
    """Return a finding for each wanted expectation whose sessions are named somewhere and gone.

    ``meant`` are all expectations: keys that match one are sessions and no pointers to any.
    """
    if not wanted:
        return []
    facts = [*_lists(keys), *_pointers(keys, meant)]
    loads.afresh()
    raws = {name: raw for name, raw in loads.load(KeyRequest(to_name(one.key), "") for one in facts).items() if raw}
    holders = _holders(facts, raws)
    there = {to_name(one.key) for one in keys}
    found = (_Search(loads, one, _Living.of(one, keys), there).finding(holders) for one in wanted)
    return [finding for finding in found if finding]


def _lists(keys: Iterable[KeyFacts]) -> list[KeyFacts]:
    """Return the sets and sorted sets, those first that are called lists of sessions, and then the large ones."""
    found = [one for one in keys if one.kind in ("set", "zset")]
    found.sort(key=lambda one: (not SESSION_WORDS & set(_words(to_name(one.key))), -(one.size_bytes or 0)))
    return found[:MOST_LISTS]


def _pointers(keys: Iterable[KeyFacts], meant: Sequence[Expectation]) -> list[KeyFacts]:
    most = {"string": POINTER_BYTES, "hash": HASH_BYTES}
    found = (
        one
        for one in keys
        if (one.size_bytes or 0) < most.get(one.kind, 0)
        and not any(each.matches.fullmatch(one.key) for each in meant)
    )  # fmt: skip
    return [one for one, _ in zip(found, range(MOST_POINTERS), strict=False)]


@dataclass(frozen=True, slots=True)
class _Holder:
    """Keys that hold names in the same way: one, or those of one shape, such as ``user:*:chats``.

    ``session`` is the id in the name of one that lies under the expectation's own prefix.
    """

    part: str
    kind: str
    raws: list[RedisValue]

    @property
    def is_list(self) -> bool:
        return self.kind in ("set", "zset")

    @property
    def name(self) -> str:
        return self.raws[0].name if len(self.raws) == 1 else self.part

    def values(self) -> Iterator[str]:
        """Yield what may be an id or a name of a key: short, one line, no document."""
        for raw in self.raws:
            for value in [*raw.members, *raw.scores] or map(to_name, raw.payloads):
                if 0 < len(value) <= POINTER_BYTES and value[0] not in "{[" and not re.search(r"\s", value):
                    yield value


def _holders(facts: Sequence[KeyFacts], raws: dict[str, RedisValue]) -> list[_Holder]:
    """Return keys that were read, together where a word in their names says that they are alike."""
    found = []
    for group in groups_of(facts, ""):
        own = [raws[name] for one in group.keys if (name := to_name(one.key)) in raws]
        alike = [own] if re.search(r"[A-Za-z]", group.part) else [[raw] for raw in own]
        found += [_Holder(group.part, group.kind, each) for each in alike if each]
    return found


# -- what is there -----------------------------------------------------------------------------------------------------


class _Shape(NamedTuple):
    """How ids of one kind of key are written around: what stands before and behind them, and those that are there."""

    before: str
    behind: str
    ids: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Living:
    """The sessions of one expectation that are there; ``looks`` are the looks of their names."""

    shapes: tuple[_Shape, ...]
    ids: frozenset[str]
    looks: frozenset[tuple[str, ...]]

    @classmethod
    def of(cls, meant: Expectation, keys: Sequence[KeyFacts]) -> _Living:
        """Return the sessions, by the ids in the names of their keys."""
        own = meant.of(keys)
        shapes = [shape for group in groups_of(own, meant.prefix) if (shape := _shape(group, meant.prefix))]
        # A few keys of an odd shape are no sessions: a list of all would seem to be there in each of them.
        large = [shape for shape in shapes if len(shape.ids) >= 0.2 * len(shapes[0].ids)]
        return cls(
            tuple(large[:5]),
            frozenset(uid for shape in shapes for uid in shape.ids),
            frozenset(_look(to_name(one.key).removeprefix(meant.prefix)) for one in own),
        )


def _shape(group: Group, prefix: str) -> _Shape | None:
    """Return a group's names taken apart; None where these are locks and the like, or have braces or several ids."""
    parts = _ONE_ID.fullmatch(group.part)
    if group.beside or not parts or any(b"{" in member.facts.key for member in group.members[:1]):
        return None
    return _Shape(prefix + parts[1], parts[2], frozenset(member.session for member in group.members))


def _look(name: str) -> tuple[str, ...]:
    """Return what a name is made of: its parts as digits, a UUID, letters, or something of both."""
    return tuple(
        "digits" if part.isdigit() else "uuid" if is_uuid(part) else "word" if part.replace("-", "").isalpha() else ""
        for part in _NAME_PARTS.split(name.replace("_", "-"))
    )


# -- what is not -------------------------------------------------------------------------------------------------------


@dataclass
class _Search:
    """Looks for sessions of one expectation that are listed and gone."""

    loads: Loads
    meant: Expectation
    living: _Living
    there: set[str]
    left: int = MOST_LOOKUPS
    gone: dict[str, None] = field(default_factory=dict)
    evidence: list[str] = field(default_factory=list)
    proven: bool = False
    looked: int = 0

    def finding(self, holders: Sequence[_Holder]) -> Finding | None:
        """Return what is listed and gone."""
        for holder in holders if self.meant.prefix else ():
            if not LEFT_WORDS & set(_all_words(holder.name)):
                self._look_at(holder)
        if not self.gone:
            return None
        return Finding(
            "dangling",
            prefix=self.meant.prefix,
            keys=len(self.gone),
            sampled=self.looked,
            message=f"{len(self.gone):,} sessions under {self.meant.prefix} are still listed and gone",
            confidence="proven" if self.proven else "likely",
            expected_ttl_s=None if self.meant.ttl_ms is None else self.meant.ttl_ms / 1000,
            evidence=tuple(self.evidence[:3]),
            next="give the list the sessions' lifetime, or remove an entry when its session goes; "
            "readers must expect both",
        )

    def _look_at(self, holder: _Holder) -> None:
        full, bare = [], Counter[str]()
        for value in holder.values():
            if value.startswith(self.meant.prefix):
                full.append(value)
            elif holder.is_list:
                bare[value] += 1
        named = self._gone_by_name(holder, list(dict.fromkeys(full)))
        self.proven |= bool(named)
        gone = [*named, *self._gone_by_id(holder, bare)]
        if gone:
            self.gone |= dict.fromkeys(gone)
            self.evidence.append(f"listed in {holder.name}")

    def _gone_by_name(self, holder: _Holder, names: Sequence[str]) -> list[str]:
        """Return the keys that are named in full and gone, and that look like sessions' keys."""
        names = [name for name in names if self.meant.matches.fullmatch(to_bytes(name))]
        ids = [name.removeprefix(self.meant.prefix) for name in names]
        # The beginning that a session's keys have in common may be listed, and be no key itself.
        missing = self._missing([[name, *self._names(uid)] for name, uid in zip(names, ids, strict=True)])
        held = len(missing) < len(names)
        self.looked += len(names)
        return [names[at] for at in missing if self._is_a_key(names[at], holder, held=held)]

    def _is_a_key(self, name: str, holder: _Holder, *, held: bool) -> bool:
        """Whether a name that begins like a session's is one; ``held``: others beside it are.

        ``chat:read`` may be a right, and ``chat:completions`` a queue.
        """
        look = _look(name.removeprefix(self.meant.prefix))
        if set(look) == {"word"} or self.meant.prefix[-1].isalnum():
            return held and look in self.living.looks
        return holder.is_list or look in self.living.looks

    def _gone_by_id(self, holder: _Holder, bare: Counter[str]) -> list[str]:
        """Return the sessions whose bare ids are listed and that are gone, where this is a list of sessions."""
        listed = bare.keys() & self.living.ids
        if not listed or self._is_part(holder):
            return []
        share = self._share(bare)
        sure = share is not None and _is_called_sessions(holder.name, self.meant.prefix)
        if _numbered(bare):
            if not sure or (share or 0) < NEARLY_ALL or bare.total() > 1.25 * len(bare):
                return []
        elif len(listed) < (2 if sure else FEWEST_LISTED) or (not sure and (share or 0) < MOST):
            return []
        self.looked += len(bare)
        unknown = sorted(bare.keys() - listed)
        gone = [unknown[at] for at in self._missing([list(self._names(uid)) for uid in unknown])]
        if not sure and len(gone) > len(bare) / 3:
            return []  # all users, of whom some talk
        self.proven |= sure and bool(gone)
        return [self.meant.prefix + uid for uid in gone]

    def _is_part(self, holder: _Holder) -> bool:
        """Whether this lies under the prefix and is itself a session, or a part of one: ``chat:17:members``."""
        if not all(self.meant.matches.fullmatch(to_bytes(raw.name)) for raw in holder.raws):
            return False
        ids = [raw.name.removeprefix(self.meant.prefix) for raw in holder.raws]
        parts = {part for uid in ids for part in _NAME_PARTS.split(uid) if part != uid}
        same = len(ids) > 2 and not re.search("[A-Za-z]", holder.part.removeprefix(self.meant.prefix))
        return same or not parts.isdisjoint(self.living.ids)

    def _share(self, bare: Counter[str]) -> float | None:
        """Return how much of the living sessions is listed; None where there are too few small numbers to tell."""
        shares = (
            len(bare.keys() & shape.ids) / len(shape.ids)
            for shape in self.living.shapes
            if len(shape.ids) >= FEWEST_NUMBERED or not _numbered(shape.ids)
        )
        return max(shares, default=None)

    def _names(self, uid: str) -> Iterator[str]:
        return (shape.before + uid + shape.behind for shape in self.living.shapes)

    def _missing(self, names: Sequence[Sequence[str]]) -> list[int]:
        """Return the places of those of which no name is there, as far as there are look-ups left."""
        unknown = [at for at, each in enumerate(names) if not self.there.intersection(each)]
        found: list[int] = []
        for start in range(0, len(unknown), 1_000):
            asked = [(at, to_bytes(name)) for at in unknown[start : start + 1_000] for name in names[at]]
            self.left -= len(asked)
            if self.left < 0:
                break
            answers = self.loads.reader.ask([(name, [packed("EXISTS", name)]) for _, name in asked])
            alive = {at for (at, _), answer in zip(asked, answers, strict=True) if answer != [0]}
            found += [at for at in unknown[start : start + 1_000] if at not in alive]
        return found


def _numbered(ids: Iterable[str]) -> bool:
    """Whether ids are small numbers, such as anything may have."""
    ids = list(ids)
    return 2 * sum(uid.isdigit() and len(uid) < 7 for uid in ids) >= len(ids)


def _is_called_sessions(name: str, prefix: str) -> bool:
    """Whether every word of a list's name is of sessions or says nothing: ``chats:by-time``, ``index``."""
    words, of_prefix = set(_words(name)), _all_words(prefix)
    own = SESSION_WORDS.union(of_prefix[-1:])
    if not words & own:
        return bool(words) and words <= NEUTRAL_WORDS
    return words <= own.union(of_prefix, NEUTRAL_WORDS)


def _words(name: str) -> list[str]:
    """Return the words that say what a list is of: of ``user:17:chats`` and ``chats:user:17`` alike, ``chat``."""
    parts = [part for part in _NAME_PARTS.split(name) if part]
    ids = [at for at, part in enumerate(parts) if "*" in part or re.search(r"\d", part)]
    if not ids:
        return _all_words(name)
    last = ids[-1]
    says = parts[last + 1 :] or parts[: max(last - 1, 0)] or parts[:last]
    return _all_words(" ".join(part for part in says if "*" not in part))


def _all_words(text: str) -> list[str]:
    return [word.lower().removesuffix("s") for word in _WORD.findall(text)]
