"""Indexes of sessions: keys that list names or ids of sessions, and entries of sessions that no longer exist.

An index is a set, sorted set, list, JSON array or hash. That it lists sessions is shown by entries that exist, never by
the words in its name. A session is lost only if the index states when it began, or when it is to expire, and its TTL
has not passed: then the cause is ``dangling``. An entry without such a time is ``stale_index``.
"""

from collections import defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from memkit import formats
from memkit.audit.checks.known_stores import ValueReader
from memkit.audit.checks.payload_times import times_in
from memkit.audit.checks.ttl_inference import NEARLY_ALL, SOME
from memkit.audit.checks.ttl_peaks import FEWEST
from memkit.audit.finding import Finding
from memkit.audit.key_shapes import groups_of
from memkit.audit.sampling import KeyFacts
from memkit.config import Expectation
from memkit.connect import chunks
from memkit.formats.model import seconds
from memkit.formats.parsing.bounded_json import parse
from memkit.readonly.values import DOCUMENT_KINDS, KeyRequest, RedisValue, to_bytes, to_name
from memkit.render import counted, duration

MOST_INDEXES = 3_000
MOST_INDEX_BYTES = 1 << 20
MOST_LOOKUPS = 100_000
BATCH_NAMES = 1_000
MOST_SHAPES = 5
ID_CHARS = 300
PLAIN_ID_CHARS, FEWEST_PLAIN = 8, 5
"""Shorter ids (``en``, ``17``) may name anything: at least this many must exist as sessions, and no number counts."""
LISTED_SHARE = 0.5
"""Bare ids are those of sessions if this share of the existing sessions is listed; a list of users has fewer."""
INDEX_SLACK_MS = 60_000
"""An index is written a moment before or after its session."""

_JAVA_TEXT = "\udcac\udced\x00\x05t"
_DELETES = "the server has counted {} since its start, so users may have deleted sessions and not their entries"


class _Entry(NamedTuple):
    """A name or id in an index, the place in the entry that holds it, and the time beside it in ms."""

    name: str
    place: str = ""
    at_ms: float | None = None


def index_findings(
    loads: ValueReader,
    expected: Sequence[Expectation],
    keys: Sequence[KeyFacts],
    *,
    deletions: int | None,
    explained: Container[str],
) -> tuple[list[Finding], set[bytes]]:
    """Return the findings of sessions that are listed and no longer exist, and the keys that list sessions.

    Args:
        loads: Reads values.
        expected: All expectations; strings, lists and hashes that match one are indexes only if they have no TTL and
            hold names alone.
        keys: The keys that the audit has seen.
        deletions: How many DEL and UNLINK the server has counted; None if it does not report that.
        explained: The names of missing keys that a known store's decoder has reported.
    """
    found = [
        one
        for one in keys
        if one.kind in ("set", "zset", "list", "hash", *DOCUMENT_KINDS)
        and (one.size_bytes or 0) <= MOST_INDEX_BYTES
        and (one.deadline_ms is None or not _may_be_session(expected, one))
    ]
    found = sorted(found, key=lambda one: (_may_be_session(expected, one), -(one.size_bytes or 0)))[:MOST_INDEXES]
    loads.renew_budget()
    values = loads.load(KeyRequest(to_name(one.key), "") for one in found)
    indexes: defaultdict[tuple[str, str, str], list[tuple[KeyFacts, _Entry]]] = defaultdict(list)
    present = {to_name(one.key) for one in keys}
    for group in groups_of(found, ""):
        for facts in group.keys:
            value = values.get(to_name(facts.key))
            # An index is a known store's if a key that the store would write for one of its entries exists.
            if (
                value
                and not value.unread_reason
                and not formats.recognise(value)
                and present.isdisjoint(formats.leads(value))
            ):
                name = group.part if len(group.keys) > 1 else value.name
                inside = list(_entries(value))
                for entry in inside if not _may_be_session(expected, facts) or _are_names(value, inside) else ():
                    indexes[name, group.kind, entry.place].append((facts, entry))
    findings: list[Finding] = []
    listing: set[bytes] = set()
    for one in expected if indexes else ():
        sessions = _Sessions.of(one, keys)
        ended: defaultdict[str, list[str]] = defaultdict(list)
        facts_of: defaultdict[str, list[str]] = defaultdict(list)
        for (name, _, _), entries in indexes.items() if one.prefix else ():
            existing = _existing(sessions, entries)
            listing.update(facts.key for facts, _ in entries if existing)
            for cause, names, fact in _judge(loads, sessions, entries, existing, explained):
                ended[cause] += names
                facts_of[cause].append(f"{name} lists {fact}")
        findings += [_finding(one, cause, names, facts_of[cause], deletions) for cause, names in ended.items()]
    return findings, listing


def _may_be_session(expected: Sequence[Expectation], facts: KeyFacts) -> bool:
    return facts.kind not in ("set", "zset") and any(one.matches.fullmatch(facts.key) for one in expected)


def _are_names(value: RedisValue, entries: Sequence[_Entry]) -> bool:
    """Return whether a list, a JSON array or a hash of times holds names and nothing else."""
    items = value.fields or value.elements or _parsed(value.data)
    places = {entry.place for entry in entries}
    return isinstance(items, list | tuple | dict) and len(items) == len(entries) and places <= {"", "field"}


def _entries(value: RedisValue) -> Iterator[_Entry]:
    for name, score in value.scores.items():
        yield from _named(name, "", _ms(score))
    for name in value.members:
        yield from _named(name)
    for field, data in value.fields.items():
        inner = _parsed(data)
        times = [at for at in (_ms(inner), *(one.earliest for one in times_in(inner))) if at is not None]
        yield from _named(field, "field", min(times, default=None))
        if not times:
            yield from _items(inner, "value")
    for data in () if value.fields else value.payloads:
        yield from _items(_parsed(data), "")


def _parsed(data: bytes) -> Any:
    parsed = parse(data)
    return to_name(data) if parsed.fault else parsed.value


def _items(value: Any, place: str) -> Iterator[_Entry]:
    """Yield the entries of a JSON value: text, or objects with an id and perhaps a time, alone or in an array."""
    if isinstance(value, str):
        yield from _named(value, place)
    elif isinstance(value, list):
        for inner in value:
            yield from _items(inner, place)
    elif isinstance(value, dict):
        times = [one.earliest for one in times_in(value)]
        for name, inner in value.items():
            if isinstance(inner, str):
                yield from _named(inner, name, min(times, default=None))
            elif isinstance(inner, list):
                yield from _items(inner, name)


def _named(name: str, place: str = "", at_ms: float | None = None) -> Iterator[_Entry]:
    """Yield an entry if the text is one short word; Java's header of a serialized text is taken off."""
    name = name[len(_JAVA_TEXT) + 2 :] if name.startswith(_JAVA_TEXT) else name
    if 0 < len(name) <= ID_CHARS and name[0] not in '{["' and not any(char.isspace() for char in name):
        yield _Entry(name, place, at_ms)


def _ms(value: Any) -> float | None:
    """Return a number as a time in ms if it is one."""
    found = seconds(value)
    return None if found is None else found * 1000


@dataclass(frozen=True, slots=True)
class _Sessions:
    """The sessions of one expectation that exist: facts by key name, and what stands before and behind their ids."""

    expected: Expectation
    facts: dict[str, KeyFacts]
    shapes: tuple[tuple[str, str], ...]
    count: int

    @classmethod
    def of(cls, expected: Expectation, keys: Sequence[KeyFacts]) -> Self:
        """Return the sessions among the keys."""
        own = [one for one in expected.matching(keys) if one.kind not in ("set", "zset")]
        groups = groups_of(own, expected.prefix)
        shapes = [group.part.partition("*") for group in groups if group.part.count("*") == 1]
        pairs = [(expected.prefix + before, behind) for before, _, behind in shapes[:MOST_SHAPES]]
        largest = max((len(group.keys) for group in groups), default=0)
        return cls(
            expected,
            {to_name(one.key): one for one in own},
            tuple({(expected.prefix, ""): 0, **dict.fromkeys(pairs)}),
            largest,
        )

    def keys_of(self, name: str) -> list[str]:
        """Return the key names that an entry may stand for."""
        if name.startswith(self.expected.prefix):
            bare = name.removeprefix(self.expected.prefix)
            return [name, *(before + bare + behind for before, behind in self.shapes)]
        return [before + name + behind for before, behind in self.shapes]


def _existing(sessions: _Sessions, entries: Sequence[tuple[KeyFacts, _Entry]]) -> dict[str, KeyFacts]:
    """Return the sessions that exist by the names that one kind of index lists; none if it may list something else."""
    found = {entry.name: entry.at_ms for _, entry in entries}
    existing = {
        name: sessions.facts[key]
        for name in found
        for key in sessions.keys_of(name)
        if key in sessions.facts
    }  # fmt: skip
    full = any(name.startswith(sessions.expected.prefix) for name in existing)
    begins = _begins(sessions.expected, [(found[name], facts) for name, facts in existing.items()])
    # Bare ids that exist as sessions can be nothing else if they are long, or several, and most of the sessions.
    plain = [name for name in existing if not name.isdigit()]
    are_ids = len(plain) >= FEWEST_PLAIN or any(len(name) >= PLAIN_ID_CHARS for name in plain)
    return existing if full or begins or (are_ids and len(plain) >= LISTED_SHARE * sessions.count) else {}


def _judge(
    loads: ValueReader,
    sessions: _Sessions,
    entries: Sequence[tuple[KeyFacts, _Entry]],
    existing: Mapping[str, KeyFacts],
    explained: Container[str],
) -> Iterator[tuple[str, list[str], str]]:
    """Yield cause, sessions and fact for what one kind of index lists and no longer exists."""
    if not existing:
        return
    found = {entry.name: (facts, entry) for facts, entry in entries}
    full = any(name.startswith(sessions.expected.prefix) for name in existing)
    begins = _begins(sessions.expected, [(found[name][1].at_ms, facts) for name, facts in existing.items()])
    absent = [name for name in found if name not in existing and name.startswith(sessions.expected.prefix) == full]
    missing = [
        name
        for name in _missing(loads, sessions, absent)
        if not any(key in explained for key in sessions.keys_of(name))
    ]
    ttl = min(sessions.expected.ttls_ms, default=0)
    lost = []
    for name in missing:
        facts, entry = found[name]
        if begins is not None and entry.at_ms is not None:
            expires = entry.at_ms + begins + ttl * (1 - sessions.expected.jitter) - INDEX_SLACK_MS
            lost += [name] if expires > facts.seen_ms else []
    # Fewer may have been deleted on purpose.
    if len(lost) >= max(min(FEWEST, len(existing)), SOME * (len(existing) + len(lost))):
        yield "dangling", lost, f"{counted(len(lost), 'missing session')}, with a time less than {duration(ttl)} ago"
    # An index that expires soon after its sessions is pruned by that.
    kept = [name for name in missing if not ttl or (left := found[name][0].left_ms) is None or left > 2 * ttl]
    stale = [name for name in kept if name not in set(lost)]
    if stale:
        yield "stale_index", stale, f"{counted(len(stale), 'missing session')} and {len(existing):,} that exist"


def _begins(expected: Expectation, existing: Sequence[tuple[float | None, KeyFacts]]) -> float | None:
    """Return what to add to an index's time for the time of the session's last known write; None: not understood."""
    ttl = expected.ttl_ms
    timed = [(at, one.deadline_ms) for at, one in existing if at is not None and one.deadline_ms is not None]
    if not timed or not ttl:
        return None
    slack = INDEX_SLACK_MS + expected.jitter * ttl
    for shift in (-ttl, 0):  # the time of the deadline, or of a write
        agree = sum(
            (abs(at - deadline) <= slack) if shift else (at <= deadline - ttl + slack) for at, deadline in timed
        )
        if agree >= NEARLY_ALL * len(timed):
            return shift
    return None


def _missing(loads: ValueReader, sessions: _Sessions, names: Sequence[str]) -> list[str]:
    """Return the names of which no key exists, as far as there are look-ups left."""
    found: list[str] = []
    for some in chunks(names[: MOST_LOOKUPS // len(sessions.shapes)], BATCH_NAMES):
        asked = [(name, to_bytes(key)) for name in some for key in sessions.keys_of(name)]
        exist = loads.reader.exist([key for _, key in asked])
        there = {name for (name, _), exists in zip(asked, exist, strict=True) if exists}
        found += [name for name in some if name not in there]
    return found


def _finding(
    expected: Expectation, cause: str, names: Sequence[str], facts: Sequence[str], deletions: int | None
) -> Finding:
    lost = cause == "dangling"
    deleted = [_DELETES.format(counted(deletions, "deletion"))] if lost and deletions else []
    ended = "their TTL has not passed" if lost else "nothing shows that they ended too early"
    return Finding.of(
        cause,
        expected,
        keys=len(set(names)),
        message=f"indexes list {counted(len(set(names)), 'session')} matching {expected.pattern} that no longer exist: "
        f"{ended}",
        confidence="likely" if lost and not deleted else "possible",
        evidence=(*facts[:3], *deleted),
        next="find what removed them: memkit history, or memkit record"
        if lost
        else "remove an entry when its session expires, or give the index the TTL of its sessions",
    )
