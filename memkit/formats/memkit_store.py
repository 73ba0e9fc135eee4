"""memkit's own MemoryStore: one LIST a session, a header and then what each call added; see memkit.store.encoding."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from memkit.errors import DecodeError
from memkit.formats.model import (
    SEPARATORS,
    ConfiguredTtl,
    Format,
    Item,
    KeyOwner,
    Note,
    Problem,
    SessionValues,
    Turn,
    seconds,
    text_or_none,
)
from memkit.formats.parsing.any_message import messages_of
from memkit.formats.parsing.bounded_json import parse
from memkit.formats.parsing.chat import dumped, role_of
from memkit.formats.parsing.element_shapes import store_of
from memkit.formats.parsing.list_elements import Faults, sample
from memkit.readonly.values import KeyRequest, RedisValue, to_name
from memkit.store.encoding import decode_header, is_header, stamp_of
from memkit.store.operations import vectors_key

STORE = "memkit"
PREFIX = "session:"


def recognise(raw: RedisValue, wanted: str | None) -> KeyOwner | None:
    """Claim lists that begin with a header of any schema, or have other elements of memkit, unless most are not."""
    ends = [*raw.elements[:3], *raw.elements[3:][-3:]]
    begins = bool(ends) and is_header(ends[0])
    stamped = begins + sum(1 for element in ends if stamp_of(element))
    saved = sum(1 for element in ends if element.startswith(b"["))
    if not stamped or stamped + saved + begins <= sum(1 for value in sample(raw) if store_of(value)):
        return None
    # Behind the default prefix an id begins after a separator, so that "A" is not found in "sess-A".
    prefix = raw.name.removesuffix(wanted) if wanted else raw.name
    if wanted and prefix != raw.name and (prefix[-1:] in SEPARATORS or PREFIX not in prefix):
        return KeyOwner(STORE, wanted, prefix, "primary")
    head, found, tail = raw.name.partition(PREFIX)
    return KeyOwner(STORE, tail if found else raw.name, head + PREFIX if found else "", "primary")


def siblings(stored: SessionValues) -> Iterable[KeyRequest]:
    """Return the session's key, and its vectors' if the header states that there are some."""
    name = stored.owner.prefix + stored.owner.session
    yield KeyRequest(name, "primary")
    raw = stored.get(name)
    vectors = _vectors(name)
    if raw and vectors and b'"vectors":1' in raw.elements[0][:4096]:
        yield KeyRequest(vectors, "vectors", kind="string")


def _vectors(name: str) -> str | None:
    try:
        return to_name(vectors_key(name))
    except ValueError:
        return None  # a name that is not UTF-8 is none of memkit's


def decode(stored: SessionValues) -> Iterator[Item]:
    """Yield the policy of the header, then the messages."""
    name = stored.owner.prefix + stored.owner.session
    vectors = _vectors(name)
    if vectors and vectors in stored.keys and stored.get(vectors) is None:
        yield Problem("dangling", vectors, "the session's vectors no longer exist; recoverable: compute them again")
    raw = stored.get(name)
    if not raw or not raw.elements:
        return
    head, created_ms = raw.elements[0], None
    try:
        header = decode_header(head, "")
    except (DecodeError, ValueError) as error:
        newer = "newer memkit" in str(error)
        cause = "unknown_schema" if newer else "corrupt"
        reason = "was written by a newer memkit; upgrade this one" if newer else f"is damaged ({len(head):,} bytes)"
        yield Problem(cause, raw.name, f"element 0, the header, {reason}; the messages after it are readable")
    else:
        created_ms = header.created_ms
        yield ConfiguredTtl(header.policy)
        yield Note(f"the session's own policy: {header.policy}")
    first = 0 if stamp_of(head) else 1
    faults = Faults(raw, len(raw.elements) - first, STORE)
    for index in range(first, len(raw.elements)):
        element = raw.elements[index]
        stamp = stamp_of(element)
        if stamp is None and not element.startswith(b"["):
            faults.add("corrupt", index, "has no stamp before its messages: another program wrote it")
        after = stamp.bytes if stamp else 0
        at_s = seconds(created_ms + stamp.after_ms) if stamp and isinstance(created_ms, int) else None
        value = faults.value(index, element[after:], after=after)
        items = value if isinstance(value, list) else [] if value is None else [value]
        for item in items:
            # An integer beyond 64 bits stands in a text that holds the message's JSON.
            message = parse(item.encode("utf-8", "surrogatepass")).value if isinstance(item, str) else item
            if isinstance(message, dict):
                yield from (turn._replace(at_s=at_s) for turn in _turns(message, raw.name))
            else:
                faults.foreign(index, {}, "a message in it is not a JSON object")
    yield from faults.problems()


def _turns(message: dict[str, Any], key: str) -> Sequence[Turn]:
    """Return a message; one without role and content is any object that an application keeps, and shown as it is."""
    found = messages_of(message, key)[0] if "role" in message else []
    if found and (message.get("content") is not None or any(turn.tools for turn in found)):
        return found
    return [Turn(role_of(message.get("role")), dumped(message), (), None, text_or_none(message.get("id")), key)]


FORMAT = Format(store=STORE, kinds=("list",), recognise=recognise, siblings=siblings, decode=decode,
                names=(PREFIX + "{id}",), prefix=PREFIX)  # fmt: skip
