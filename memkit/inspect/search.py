"""Find, decode and check one session, whatever wrote it. Read-only."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

from memkit import formats
from memkit.config import Expect, Expectation, expectations
from memkit.connect import escape_glob
from memkit.errors import AmbiguousSession, PolicyError, SessionNotFound
from memkit.formats import unknown
from memkit.formats.model import (
    PART_WORDS,
    SEPARATORS,
    ConfiguredTtl,
    KeyOwner,
    Note,
    Problem,
    SessionKey,
    SessionValues,
    Turn,
)
from memkit.formats.parsing.encodings import encoding_of, hex_view
from memkit.history.snapshots import open_source
from memkit.inspect.key_checks import SessionFacts, expired_as_expected, key_problems
from memkit.inspect.redaction import Message, Redactor, masked_repair, name_mask
from memkit.inspect.report import KeyReport, SessionReport
from memkit.readonly.reader import LoadedKey, Reader, field_deadlines
from memkit.readonly.values import KeyRequest, RedisValue, to_bytes, to_name
from memkit.render import counted, printable, utc_text

SCAN_FREELY_KEYS = 1_000_000
"""Up to here the database is always searched for further sessions of the same id: about a second of SCAN."""
SCAN_TWICE_KEYS = 100_000
"""Up to here it is always searched again for the stores that write the id in another way into their keys."""
MAX_NAMES = 50_000
MIN_UNSEPARATED = 5
"""A shorter id ends too many names by chance."""
_MAX_SIBLINGS = 1_000
MAX_HASHES = 20
"""The TTLs of fields are read for this many hashes, with two round trips each; a store writes all its hashes alike."""
_ROUNDS = 5
_LEADS = 20
_BETWEEN = r"[:/|{}.#_-]"
_SUFFIX = re.compile(rf"{_BETWEEN}+{PART_WORDS}(?:{_BETWEEN}+\d+)?$", re.IGNORECASE)
"""What people write behind a session's id to name one of its keys; a number alone may be the id."""
T = TypeVar("T")


def inspect_session(
    source: Any,
    session_id: str | bytes,
    *,
    expect: Expect = (),
    reveal: bool = False,
    at: datetime | None = None,
    db: int | None = None,
) -> SessionReport:
    """Find a session by its id or by any of its keys, decode it, and report what is wrong with it.

    Reads on a connection of its own, with CLIENT NO-TOUCH if the server has it (Redis 7.2, Valkey; in a cluster
    Valkey 9); otherwise a note states how many idle times were reset. At most 64 MB and 100,000 elements are read.

    Args:
        source: A Redis URL, a synchronous client, an RDB file, a directory of RDB files, or an append-only directory.
        session_id: The id of a session, or the name of one of its keys.
        expect: The expected TTLs by pattern, as ``audit`` takes them; keys that no pattern matches are compared with
            the TTL that their payload states, if it states one.
        reveal: Keep texts, names and ids inside payloads, which are redacted otherwise.
        at: A timezone-aware moment of an append-only directory; None: its end.
        db: The database of a file; None: 0, or the one with most keys if 0 has none.

    Returns:
        The report; ``store`` is ``unknown`` for a session that no known library wrote.

    Raises:
        SessionNotFound: No key belongs to such a session.
        AmbiguousSession: The id fits several sessions; ``keys`` are the ones to choose from.
        PolicyError: ``session_id`` is empty or not text, or an expectation cannot be read.
        SourceError: The file cannot be read.
    """
    wanted = to_name(session_id) if isinstance(session_id, bytes) else session_id
    if not isinstance(wanted, str):
        raise PolicyError(f"a session id or key is non-empty text, not {type(session_id).__name__}")
    if not wanted:
        raise PolicyError("a session id or key is non-empty text, got an empty one")
    try:
        to_bytes(wanted)
    except UnicodeEncodeError:
        raise PolicyError("this session id has a lone surrogate, which no key can have") from None
    expected = expectations(expect or ())
    with open_source(source, at=at, db=db) as target:
        reader = Reader(target)
        report = _report(reader, _Search(reader, wanted).run(), expected, reveal=reveal)
    if target.snapshot is None:
        return report
    note = f"as of {utc_text(target.snapshot.taken_at)}, the moment of {printable(target.snapshot.name)}"
    return replace(report, notes=(*report.notes, note))


@dataclass(frozen=True)
class _Found:
    """The keys of one session; None for a key that should exist. ``notes`` are about the search."""

    wanted: str
    owner: KeyOwner
    keys: Mapping[str, LoadedKey | None]
    parts: Mapping[str, str]
    shared: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


class _Search:
    """Finds the keys of the session that an id or a key names."""

    def __init__(self, reader: Reader, wanted: str) -> None:
        self._reader, self._wanted = reader, wanted
        self._loaded: dict[str, LoadedKey | None] = {}
        self._there: dict[str, LoadedKey] = {}
        self._owners: dict[str | None, dict[str, KeyOwner | None]] = {}
        self._notes: list[str] = []
        self._scanned = False

    def run(self) -> _Found:
        names = (name for each in formats.FORMATS for name in each.names)
        exact = [self._wanted, *(name.replace("{id}", self._wanted) for name in names)]
        self._load(KeyRequest(prefix + name, "") for name in exact for prefix in {"", self._reader.target.prefix})
        if self._loaded.get(self._wanted):
            return self._by_key(self._wanted)
        groups, size = self._groups(), self._reader.database_keys()
        if size <= SCAN_FREELY_KEYS or not groups:
            self._scan(self._wanted)
            for name in formats.spellings_of_id(self._wanted) if size <= SCAN_TWICE_KEYS or not self._groups() else ():
                self._scan(name)
            groups = self._groups()
        else:
            self._notes.append(
                f"over {SCAN_FREELY_KEYS:,} keys exist, so other stores' keys were not searched for this id"
            )
        return self._by_id(groups)

    def _load(self, requests: Iterable[KeyRequest]) -> None:
        """Read the keys that were not yet asked for."""
        loaded = self._reader.load(request for request in requests if request.name not in self._loaded)
        self._loaded |= loaded
        self._there |= {name: each for name, each in sorted(loaded.items()) if each}

    def _scan(self, part: str) -> None:
        """Search the names of the whole database; only new keys that hold the id are read."""
        # "1" is in nearly every name: a key is read only if the id stands by itself.
        alone = re.compile(rf"(?:^|[\W_]){re.escape(part)}(?:$|[^\w-])")
        names = self._reader.scan(f"{escape_glob(self._reader.target.prefix)}*{escape_glob(part)}*", alone, MAX_NAMES)
        self._scanned = True
        if len(names) == MAX_NAMES:
            self._notes.append(f"over {MAX_NAMES:,} keys have this id in their name; the others were left out")
        # Names end with times and counters: read the newest first, because the budget may not last.
        self._load(KeyRequest(name, "") for name in reversed(names))

    def _groups(self) -> dict[SessionKey, dict[str, KeyOwner]]:
        """Return the keys of each session of this id; a strong boundary before the id beats a weak one."""
        groups: dict[SessionKey, dict[str, KeyOwner]] = {}
        for name in self._there:
            owner = self._owner(name, self._wanted)
            if owner is None or owner.session != self._wanted:
                continue
            # The store's own prefix need not end with a separator (Django's).
            default = formats.format_of(owner.store).prefix
            is_default = bool(default) and owner.prefix.endswith(default)
            if not owner.prefix[-1:].isalnum() or is_default or self._owner(name, None) == owner:
                groups.setdefault(owner.group, {})[name] = owner
        strong = {group: owners for group, owners in groups.items() if group[2][-1:] in SEPARATORS}
        return strong or groups

    def _by_id(self, groups: Mapping[SessionKey, Mapping[str, KeyOwner]]) -> _Found:
        if len(groups) > 1:
            groups = {group: owners for group, owners in groups.items() if not self._ends_another_id(owners)} or groups
        if len(groups) > 1:
            raise _ambiguous(self._wanted, [(group[0], next(iter(owners))) for group, owners in groups.items()])
        if groups:
            return self._complete(next(iter(next(iter(groups.values())).values())))
        return self._unknown_keys()

    def _ends_another_id(self, names: Iterable[str]) -> bool:
        """Return whether the id only ends another one: ``1`` that of ``message_store:session:1``."""
        owners = [owner for name in names if (owner := self._owner(name, None))]
        return any(owner.prefix and owner.session != self._wanted for owner in owners)

    def _unknown_keys(self) -> _Found:
        """Return the keys of no known store that have the id in their name."""
        alone = re.compile(rf"(?:^|[^\w-]){re.escape(self._wanted)}(?:[^\w-]|$)")
        names = [name for name in self._there if alone.search(name) and self._owner(name, None) is None]
        is_long = len(self._wanted) >= MIN_UNSEPARATED
        if not names and not self._reader.scan_refused and is_long and (found := self._unseparated()):
            return found
        if not names and self._reader.scan_refused:
            raise SessionNotFound(
                f"no key with a known store's default name exists for {printable(self._wanted, 200)!r}, and other "
                f"names need SCAN, which the server refused ({self._reader.scan_refused}). Give the full key, or use a "
                "user that may run SCAN: `memkit audit URL --acl` prints one"
            )
        if not names and self._reader.moving:
            raise SessionNotFound(
                f"it is not known whether {printable(self._reader.moving[0], 200)!r} exists: its slot is being moved "
                "to another server of the cluster; try again when that is done (redis-cli --cluster check)"
            )
        if not names:
            raise SessionNotFound(
                f"no session {printable(self._wanted, 200)!r} found: none of "
                f"{counted(self._reader.scanned_keys, 'key name')} contains this id. It may have expired, been evicted "
                "or deleted, or be in another database"
            )
        self._refuse_several({name: alone.split(name, maxsplit=1)[0] for name in names})
        return self._as_unknown(self._wanted, names)

    def _refuse_several(self, before: Mapping[str, str]) -> None:
        """Raise an error if keys with other words before the id have messages each: they are other sessions."""
        groups: dict[str, dict[str, RedisValue | None]] = {}
        for name, words in before.items():
            groups.setdefault(words, {})[name] = self._there[name].value
        owner = KeyOwner(unknown.STORE, self._wanted, "", unknown.STORE)
        spoken = [own for own in groups.values() if len(groups) > 1
                  and any(isinstance(item, Turn) for item in unknown.decode(SessionValues(owner, own)))]  # fmt: skip
        if len(spoken) > 1:
            raise _ambiguous(self._wanted, [(unknown.STORE, next(iter(own))) for own in spoken])

    def _unseparated(self) -> _Found | None:
        """Return the session of keys with the id behind a letter or a digit, without a separator between them."""
        joined = re.compile(rf"[^\W_]{re.escape(self._wanted)}(?:$|{_BETWEEN})")
        pattern = f"{escape_glob(self._reader.target.prefix)}*{escape_glob(self._wanted)}*"
        names = self._reader.scan(pattern, joined, MAX_NAMES)
        self._load(KeyRequest(name, "") for name in names)
        if groups := self._groups():
            return self._by_id(groups)
        names = [name for name in names if name in self._there and self._owner(name, None) is None]
        if names:
            self._notes.append("found in a key's name, without a separator before it")
        return self._as_unknown(self._wanted, names) if names else None

    def _as_unknown(self, session: str, names: list[str]) -> _Found:
        keys = {name: self._there[name] for name in names}
        owner = KeyOwner(unknown.STORE, session, "", unknown.STORE)
        parts = {name: _part_of(name, session, names) for name in names}
        return _Found(self._wanted, owner, keys, parts, notes=tuple(self._notes))

    def _by_key(self, name: str) -> _Found:
        owner = self._owner(name, None) or self._owner_by_index(name)
        if owner is None:
            return self._as_unknown(name, [name, *self._keys_beside(name)])
        others = {group[0] for group in self._groups()} - {owner.store}
        if others:
            self._notes.append(f"this is a key name, and also the id of a session of {', '.join(sorted(others))}")
        return self._complete(owner)

    def _owner_by_index(self, name: str) -> KeyOwner | None:
        """Return the session that a shared index, or a sibling, names for a key."""
        names = formats.leads(self._there[name].value)[:_LEADS]
        self._load(KeyRequest(each, "") for each in names)
        owners = {owner.group: (each, owner) for each in names if each in self._there
                  and (owner := self._owner(each, None))}  # fmt: skip
        if len(owners) > 1:
            raise _ambiguous(name, [(owner.store, each) for each, owner in owners.values()])
        return next((owner for _, owner in owners.values()), None)

    def _keys_beside(self, name: str) -> list[str]:
        """Return the unknown keys beside one: ``chat:7:meta`` beside ``chat:7:messages`` or ``chat:7``."""
        shorter = _SUFFIX.sub("", name)
        base = shorter if re.search(_BETWEEN, shorter) else name
        if not re.search(_BETWEEN, base) or self._reader.database_keys() > SCAN_FREELY_KEYS:
            return []
        # Ids contain "-" and "_": behind these only a word names another key of the same session.
        mine = re.compile(rf"^{re.escape(base)}(?:[:/|{{}}.#]|[_-]+{PART_WORDS}|$)", re.IGNORECASE)
        names = self._reader.scan(f"{escape_glob(base)}*", mine, _MAX_SIBLINGS)
        self._load(KeyRequest(each, "") for each in names)
        return [each for each in names if each != name and each in self._there and self._owner(each, None) is None]

    def _complete(self, owner: KeyOwner) -> _Found:
        """Read the siblings: those that can be named, then, for stores that do not list them, those that SCAN finds."""
        found = formats.format_of(owner.store)
        if found.scanned and not self._scanned:
            joined = owner.prefix if owner.prefix[-1:].isalnum() else ""  # so that the id stands by itself
            self._scan(joined + owner.session.replace(":", found.colon))
        owners = {name: self._owner(name, owner.session) for name in self._there}
        damaged = {name for name, each in owners.items() if each is None and found.names_message(owner, name)}
        owners |= dict.fromkeys(damaged, owner._replace(part="message"))
        own = {name: each for name, each in owners.items() if each and each.group == owner.group}
        owner = next(iter(own.values()), owner)
        parts = {name: member.part for name, member in own.items()}
        shared: set[str] = set()
        for _ in range(_ROUNDS):
            values = {name: loaded.value if (loaded := self._loaded[name]) else None for name in parts}
            new: list[KeyRequest] = _or_default(partial(formats.lacking, SessionValues(owner, values)), [])
            if not new:
                break
            self._load(new)
            parts |= {each.name: each.part for each in new}
            shared |= {each.name for each in new if each.shared}
        keys = {name: self._loaded[name] for name in parts}
        return _Found(self._wanted, self._named(owner, parts), keys, parts, frozenset(shared), tuple(self._notes))

    def _named(self, owner: KeyOwner, names: Iterable[str]) -> KeyOwner:
        """Return the owner with the session's own id if only a sibling of the key that was given states it."""
        if owner.prefix:
            return owner
        owners = (self._owner(name, None) for name in names if name in self._there)
        same = (each for each in owners if each and each.store == owner.store and each.prefix)
        return next((each for each in same if each.prefix + each.session == owner.session), owner)

    def _owner(self, name: str, wanted: str | None) -> KeyOwner | None:
        seen = self._owners.setdefault(wanted, {})
        if name not in seen:
            raw = self._there[name].value
            # The payload decides which store wrote a key, and the id that is searched where the name's prefix ends.
            first = None if wanted is None else self._owner(name, None)
            store = first.store if first else ""
            seen[name] = _or_default(lambda: formats.recognise(raw, wanted, store=store), None)
        return seen[name]


def _part_of(name: str, session: str, names: Sequence[str]) -> str:
    """Return what stands behind the id in an unknown key's name: ``messages``, ``meta``."""
    base = session if session not in names or len(names) == 1 else min(names, key=len)
    found = _SUFFIX.search(name) if base in name else None
    return found[0].strip(":/|{}.#_-") if found and len(names) > 1 and not found[0][-1:].isdigit() else unknown.STORE


def _or_default(call: Callable[[], T], otherwise: T) -> T:
    """Return what a decoder returns; hostile bytes must not stop an inspection, whatever they do to a decoder."""
    try:
        return call()
    except Exception:  # noqa: BLE001 - none is known; the fuzzer looks for them
        return otherwise


def _ambiguous(wanted: str, choices: Sequence[tuple[str, str]]) -> AmbiguousSession:
    listed = "; ".join(f"{printable(key, 200)} ({store})" for store, key in choices[:_LEADS])
    listed += f"; and {len(choices) - _LEADS:,} more" if len(choices) > _LEADS else ""
    message = f"{printable(wanted, 200)!r} fits {len(choices):,} sessions; give one of these keys: {listed}"
    return AmbiguousSession(message, tuple(key for _, key in choices))


def _report(reader: Reader, found: _Found, expected: Sequence[Expectation], *, reveal: bool) -> SessionReport:
    is_unknown = found.owner.store == unknown.STORE
    values = {name: loaded.value if loaded else None for name, loaded in found.keys.items()}
    stored = SessionValues(found.owner, values)
    messages, problems, notes, configured = _decoded(stored, Redactor(reveal=reveal))
    stored_keys = {name: loaded for name, loaded in found.keys.items() if loaded}
    loaded, fields_without_ttl = _with_field_ttls(reader, stored_keys)
    if ended := sum(each.metadata.ttl_ms is None and loaded[name] is not each for name, each in stored_keys.items()):
        notes.append(f"the TTL of {counted(ended, 'hash', 'hashes')} is that of its last field (HPTTL)")
    own = {name: each for name, each in loaded.items() if name not in found.shared}
    store = unknown.STORE if is_unknown else _or_default(lambda: formats.store_name(stored), found.owner.store)
    option = "" if is_unknown else formats.format_of(found.owner.store).ttl_option
    newest_s = max((one.at_s for one in messages if one.at_s is not None), default=None)
    facts = SessionFacts(
        ttl_option=f"; {store} {option}" if option else "",
        expect=[one.of_spring_session() for one in expected] if is_unknown and _is_spring(reader, own) else expected,
        configured=configured.policy if configured else None,
        newest_ms=None if newest_s is None else newest_s * 1000,
        now_ms=reader.now_ms() if expected or configured else 0.0,
        fields_without_ttl=fields_without_ttl,
    )
    own = _without_counters(own, notes) if is_unknown else own
    if expired := [one for one in problems if expired_as_expected(one, facts)]:
        problems = [one for one in problems if one not in expired]
        notes.append("older checkpoints than these have expired, as expected: the thread cannot be rewound to them")
    problems += key_problems(own, facts)
    if expected and not any(one.matches.fullmatch(to_bytes(name)) for name in own for one in expected):
        notes.append("no expectation matches a key of this session: " + ", ".join(one.pattern for one in expected))
    if reader.scanned_keys:
        notes.append(f"SCAN examined {counted(reader.scanned_keys, 'key')} to find it")
    if why := reader.target.why_idle_times_reset:
        notes.append(f"reading reset the idle times of {counted(reader.read_keys, 'key')}: {why}")
    mask = (lambda name: name) if reveal else name_mask(loaded, found.wanted)
    return SessionReport(
        store=store,
        session=mask(found.owner.session),
        messages=messages,
        keys=tuple(
            _key_report(name, each, found, reveal=reveal)
            for name, each in loaded.items()
            if name not in found.shared or _has_entries(each.value)
        ),
        problems=tuple(
            problem._replace(key=mask(problem.key), repair=masked_repair(problem.repair, mask)) for problem in problems
        ),
        notes=tuple(dict.fromkeys((*found.notes, *notes))),
        revealed=reveal,
    )


def _without_counters(own: dict[str, LoadedKey], notes: list[str]) -> dict[str, LoadedKey]:
    """Return the keys without counters, and note them: as in an audit, an integer holds no dialogue."""
    counters = {name for name, each in own.items() if each.metadata.encoding == "int"}
    if not counters or len(counters) == len(own):
        return own
    notes.append(f"TTLs were not compared with {counted(len(counters), 'counter')}: a counter is only an integer")
    return {name: each for name, each in own.items() if name not in counters}


def _is_spring(reader: Reader, own: Mapping[str, LoadedKey]) -> bool:
    """Return whether a session has the keys of Spring Session: a hash, and a key with ``expires`` before the id."""
    hashes = (name.rpartition(":") for name, each in own.items() if each.metadata.kind == "hash")
    markers = [to_bytes(f"{before}:expires:{session}") for before, _, session in hashes if before]
    return bool(markers) and any(reader.exist(markers[:1]))


def _with_field_ttls(
    reader: Reader, loaded: Mapping[str, LoadedKey]
) -> tuple[dict[str, LoadedKey], dict[str, tuple[int, int]]]:
    """Return the keys, hashes that end with their last field with that TTL; and how many fields of a hash lack one."""
    found, without = dict(loaded), {}
    hashes = [name for name, each in loaded.items() if each.metadata.kind == "hash"][:MAX_HASHES]
    deadlines = {name: field_deadlines(reader.target.route(to_bytes(name)), to_bytes(name)) or () for name in hashes}
    now_ms = reader.now_ms() if any(deadlines.values()) else 0.0
    for name, times in deadlines.items():
        metadata = loaded[name].metadata
        if lacking := sum(at <= 0 for at in times):
            without[name] = (lacking, len(times))
        elif times:
            left_ms = max(0, round(max(times) - now_ms))
            left_ms = left_ms if metadata.ttl_ms is None else min(left_ms, metadata.ttl_ms)
            found[name] = loaded[name]._replace(metadata=metadata._replace(ttl_ms=left_ms))
    return found, without


def _has_entries(value: RedisValue) -> bool:
    """Return whether a key that sessions share has an entry of this session, or is not read by its entries."""
    return bool(value.members or value.fields or value.scores or value.data or value.unread_reason)


def _decoded(
    stored: SessionValues, redactor: Redactor
) -> tuple[list[Message], list[Problem], list[str], ConfiguredTtl | None]:
    """Run the store's decoder; whatever it meets, what it yielded before stays."""
    messages: list[Message] = []
    problems: list[Problem] = []
    notes: list[str] = []
    configured = None
    decode = unknown.decode if stored.owner.store == unknown.STORE else formats.decode
    try:
        for item in decode(stored):
            if isinstance(item, Turn):
                messages.append(redactor.message(item))
            elif isinstance(item, Problem):
                problems.append(item)
            elif isinstance(item, Note):
                notes.append(item.message)
            else:
                configured = item
            del item  # a text may have 10 MB: release it before the next one is parsed
    except Exception as error:  # noqa: BLE001 - hostile bytes must not stop an inspection; the error's text may hold some
        reason = f"this payload could not be decoded any further ({type(error).__name__}); what came before it is shown"
        problems.append(Problem("corrupt", next(iter(stored.keys), ""), reason))
    return messages, problems, notes, configured


def _key_report(name: str, each: LoadedKey, found: _Found, *, reveal: bool) -> KeyReport:
    meta = each.metadata
    ttl_s = None if meta.ttl_ms is None else meta.ttl_ms / 1000
    payload = preview = None
    if found.owner.store == unknown.STORE:
        first = None if each.value.unread_reason else next(iter(each.value.payloads), None)
        payload = None if first is None else encoding_of(first)
        preview = hex_view(first or b"") or None if reveal else None
    part = found.parts.get(name, "")
    return KeyReport(name, meta.kind, part, ttl_s, meta.size_bytes, meta.idle_s, meta.encoding, payload, preview)
