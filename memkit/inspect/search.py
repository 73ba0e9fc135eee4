"""One session, whatever wrote it: found, decoded, redacted, checked. Read-only; nothing is ever changed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from memkit import formats
from memkit.errors import AmbiguousSession, PolicyError, SessionNotFound
from memkit.formats import ag2, agent_framework_redis, langgraph_redis, langgraph_redis_shallow, redisvl, unknown
from memkit.formats.capture import load_capture
from memkit.formats.model import SEPARATORS, Hit, Known, Meant, Note, Problem, Run, Turn, is_uuid, unquoted
from memkit.formats.parsing.encodings import hex_view
from memkit.inspect.report import KeyReport, Messages, SessionReport, Veil, early_ends, span
from memkit.readonly.reader import LoadedKey, Reader
from memkit.readonly.target import open_target
from memkit.readonly.values import KeyRequest, RedisValue, to_bytes, to_name
from memkit.render import printable

__all__ = ["SessionReport", "inspect_session", "load_capture"]

SCAN_FREELY_KEYS = 1_000_000
"""Up to here the database is always searched for further sessions of the same id: about a second of SCAN."""
SCAN_TWICE_KEYS = 100_000
"""Up to here it is always searched again for the one store that encodes the id in its keys."""
MAX_NAMES = 50_000
BIG_VALUE_BYTES = 1 << 20
_WITHOUT_TTL = (redisvl.STORE, ag2.STORE, agent_framework_redis.STORE)
_ROUNDS = 5
_SAID = 5
_LED_TO = 20
T = TypeVar("T")
Group = tuple[str, str, str]
_WORDS = re.compile(r"([:|/{}\0]+)")
_MADE = re.compile(r"[:|/{}\0]*|[0-9]{1,6}", re.ASCII)
_COMMAND_WORD = re.compile(r'"[^"]*"|<[^>]*>|\S+')
_COMMAND_WORDS = ("SET", "ZADD", "EX", "KEEPTTL")
_GLOB = re.compile(r"[*?\[\]^\\]")


def inspect_session(url_or_client: Any, session_id: str | bytes, *, reveal: bool = False) -> SessionReport:
    """Find a session by its id or by any of its keys, decode it, and say what is wrong with it.

    Texts, names and ids inside payloads are redacted unless ``reveal``. Reads on a connection of its own, with CLIENT
    NO-TOUCH where the server has it (7.2, Valkey); where not, a note says how many idle clocks were reset. At most
    64 MB and 100,000 elements are read. Raises SessionNotFound, and AmbiguousSession when an id fits several stores'
    sessions (its ``keys`` are the ones to choose from; a full key always works).
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
    with open_target(url_or_client) as target:
        reader = Reader(target)
        return _report(reader, _Search(reader, wanted).run(), reveal=reveal)


@dataclass(frozen=True)
class _Found:
    """The keys of one session; None for a key that should be there. ``notes`` are about the search."""

    wanted: str
    hit: Hit
    keys: Mapping[str, LoadedKey | None]
    parts: Mapping[str, str]
    shared: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


class _Search:
    """Finds the keys of the session that an id or a key means."""

    def __init__(self, reader: Reader, wanted: str) -> None:
        self._reader, self._wanted = reader, wanted
        self._loaded: dict[str, LoadedKey | None] = {}
        self._there: dict[str, LoadedKey] = {}
        self._hits: dict[str | None, dict[str, Hit | None]] = {}
        self._notes: list[str] = []
        self._scanned = False

    def run(self) -> _Found:
        exact = [self._wanted, *(name for store in formats.FORMATS for name in store.names(self._wanted))]
        self._load(KeyRequest(prefix + name, "") for name in exact for prefix in {"", self._reader.target.prefix})
        if self._loaded.get(self._wanted):
            return self._by_key(self._wanted)
        groups, size = self._groups(), self._reader.database_keys()
        if size <= SCAN_FREELY_KEYS or not groups:
            groups = self._groups() if self._scan(self._wanted) else groups
            if size <= SCAN_TWICE_KEYS or not groups:
                groups = self._groups() if self._scan(agent_framework_redis.encoded(self._wanted)) else groups
        else:
            self._notes.append(f"over {SCAN_FREELY_KEYS:,} keys: other stores' sessions of this id were not looked for")
        return self._by_id(groups)

    def _load(self, wants: Iterable[KeyRequest]) -> bool:
        """Read the keys that were not yet asked for; return whether there were any."""
        new = [want for want in wants if want.name not in self._loaded]
        if new:
            loaded = self._reader.load(new)
            self._loaded |= loaded
            self._there |= {name: each for name, each in sorted(loaded.items()) if each}
        return bool(new)

    def _scan(self, part: str) -> bool:
        """Search the names of the whole database; no key is looked at but those that hold the id, and that are new."""
        # "1" is in nearly every name: only where it stands by itself is a key looked at.
        alone = re.compile(rf"(?:^|[\W_]){re.escape(part)}(?:$|[^\w-])")
        names = self._reader.scan(f"{_glob(self._reader.target.prefix)}*{_glob(part)}*", alone, MAX_NAMES)
        self._scanned = True
        if len(names) == MAX_NAMES:
            self._notes.append(f"over {MAX_NAMES:,} keys have this id in their name; the others were left out")
        # Names end with times and counters: read the newest first, for the budget may not last.
        return self._load(KeyRequest(name, "") for name in reversed(names))

    def _groups(self) -> dict[Group, dict[str, Hit]]:
        """Return the keys of each session of this id; a strong boundary before the id beats a weak one."""
        groups: dict[Group, dict[str, Hit]] = {}
        for name in self._there:
            hit = self._hit(name, self._wanted)
            if hit and hit.session == self._wanted and not hit.prefix[-1:].isalnum():
                groups.setdefault(hit.group, {})[name] = hit
        strong = {group: hits for group, hits in groups.items() if group[2][-1:] in SEPARATORS}
        return one_store_a_session(strong or groups)

    def _by_id(self, groups: Mapping[Group, Mapping[str, Hit]]) -> _Found:
        if len(groups) > 1:
            raise _ambiguous(self._wanted, [(group[0], next(iter(hits))) for group, hits in groups.items()])
        if groups:
            return self._complete(next(iter(next(iter(groups.values())).values())))
        return self._strangers()

    def _strangers(self) -> _Found:
        """Return the keys of no known store that have the id in their name."""
        mine = re.compile(rf"(.*[^\w-])?{re.escape(self._wanted)}([^\w-].*)?", re.DOTALL)
        names = [name for name in self._there if mine.fullmatch(name) and self._hit(name, None) is None]
        if not names and self._reader.scan_refused:
            raise SessionNotFound(
                f"no known store's default key has {printable(self._wanted, 200)!r}, and others cannot be looked for: "
                f"the server refused SCAN ({self._reader.scan_refused}). Give a full key, or a user that may scan: "
                "`memkit audit URL --acl` prints one"
            )
        if not names:
            raise SessionNotFound(
                f"no session {printable(self._wanted, 200)!r} here: no known store's key has it, and none of "
                f"{_keys(self._reader.scanned_keys)} has it in its name: expired, evicted, deleted, another database?"
            )
        return self._as_unknown(self._wanted, names)

    def _as_unknown(self, session: str, names: list[str]) -> _Found:
        keys = {name: self._there[name] for name in names}
        hit = Hit(unknown.STORE, session, "", "unknown")
        return _Found(self._wanted, hit, keys, dict.fromkeys(names, "unknown"), notes=tuple(self._notes))

    def _by_key(self, name: str) -> _Found:
        """Return the session that a key belongs to."""
        hit = self._hit(name, None) or self._led_to(name)
        if hit is None:
            return self._as_unknown(name, [name])
        others = {group[0] for group in self._groups()} - {hit.store}
        if others:
            self._notes.append(f"this is a key; as an id it also fits sessions of {', '.join(sorted(others))}")
        return self._complete(hit)

    def _led_to(self, name: str) -> Hit | None:
        """Return the session that a shared index lists, if it lists any."""
        names = formats.leads(self._there[name].value)[:_LED_TO]
        self._load(KeyRequest(each, "") for each in names)
        hits = {hit.group: (each, hit) for each in names if each in self._there and (hit := self._hit(each, None))}
        if len(hits) > 1:
            raise _ambiguous(name, [(hit.store, each) for each, hit in hits.values()])
        return next((hit for _, hit in hits.values()), None)

    def _complete(self, hit: Hit) -> _Found:
        """Read the siblings: those that can be named, then, for stores that do not list them, those that SCAN finds."""
        if formats.format_of(hit.store).SCANNED and not self._scanned:
            self._scan(hit.session)
        hits = self._members(hit)
        hit = next(iter(hits.values()), hit)
        parts = {name: member.part for name, member in hits.items()}
        for _ in range(_ROUNDS):
            wants = {want.name: want for want in self._wants(hit, parts) if want.name not in parts}
            # Of shared keys only this session's entries are read, so those must all be known first.
            new = [want for want in wants.values() if not want.shared] or list(wants.values())
            if not new:
                break
            self._load(new)
            parts |= {want.name: want.part for want in new}
        hit = self._named(hit, parts)
        shared = {want.name for want in self._wants(hit, parts) if want.shared}
        keys = {name: self._loaded[name] for name in parts}
        return _Found(self._wanted, hit, keys, parts, frozenset(shared), tuple(self._notes))

    def _named(self, hit: Hit, names: Iterable[str]) -> Hit:
        """Return the hit with the session's own id, where only a sibling of the key that was given tells it."""
        if hit.prefix:
            return hit
        hits = (self._hit(name, None) for name in names if name in self._there)
        same = (each for each in hits if each and each.store == hit.store and each.prefix)
        return next((each for each in same if each.prefix + each.session == hit.session), hit)

    def _wants(self, hit: Hit, names: Iterable[str]) -> list[KeyRequest]:
        known = Known(hit, {name: loaded.value if (loaded := self._loaded[name]) else None for name in names})
        return _shielded(lambda: list(formats.format_of(hit.store).wants(known)), [])

    def _members(self, hit: Hit) -> dict[str, Hit]:
        """Return the keys read so far that belong to the session of a key."""
        groups: dict[Group, dict[str, Hit]] = {}
        for name in self._there:
            member = self._hit(name, hit.session)
            if member and (member.session, member.prefix) == (hit.session, hit.prefix):
                groups.setdefault(member.group, {})[name] = member
        merged = one_store_a_session(groups)
        return merged.get(hit.group) or merged.get(_shallow(hit.group), {})

    def _hit(self, name: str, wanted: str | None) -> Hit | None:
        seen = self._hits.setdefault(wanted, {})
        if name not in seen:
            raw = self._there[name].value
            seen[name] = _shielded(lambda: formats.recognise(raw, wanted), None)
        return seen[name]


def _shielded(call: Callable[[], T], otherwise: T) -> T:
    """Return what a decoder answers; hostile bytes must not stop an inspection, whatever they do to a decoder."""
    try:
        return call()
    except Exception:  # noqa: BLE001 - none is known; the fuzzer looks for them
        return otherwise


def one_store_a_session(groups: dict[Group, dict[str, Hit]]) -> dict[Group, dict[str, Hit]]:
    """Give LangGraph's writes, alike in both savers, to the shallow one where nothing else is the full one's."""
    for group in [group for group, hits in groups.items() if {hit.part for hit in hits.values()} == {"write"}]:
        owner = _shallow(group)
        if owner != group and owner in groups:
            module = langgraph_redis_shallow.STORE
            groups[owner] |= {name: hit._replace(store=module) for name, hit in groups.pop(group).items()}
    return groups


def _shallow(group: Group) -> Group:
    return (langgraph_redis_shallow.STORE if group[0] == langgraph_redis.STORE else group[0], *group[1:])


def _ambiguous(wanted: str, choices: Sequence[tuple[str, str]]) -> AmbiguousSession:
    listed = "; ".join(f"{printable(key, 200)} ({store})" for store, key in choices)
    says = f"{printable(wanted, 200)!r} fits {len(choices)} sessions; give one of these keys: {listed}"
    return AmbiguousSession(says, tuple(key for _, key in choices))


def _glob(text: str) -> str:
    """Return a text as a glob that matches it alone."""
    return _GLOB.sub(r"\\\g<0>", text)


def _report(reader: Reader, found: _Found, *, reveal: bool) -> SessionReport:
    known = Known(found.hit, {name: loaded.value if loaded else None for name, loaded in found.keys.items()})
    veil = Veil(reveal=reveal)
    problems, notes, meant = _decoded(known, veil)
    loaded = {name: loaded for name, loaded in found.keys.items() if loaded}
    own = {name: each for name, each in loaded.items() if name not in found.shared}
    problems += _general_problems(found.hit, own, meant)
    mask = (lambda name: name) if reveal else _mask(loaded, found.wanted)
    return SessionReport(
        store=found.hit.store,
        session=mask(found.hit.session),
        messages=Messages(veil),
        keys=tuple(_key_report(name, each, found, reveal=reveal) for name, each in loaded.items()),
        problems=tuple(
            problem._replace(key=mask(problem.key), repair=_masked_repair(problem.repair, mask)) for problem in problems
        ),
        notes=(*found.notes, *notes, *_reading_notes(reader)),
        revealed=reveal,
    )


def _mask(names: Iterable[str], wanted: str) -> Callable[[str], str]:
    """Return what hides, in the name of a key that is not there, the words that only a payload can have told.

    Words of names that are there, of the id that was asked for, and those that the libraries make are shown.
    """
    there = set(names)

    @cache
    def known_words() -> frozenset[str]:
        return formats.VOCABULARY.union(*(_WORDS.split(name) for name in (*there, wanted)))

    def masked(name: str) -> str:
        if name in there or name == wanted:
            return name
        words = known_words()
        return "".join(
            word if word in words or _MADE.fullmatch(word) or is_uuid(word) else "…" for word in _WORDS.split(name)
        )

    return masked


def _masked_repair(repair: str, mask: Callable[[str], str]) -> str:
    """Return a command whose names are masked as keys are; then it cannot be pasted, and says where it can be had."""

    def shown(found: re.Match[str]) -> str:
        word = found[0]
        if word in _COMMAND_WORDS or word[0] == "<":
            return word
        name = unquoted(word)
        return word if mask(name) == name else mask(name)

    masked = _COMMAND_WORD.sub(shown, repair)
    return masked if masked == repair else f"{masked} (names in it are hidden; --reveal, or reveal=True, prints them)"


def _decoded(known: Known, veil: Veil) -> tuple[list[Problem], list[str], Meant | None]:
    """Run the store's decoder; whatever it meets, what it yielded before stays."""
    problems: list[Problem] = []
    notes: list[str] = []
    meant = None
    decode = unknown.decode if known.hit.store == unknown.STORE else formats.decode
    try:
        for item in decode(known):
            if isinstance(item, Turn | Run):
                veil.add(item)
            elif isinstance(item, Problem):
                problems.append(item)
            elif isinstance(item, Note):
                notes.append(item.says)
            else:
                meant = item
            del item  # see elements.turns
    except Exception as error:  # noqa: BLE001 - hostile bytes must not stop an inspection; the error's text may hold some
        says = f"this payload could not be decoded any further ({type(error).__name__}); what came before it is shown"
        problems.append(Problem("corrupt", next(iter(known.keys), ""), says))
    return problems, notes, meant


def _general_problems(hit: Hit, own: Mapping[str, LoadedKey], meant: Meant | None) -> list[Problem]:
    """Return what is wrong with the session's own keys, whatever store they are of."""
    problems = [*_lifetimes(hit, own, meant)]
    problems += _few(
        [
            Problem("unreadable", name, each.value.unread_reason)
            for name, each in own.items()
            if each.value.unread_reason
        ]
    )
    for name, each in own.items():
        if each.value.partial:
            read = len(each.value.elements) + len(each.value.scores)
            of = f" of {each.value.total:,}" if each.value.total > read else ""
            problems.append(Problem("truncated", name, f"only the first {read:,}{of} elements were read"))
    big = [problem for name, each in own.items() for problem in _big(name, each.value)]
    return problems + _few(big)


def _lifetimes(hit: Hit, own: Mapping[str, LoadedKey], meant: Meant | None) -> list[Problem]:
    ends = {name: each.metadata.ttl_ms / 1000 for name, each in own.items() if each.metadata.ttl_ms is not None}
    problems = _no_ttl(hit, [name for name in own if name not in ends], len(ends), meant)
    latest = max(ends.values(), default=0.0)
    parts = {name: (end, own[name].metadata.idle_s) for name, end in ends.items()}
    early = early_ends(parts, meant.ttl_ms / 1000 if meant and meant.ttl_ms else None)
    for name in early[:_SAID]:
        says = f"dies in {span(ends[name])}, the last part of the session in {span(latest)}: it will be torn between"
        problems.append(Problem("mixed_ttl", name, says))
    if len(early) > _SAID:
        problems.append(Problem("mixed_ttl", early[_SAID], f"… and {len(early) - _SAID:,} more parts that die early"))
    if meant and meant.ttl_ms and latest * 1000 > meant.ttl_ms * 1.01:
        says = f"lives {span(latest)} more, and its own policy gives it {span(meant.ttl_ms / 1000)} at most"
        problems.append(Problem("ttl_too_long", next(iter(ends)), says))
    return problems


def _no_ttl(hit: Hit, without: list[str], with_ttl: int, meant: Meant | None) -> list[Problem]:
    if not without or (meant and meant.ttl_ms is None):
        return []
    if with_ttl:
        says = "has no TTL while other parts of the session have one: it will stay when they are gone"
        return _few([Problem("no_ttl", name, says) for name in without])
    option = f"; {hit.store} has no TTL option" if hit.store in _WITHOUT_TTL else ""
    count = "it lives" if len(without) == 1 else f"all {len(without):,} keys live"
    return [
        Problem(
            "no_ttl", without[0], f"no part of the session has a TTL: {count} until somebody deletes or evicts{option}"
        )
    ]


def _big(name: str, raw: RedisValue) -> list[Problem]:
    size = max(map(len, raw.payloads), default=0)
    if size <= BIG_VALUE_BYTES:
        return []
    says = f"holds a value of {size / 1e6:.1f} MB: each read of it moves that much, and blocks others meanwhile"
    return [Problem("big_value", name, says)]


def _few(problems: list[Problem]) -> list[Problem]:
    """Return five of many like problems, and a sixth that counts the rest."""
    if len(problems) <= _SAID:
        return problems
    rest = problems[_SAID]._replace(says=f"… and {len(problems) - _SAID:,} more keys like it")
    return [*problems[:_SAID], rest]


def _key_report(name: str, each: LoadedKey, found: _Found, *, reveal: bool) -> KeyReport:
    meta = each.metadata
    ttl_s = None if meta.ttl_ms is None else meta.ttl_ms / 1000
    payload = preview = None
    if found.hit.store == unknown.STORE:
        payload = unknown.payload_encoding(each.value) or None
        preview = hex_view(next(iter(each.value.payloads), b"")) or None if reveal else None
    part = found.parts.get(name, "")
    return KeyReport(
        name, meta.kind, part, ttl_s, meta.size_bytes, meta.idle_s, meta.encoding, payload, preview or None
    )


def _keys(count: int) -> str:
    return f"{count:,} {'key' if count == 1 else 'keys'}"


def _reading_notes(reader: Reader) -> list[str]:
    scanned = f"SCAN walked {_keys(reader.scanned_keys)} to find it" if reader.scanned_keys else ""
    touched = f"reading reset the idle clocks of {_keys(reader.read_keys)}: {reader.target.touches_because}"
    return [note for note in (scanned, touched if reader.target.touches_because else "") if note]
