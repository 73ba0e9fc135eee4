"""Sessions of no known store: roles, texts, tools, times and order as far as the content shows them.

People keep a conversation as a string (a JSON array or object), a list, a hash (one field, or one for each message), a
sorted set by time, a stream, or a key for each message; see ``parsing.chat`` for the field names and
``parsing.documents`` for the encodings. If the content does not show the order, a note reports it.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from memkit.formats.model import Item, Note, Problem, SessionValues, Turn, few, seconds
from memkit.formats.parsing.any_message import spoken_lines
from memkit.formats.parsing.bounded_json import TOO_DEEP, TOO_LONG, json_start, parse
from memkit.formats.parsing.conversation import (
    LIKELY_FIELDS,
    Entry,
    entry_of,
    find_entries,
    in_order,
    json_in,
    named_entries,
    sorted_entries,
    trailing_number,
)
from memkit.formats.parsing.dialogue_checks import Dialogue
from memkit.formats.parsing.documents import open_payload
from memkit.formats.parsing.encodings import examine, has_lost_text, pickle_opcodes
from memkit.formats.parsing.list_elements import Faults
from memkit.readonly.values import DOCUMENT_KINDS, RedisValue, to_bytes
from memkit.render import counted

STORE = "unknown"
_SAMPLED = 6
_STRUCTURED = ("json", "json string", "ndjson", "msgpack")


TWICE = Note("the payload is JSON inside a JSON string (encoded twice): readers may read it as text")


class _Found(NamedTuple):
    """The messages of one key in its order, whether that order is proven, and what is wrong with its elements."""

    raw: RedisValue
    entries: Sequence[Entry] = ()
    ordered: bool = False
    faults: Sequence[Problem | Note] = ()


def decode(stored: SessionValues) -> Iterator[Item]:
    """Yield the messages of all keys, with notes on what the payloads are if they cannot be read."""
    read = [_found(raw) for raw in stored.keys.values() if raw and not raw.unread_reason]
    found = [each for each in read if each.entries]
    faults = [fault for each in read for fault in (*each.faults, *few(_damaged(each.raw) if each.entries else ()))]
    roles = [turn.role for each in found for entry in each.entries for turn in entry.turns]
    if roles == ["other"] or (len(roles) > 1 and set(roles) == {"system"}):
        found = []  # one text is not a conversation, and neither is a log
    several = [each for each in found if len(each.entries) > 1 or each.raw.kind in ("list", "zset", "stream")]
    single = [each for each in found if each not in several]
    for each in several:
        by_place = sorted_entries(each.entries) if each.raw.kind in ("hash", "set") else None
        entries = by_place or each.entries
        ids = {turn.uid for entry in entries for turn in entry.turns}
        if len(entries) > 2 and len(ids) == 1 and None not in ids:  # the user's id, or the session's
            entries = [entry._replace(turns=[turn._replace(uid=None) for turn in entry.turns]) for entry in entries]
        yield from Dialogue().follow(in_order(entries, ordered=each.ordered or by_place is not None))
    if single:
        yield from Dialogue().follow(_a_key_each(single))
    yield from faults
    if any(has_lost_text(payload) for each in read for payload in each.raw.payloads):
        yield Note("the text of a message is [object Object], the name of an object: what it held is lost")
    if found and set(roles) == {"other"}:
        yield Note("partly decoded: no field of the messages shows whether the user or the assistant wrote them")
    for raw in (each.raw for each in read if not found):
        payloads = [*raw.payloads, *map(to_bytes, raw.members or raw.scores)][:_SAMPLED]
        reasons = [reason for payload in payloads if (reason := _reason(raw, payload))]
        yield from sorted(reasons, key=lambda item: isinstance(item, Note))[:1]  # a problem, if one payload is one


def _damaged(raw: RedisValue) -> Iterator[Problem]:
    """Yield elements and fields that their own format proves to be damaged; JSON that ends early may be a text."""
    in_order = enumerate([*raw.payloads, *map(to_bytes, raw.members or raw.scores)])
    named = raw.fields.items() if raw.kind == "hash" else in_order
    for place, payload in named if raw.kind not in DOCUMENT_KINDS else ():
        found = None if payload[:1] == b"{" else examine(payload)
        if found and found.fault and found.layers != ("json",):
            kind = "field" if raw.kind == "hash" else "element"
            yield Problem("corrupt", raw.name, f"{kind} {place} is unreadable: {found.fault}")


def _found(raw: RedisValue) -> _Found:
    if raw.kind in DOCUMENT_KINDS:
        opened = open_payload(raw.data)
        if opened.cut:
            cause = Problem("truncated", raw.name, "the payload unfolds to over 8 MB and is not decoded")
            return _Found(raw, faults=[cause])
        entries = find_entries(opened.value, raw.name)
        if entries or opened.encoding != "text":
            twice = [TWICE] if entries and opened.encoding.startswith("json string") else []
            return _Found(raw, entries, faults=twice)
        lines = spoken_lines(raw.data.decode("utf-8", "replace"), raw.name)
        return _Found(raw, [Entry((turn,)) for turn in lines], ordered=True)
    if raw.kind == "list":
        return _of_list(raw)
    if raw.kind == "hash":
        return _Found(raw, _of_hash(raw))
    if raw.kind == "zset":
        return _of_zset(raw)
    if raw.kind == "stream":
        found = [_of_stream_entry(uid, fields, raw.name) for uid, fields in raw.entries]
        return _Found(raw, [each for each in found if each], ordered=True)
    members = [entry for member in sorted(raw.members) if (entry := _opened(to_bytes(member), raw.name))]
    return _Found(raw, members if 2 * len(members) >= len(raw.members) else ())


def _of_zset(raw: RedisValue) -> _Found:
    """Return the messages by their scores; equal scores by the times or indexes in the messages."""
    if _few_are_messages([to_bytes(name) for name in raw.scores], raw.name):
        return _Found(raw)
    found = [(score, each) for name, score in raw.scores.items() if (each := _opened(to_bytes(name), raw.name))]
    if 2 * len(found) < len(raw.scores):
        return _Found(raw)
    # Scores below zero are times or counters with the sign changed, so that ZRANGE returns the newest first.
    sign = -1 if max(raw.scores.values(), default=0.0) <= 0 else 1
    keyed = [(sign * score, each.place or 0.0, each) for score, each in found]
    keyed.sort(key=lambda one: one[:2])
    equal = sum(first[:2] == second[:2] for first, second in pairwise(keyed))
    reason = f"the order of the messages is not known if their scores are equal: {counted(equal, 'pair')} of them"
    entries = [each._replace(place=abs(score)) for score, _, each in keyed]
    notes = [*_left_out(len(raw.scores) - len(found), len(raw.scores)), *([Note(reason)] if equal else [])]
    return _Found(raw, entries, ordered=True, faults=notes)


def _left_out(count: int, total: int) -> Iterator[Note]:
    if count:
        yield Note(f"{counted(count, 'element')} of {total:,} could not be read as messages")


def _opened(data: bytes, key: str) -> Entry | None:
    value = _opened_value(data)
    if isinstance(value, list) and not entry_of(value, key):
        turns = [turn for entry in find_entries(value, key) for turn in entry.turns]
        return Entry(turns) if turns else None
    return entry_of(value, key)


def _opened_value(data: bytes) -> Any:
    """Return what a payload holds: JSON or msgpack in whatever encoding, or a text; None if it is neither."""
    value = open_payload(data).value
    if value is not None:
        return value
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _few_are_messages(elements: Sequence[bytes], key: str) -> bool:
    """Return whether fewer than half of the first and last elements are messages."""
    ends = [*elements[:_SAMPLED], *elements[_SAMPLED:][-_SAMPLED:]]
    return 2 * sum(_opened(element, key) is not None for element in ends) < len(ends)


def _of_list(raw: RedisValue) -> _Found:
    if _few_are_messages(raw.elements, raw.name):
        return _Found(raw)
    faults = Faults(raw, len(raw.elements), "")
    entries: list[Entry] = []
    others = 0
    for index, element in enumerate(raw.elements):
        entry = _opened(element, raw.name)
        if entry:
            entries.append(entry)
        elif element[:1] == b"{" and open_payload(element).value is None and examine(element).fault:
            faults.read(index, element)
        else:
            others += 1
    texts = (open_payload(element).encoding for element in raw.elements if element[:1] == b'"')
    twice = [TWICE] if any(encoding.startswith("json string > json") for encoding in texts) else []
    return _Found(raw, entries, faults=[*faults.problems(), *_left_out(others, len(raw.elements)), *twice])


def _of_hash(raw: RedisValue) -> list[Entry]:
    """Return the messages of a hash that is one message, has them in a field, or has a field a message."""
    if entry := _of_fields(raw.fields, raw.name):
        return [entry]
    values = {name: _opened_value(raw.fields[name]) for name in raw.fields}
    if found := named_entries(values, raw.name):
        return found
    return next((found for value in values.values() if (found := find_entries(value, raw.name))), [])


def _of_fields(fields: Mapping[str, bytes], key: str) -> Entry | None:
    """Return the message that the fields of a hash or of a stream's entry are, or that one of them holds."""
    texts = {name: value.decode("utf-8", "replace") for name, value in fields.items()}
    value = {name: inner if (inner := json_in(text)) is not None else text for name, text in texts.items()}
    entry = entry_of(value, key) if "role" in value or len(value) > 1 else None
    inner = [each for each in value.values() if isinstance(each, dict)]
    if entry is None and len(inner) == 1 and len(value) <= 2:
        entry = entry_of(inner[0], key)
    return entry


def _of_stream_entry(uid: str, fields: Mapping[str, bytes], key: str) -> Entry | None:
    """Return the message of a stream's entry; its id begins with the time of the write, in ms."""
    entry = _of_fields(fields, key)
    if entry is None:
        return None
    at_s = seconds(trailing_number(uid.partition("-")[0]))
    return Entry([turn if turn.at_s else turn._replace(at_s=at_s) for turn in entry.turns])


def _a_key_each(found: Sequence[_Found]) -> Iterator[Turn | Note]:
    """Yield messages that have a key each, by their times, or by the numbers at the ends of the keys' names."""
    entries = [each.entries[0] for each in found]
    by_place = sorted_entries(entries)
    numbered = {trailing_number(each.raw.name): each.entries[0] for each in found}
    if by_place is None and None not in numbered and len(numbered) == len(found):
        by_place = [entry for _, entry in sorted(numbered.items(), key=lambda pair: pair[0] or 0)]
    if by_place is None and len(entries) > 1:
        yield Note("the order of the messages is not known: neither times nor the keys' names show it")
    yield from (turn for entry in by_place or entries for turn in entry.turns)


def _reason(raw: RedisValue, payload: bytes) -> Problem | Note | None:
    """Return why no messages could be decoded from a payload; None for a field of a hash that is plain text."""
    found = examine(payload)
    inner = found.layers[-1]
    if found.fault or inner == "stringified object":
        return Problem("corrupt", raw.name, f"the payload is {found}: {found.fault or 'its content is lost'}")
    if inner in _STRUCTURED:
        value = open_payload(payload).value
        fields = value.items() if isinstance(value, dict) else ()
        if value in ([], {}) or any(each == [] and name in LIKELY_FIELDS for name, each in fields):
            return Note("no messages are stored in the session")
        reason = f"partly decoded: the payload is readable {inner}, and no messages are found in it"
        return Problem("partly_decoded", raw.name, reason)
    if inner in ("text", "empty"):
        if inner == "empty" or raw.kind == "hash":
            return None
        fault = parse(payload).fault if json_start(payload) in (b"{", b"[") else None
        limit = fault and fault.message in (TOO_DEEP, TOO_LONG) and f"may be JSON, but is not read: {fault.message}"
        return Note(f"partly decoded: the payload {limit or 'is plain text, and shows no roles'}")
    more = ""
    if inner == "pickle":
        opcodes = pickle_opcodes(found.inner)
        calls = sum(opcodes[name] for name in ("REDUCE", "NEWOBJ", "NEWOBJ_EX", "INST", "OBJ", "BUILD"))
        verdict = f"{calls} of them call code when it is loaded" if calls else "none of them calls code"
        count = opcodes.total()
        more = f". A pickle is never loaded; disassembled, its first 64 KB have {count} opcodes, {verdict}"
    return Note(f"partly decoded: the payload looks like {found}: its text cannot be read here{more}")
