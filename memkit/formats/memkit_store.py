"""memkit's own MemoryStore: one LIST a session, a header and then its messages; see ``memkit.session``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from memkit.errors import DecodeError
from memkit.formats.chat import chat_turn
from memkit.formats.elements import Faults
from memkit.formats.model import Hit, Item, Known, Meant, Note, Problem, Raw, Turn, Want, split, to_name
from memkit.session import ID_CHARS, decode_header, is_header
from memkit.store import vectors_key

STORE = "memkit"
SCANNED = False
PREFIX = "session:"
_TIME_CHARS = 11
# A message's "{" stands after its id, its time and 1 to 16 hex digits of version, and a mark.
_BODY_FROM, _BODY_TO = ID_CHARS + _TIME_CHARS + 2, ID_CHARS + _TIME_CHARS + 18


def names(session: str) -> Iterable[str]:
    """Return the name under the prefix that memkit's own examples use; a store's prefix is always chosen."""
    return (PREFIX + session,)


def recognise(raw: Raw, wanted: str | None) -> Hit | None:
    """Claim lists that begin with a header of any schema, or whose other elements are memkit's."""
    if raw.kind != "list" or not raw.elements:
        return None
    if not (is_header(raw.elements[0]) or any(map(_body, raw.elements[1:4]))):
        return None
    prefix, session = split(raw.name, PREFIX, wanted)
    return Hit(STORE, session, prefix, "primary")


def wants(known: Known) -> Iterable[Want]:
    """Return the session's key, and its vectors' where the header says that there are some."""
    name = known.hit.prefix + known.hit.session
    yield Want(name, "primary")
    raw = known.there(name)
    vectors = _vectors(name)
    if raw and vectors and b'"vectors":1' in raw.elements[0][:4096]:
        yield Want(vectors, "vectors")


def _vectors(name: str) -> str | None:
    try:
        return vectors_key(name)
    except ValueError:
        return None  # a name that is not UTF-8 is none of memkit's


def decode(known: Known) -> Iterator[Item]:
    """Yield what the header means, then the messages."""
    name = known.hit.prefix + known.hit.session
    raw = known.there(name)
    if raw and raw.elements:
        yield from _header(raw)
        yield from _messages(raw)
    vectors = _vectors(name)
    if vectors and vectors in known.keys and known.there(vectors) is None:
        yield Problem("dangling", vectors, "the session had vectors and they are gone; recoverable: compute them again")


def _header(raw: Raw) -> Iterator[Item]:
    head = raw.elements[0]
    try:
        header = decode_header(head, to_name(b"key"))
    except (DecodeError, ValueError) as error:
        newer = "newer memkit" in str(error)
        cause = "unknown_schema" if newer else "corrupt"
        says = "was written by a newer memkit; upgrade this one" if newer else f"is damaged ({len(head):,} bytes)"
        yield Problem(cause, raw.name, f"element 0, the header, {says}; the messages after it are readable")
        return
    yield Meant(header.policy.ttl_ms)
    yield Note(f"the session's own policy: {header.policy}; version {header.version}")


def _messages(raw: Raw) -> Iterator[Item]:
    first = 1 if is_header(raw.elements[0]) or not _body(raw.elements[0]) else 0
    faults = Faults(raw, len(raw.elements) - first)
    for index in range(first, len(raw.elements)):
        element = raw.elements[index]
        start = _body(element)
        message = faults.read(index, element[start:] if start else element)
        if message is not None and not start:
            faults.add("corrupt", index, "has no id, time and version before its message: written by something else")
        if message is not None:
            yield _turn(message, element, start, raw.name)
    yield from faults.problems()


def _turn(message: dict[str, object], element: bytes, start: int, key: str) -> Turn:
    turn = chat_turn(message, key)
    if not start:
        return turn
    stored_ms = int(element[ID_CHARS : ID_CHARS + _TIME_CHARS], 16)
    return turn._replace(at_s=stored_ms / 1000, uid=to_name(element[:ID_CHARS]))


def _body(element: bytes) -> int:
    """Return where the message's JSON begins, or 0 when the element is not one of memkit's."""
    start = element.find(b"{", _BODY_FROM, _BODY_TO)
    if start < 0 or element[start - 1 : start] not in (b" ", b"~"):
        return 0
    try:
        int(element[ID_CHARS : start - 1], 16)
    except ValueError:
        return 0
    return start
