"""Stores with keys and messages of a known shape, described as data: see ``store_layouts`` for the entries.

A pattern holds ``{id}`` for the session's id, ``{#}`` for digits, ``{ulid}`` for a ULID and ``{*}`` for any text.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache, partial
from typing import Any

from memkit.formats.model import (
    NO_TTL_OPTION,
    SEPARATORS,
    ConfiguredTtl,
    Format,
    Item,
    KeyOwner,
    Note,
    Problem,
    SessionValues,
    a_list,
    few,
    text_or_none,
)
from memkit.formats.parsing.any_message import messages_of, read_any
from memkit.formats.parsing.bounded_json import MAX_JSON_BYTES
from memkit.formats.parsing.conversation import Entry, find_entries, in_order, trailing_number
from memkit.formats.parsing.documents import (
    messages,
    misshapen,
    open_payload,
    peek,
    read,
    read_document,
    salvage,
    wrong_kind,
)
from memkit.formats.parsing.element_shapes import missing
from memkit.formats.parsing.list_elements import Convert, most_are, turns
from memkit.policy import MAX_TTL_MS, ExpiryPolicy
from memkit.readonly.values import DOCUMENT_KINDS, KeyRequest, RedisValue, to_name

_TOKENS = {"{#}": r"\d+", "{*}": ".+?", "{ulid}": "[0-9A-HJKMNP-TV-Z]{26}"}
_TOKEN = re.compile(r"(\{(?:id|#|\*|ulid)\})")
_ANY_PREFIX = rf"(?:.*?[{re.escape(SEPARATORS)}])??"
_NOTHING = (b"", b"null", b"{}", b"[]")
MESSAGES, MESSAGE, IDS = "messages", "message", "ids"


@dataclass(frozen=True, slots=True)
class Key:
    """One kind of key of a store.

    Attributes:
        pattern: The name, after the store's prefix.
        kinds: The Redis types that it may have.
        part: Its part in the session, for the report.
        fields: The fields by which its document, or most of its elements, is recognised. Without them the name decides.
        holds: ``messages``, one ``message``, the ``ids`` of messages in their order, or nothing to decode.
        shared: Whether it holds other sessions' entries too, and may be persistent.
        lost: What is wrong if it no longer exists while the session's other keys do; empty if nothing is.
        popped: Whether the store can remove its last element, which removes the key.
    """

    pattern: str
    _: KW_ONLY
    kinds: tuple[str, ...] = DOCUMENT_KINDS
    part: str = "primary"
    fields: tuple[str, ...] = ()
    holds: str = ""
    shared: bool = False
    lost: str = ""
    popped: bool = False

    def name(self, stored: SessionValues) -> str:
        """Return the name of the session's key; tokens other than the id remain in it."""
        return stored.owner.prefix + self.pattern.replace("{id}", stored.owner.session)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A store with messages of a known shape.

    Attributes:
        store: The name of the store.
        prefix: What its names begin with by default; users change it.
        keys: The kinds of its keys.
        ttl_unit: The unit of its TTL option; empty if it has none.
        default_ttl: The TTL if the option is not set; None: no TTL.
        id_field: The field of a document that holds the session's id.
        messages_field: The field of a document that holds the messages; empty if the document is the array, or if the
            messages are to be searched.
        looks: Whether an object is one of this store's, if the names of its fields do not suffice.
        convert: Turns one object into messages; see ``list_elements.turns``.
        colon: How names write a colon of the session's id.
        newest_first: Whether the head of a list is the newest message; without it, it is the oldest.
        loses_calls: Whether the library drops an assistant's tool calls when it writes.
        web_session: Whether the document is a web session, which need not contain a dialogue.
        ttl_field: The field of a document that states its TTL in seconds.
        written_s: Returns when a document was last written, if its fields together state that.
        notes: Returns what its users should know if a session shows it.
        name_of: Returns the name to report, if it depends on the session.
    """

    store: str
    prefix: str = ""
    keys: tuple[Key, ...]
    ttl_unit: str = "seconds"
    default_ttl: str | None = None
    id_field: str = ""
    messages_field: str = ""
    looks: Callable[[Mapping[str, Any]], bool] | None = None
    convert: Convert = read_any
    colon: str = ":"
    newest_first: Callable[[RedisValue], bool] | None = None
    loses_calls: bool = False
    web_session: bool = False
    ttl_field: str = ""
    written_s: Callable[[Mapping[str, Any]], float | None] | None = None
    notes: Callable[[SessionValues], Iterable[str]] | None = None
    name_of: Callable[[SessionValues], str] | None = None

    def format(self) -> Format:
        """Return the layout as a format that can be registered."""
        own = [key for key in self.keys if not key.shared]
        return Format(
            store=self.store,
            kinds=tuple(dict.fromkeys(kind for key in own for kind in key.kinds)),
            recognise=partial(_recognise, self),
            siblings=partial(_siblings, self),
            decode=partial(_decode, self),
            names=tuple(name for key in own if not _is_open(name := self.prefix + key.pattern)),
            scanned=any(_is_open(key.pattern) for key in own),
            prefix="" if _is_open(self.prefix) else self.prefix,
            loses_calls=self.loses_calls,
            ttl_option=f"takes its TTL in {self.ttl_unit}; the default is {self.default_ttl or 'no TTL'}"
            if self.ttl_unit
            else NO_TTL_OPTION,
            name_of=self.name_of,
            written_s=self.written_s,
            colon=self.colon,
            names_message=partial(_names_message, self),
        )


def _is_open(pattern: str) -> bool:
    """Return whether a pattern has a part beside the id that cannot be derived from it."""
    return any(token in pattern for token in _TOKENS)


@lru_cache(maxsize=1_024)
def _regex(prefix: str, pattern: str, session: str | None, colon: str, before: str = _ANY_PREFIX) -> re.Pattern[str]:
    named = _translated(pattern, session, colon)
    return re.compile(f"(?P<prefix>{before}{_translated(prefix, None)}){named}", re.DOTALL)


@lru_cache(maxsize=1_024)
def _translated(pattern: str, session: str | None, colon: str = ":") -> str:
    any_id = "(?P<id>.+)" if pattern.endswith("{id}") else "(?P<id>.+?)"
    own = re.escape(session or "").replace(":", f"(?:{re.escape(colon)}|:)")
    tokens = {**_TOKENS, "{id}": f"(?P<id>{own})" if session else any_id}
    return "".join(tokens.get(piece) or re.escape(piece) for piece in _TOKEN.split(pattern))


def _recognise(layout: Layout, raw: RedisValue, wanted: str | None) -> KeyOwner | None:
    for key in layout.keys:
        if "{id}" not in key.pattern or raw.kind not in key.kinds or not _looks_alike(layout, key, raw):
            continue
        stated = None
        if layout.id_field and raw.kind == "hash":
            stated = raw.fields.get(layout.id_field, b"").decode("utf-8", "replace") or None
        elif layout.id_field:
            stated = text_or_none(peek(raw).get(layout.id_field))
        session = wanted or stated
        if wanted and stated not in (None, wanted):
            continue
        found = _regex(layout.prefix, key.pattern, session, layout.colon).fullmatch(raw.name)
        literal = session or key.pattern != "{id}"
        if found is None and key.fields and literal and (stated or not _is_open(layout.prefix)):
            # The user's own prefix ends with a separator, unless the document states where the id begins.
            found = _regex("", key.pattern, session, layout.colon, ".*?" if stated else _ANY_PREFIX).fullmatch(raw.name)
        if found:
            return KeyOwner(layout.store, found["id"].replace(layout.colon, ":"), found["prefix"], key.part)
        if key.fields and session is None and key.pattern == "{id}":
            return KeyOwner(layout.store, raw.name, "", key.part)
    return None


def _names_message(layout: Layout, owner: KeyOwner, name: str) -> bool:
    numbered = (key for key in layout.keys if key.holds == MESSAGE and key.pattern.endswith(("{#}", "{ulid}")))
    rest = name.removeprefix(owner.prefix)
    own = (re.fullmatch(_translated(key.pattern, owner.session, layout.colon), rest, re.DOTALL) for key in numbered)
    return name.startswith(owner.prefix) and any(own)


def _looks_alike(layout: Layout, key: Key, raw: RedisValue) -> bool:
    if not key.fields:
        return bool(layout.prefix)
    is_named = raw.name.startswith(layout.prefix or "\0")
    if raw.kind == "hash":
        return is_named or all(field in raw.fields for field in key.fields)
    if raw.kind == "list":
        return most_are(raw, partial(_looks, layout, key), named=is_named)
    # Not parsed if a field is not there, because most documents are of other stores, or if it is too large.
    is_small = len(raw.data) <= MAX_JSON_BYTES
    found = _objects(raw) if is_small and all(field.encode() in raw.data for field in key.fields) else []
    if 2 * sum(_looks(layout, key, value) for value in found) > len(found):
        return True
    # A damaged document is recognised by a name that no other store uses: one under the library's own prefix.
    if not (layout.id_field and layout.prefix):
        return False
    if not re.fullmatch(_translated(layout.prefix + key.pattern, None), raw.name, re.DOTALL):
        return False
    if raw.data.strip() in _NOTHING:
        return not raw.unread_reason
    begins = raw.data.startswith(tuple(f'{{"{field}"'.encode() for field in (layout.id_field, *key.fields)))
    return begins or 2 * sum(f'"{field}"'.encode() in raw.data for field in key.fields) > len(key.fields)


def _looks(layout: Layout, key: Key, value: Mapping[str, Any]) -> bool:
    return all(field in value for field in key.fields) and (layout.looks is None or layout.looks(value))


def _objects(raw: RedisValue) -> list[Mapping[str, Any]]:
    """Return the object that a document is, or the first ones of its array."""
    value = peek(raw) if raw.data[:1] == b"{" else open_payload(raw.data).value
    return [each for each in (value[:3] if isinstance(value, list) else [value]) if isinstance(each, dict) and each]


def _as_in_names(layout: Layout, stored: SessionValues) -> SessionValues:
    """Return the session with its id as names write it."""
    return stored._replace(owner=stored.owner._replace(session=stored.owner.session.replace(":", layout.colon)))


def _siblings(layout: Layout, stored: SessionValues) -> Iterator[KeyRequest]:
    stored = _as_in_names(layout, stored)
    listed = _listed(layout, stored)
    for key in layout.keys:
        name = key.name(stored)
        if _is_open(key.pattern):
            yield from (KeyRequest(name.replace("{*}", uid), key.part) for uid in listed)
        else:
            yield KeyRequest(name, key.part, (stored.owner.session,) if key.shared else (), shared=key.shared)


def _listed(layout: Layout, stored: SessionValues) -> list[str]:
    """Return the ids of messages in the order of the key that lists them."""
    for raw in (stored.get(key.name(stored)) for key in layout.keys if key.holds == IDS):
        if raw and raw.kind == "zset":
            return sorted(raw.scores, key=lambda uid: (raw.scores[uid], uid))
        return [to_name(element).strip('"') for element in raw.elements] if raw else []
    return []


def _key_of(layout: Layout, stored: SessionValues, raw: RedisValue) -> Key | None:
    rest, session = raw.name.removeprefix(stored.owner.prefix), stored.owner.session.replace(layout.colon, ":")
    for key in layout.keys:
        if _is_open(key.pattern):  # otherwise an expression for each session would be compiled: 0.4 ms
            named = re.fullmatch(_translated(key.pattern, session, layout.colon), rest, re.DOTALL) is not None
        else:
            named = raw.name == key.name(stored)
        if named:
            objects = _objects(raw) if key.fields and raw.kind != "list" else []
            if not objects or any(field in each for each in objects for field in key.fields):
                return key
    return None


def _decode(layout: Layout, stored: SessionValues) -> Iterator[Item]:
    stored = _as_in_names(layout, stored)
    single: dict[str, Entry] = {}
    readable = [raw for raw in stored.keys.values() if raw and not raw.unread_reason]
    own = [(raw, key) for raw in readable if (key := _key_of(layout, stored, raw))]
    for raw, key in own:
        if raw.kind not in key.kinds:
            yield wrong_kind(raw, f"a {key.kinds[0]}")
        elif key.holds == MESSAGES and raw.kind == "list":
            newest_first = layout.newest_first is not None and layout.newest_first(raw)
            yield from turns(raw, layout.convert, store=layout.store, newest_first=newest_first)
        elif key.holds == MESSAGES:
            yield from _from_document(layout, raw)
        elif key.holds == MESSAGE:
            value, problems = read(raw)
            yield from problems
            found = None if value is None else layout.convert(value, raw.name)
            if isinstance(found, str):
                yield misshapen(raw.name, found)
            elif value is not None and found is not None:
                single[raw.name] = Entry(found, messages_of(value, raw.name)[1])
        elif raw.kind in DOCUMENT_KINDS and key.fields:
            yield from read_document(raw)[1]
    yield from _a_key_each(layout, stored, single)
    named = {key.name(stored): key for key in layout.keys if key.lost}
    lost = [(name, key) for name, key in named.items() if name in stored.keys and stored.get(name) is None]
    if any(key.holds or key.lost for _, key in own):
        yield from (Problem("dangling", name, key.lost, pop_explains=key.popped) for name, key in lost)
    yield from (Note(text) for text in (layout.notes(stored) if layout.notes else ()))


def _from_document(layout: Layout, raw: RedisValue) -> Iterator[Item]:
    value, problems = read(raw) if layout.messages_field else read_document(raw)
    yield from problems
    if value is None and layout.messages_field:
        value = {layout.messages_field: list(salvage(raw.data, layout.messages_field))}
    if layout.ttl_field and isinstance(value, dict):
        ttl_s = value.get(layout.ttl_field)
        is_ttl = type(ttl_s) is int and 0 < ttl_s * 1000 <= MAX_TTL_MS
        yield ConfiguredTtl(ExpiryPolicy.of(ttl_s if is_ttl else None))
    if layout.web_session:
        entries = find_entries(value, raw.name)
        yield from in_order(entries)
        if not entries:
            named = open_payload(raw.data).encoding
            reason = "no messages are found in it" if value is not None else f"it is {named}, which is never loaded"
            yield Note(f"the web session is not decoded: {reason}")
    elif value is not None:
        array = value.get(layout.messages_field) if isinstance(value, dict) else value
        if not isinstance(array, list):
            lacks = missing(value, (layout.messages_field,), kind=list) if layout.messages_field else None
            yield misshapen(raw.name, lacks or "it has no array of messages")
        what = layout.messages_field.removesuffix("s") or "message"
        yield from messages(a_list(array), raw.name, layout.convert, what)


def _a_key_each(layout: Layout, stored: SessionValues, single: Mapping[str, Entry]) -> Iterator[Item]:
    """Yield messages that have a key each: in the order of the key that lists them, or of their times and numbers."""
    names = [key.name(stored) for key in layout.keys if key.holds == MESSAGE]
    listed = [name.replace("{*}", uid) for name in names for uid in _listed(layout, stored)]
    rest = sorted(single.keys() - set(listed),
                  key=lambda name: (single[name].place or 0.0, trailing_number(name) or 0, name))  # fmt: skip
    for name in [*(name for name in listed if name in single), *rest]:
        yield from single[name].turns
    lost = [name for name in listed if name in stored.keys and stored.get(name) is None]
    reason = "the session lists this message, and its key no longer exists"
    yield from few(Problem("dangling", name, reason) for name in lost)
