r"""A session and its stored envelope: bytes to objects and back, with a schema version. No I/O.

A session is one LIST. Element 0 is the header, a JSON object whose fields stand in this order (the scripts in ``lua/``
read it with one pattern); those after ``updated_ms`` are there only when they say something::

    {"memkit":1,"policy":"sliding 604800000","born":"Zk3_x9Ab","created_ms":1790000000000,"version":3,
     "updated_ms":1790000000000,"vectors":1,"calls":"...","summary":"...","metadata":{"user":"\"bob\""},"end":1}

Values of ``metadata`` are JSON texts, so that a script can merge them without parsing numbers or empty lists. ``calls``
are the nonces of the last 255 writes that were no appends, each with the version it made. ``end`` is last, so that a
truncated header is known as one. Each further element is JSON too. What a save stored is lists of messages; what an
append added is a stamp and a message (or a list of them)::

    [{"role":"system","content":"be kind"},{"role":"user","content":"hi"}]
    "Zk3_x9Ab2f.1a2b",{"role":"assistant","content":"hello"}

A stamp is the nonce of the append, eight characters (dots in what a save stored), the session's version (hex), the ms
since ``created_ms`` (hex), and, after another dot, what is derived from the message's own ``"id"``: such a message has
an element of its own, and a stamp, in a save also. A message
with integers beyond 64 bits stands there as a text that holds its JSON. Elements joined by commas are JSON, so that a
whole session is parsed at once. The session's version is the larger of the header's and the last stamp's.
"""

from __future__ import annotations

import json
import math
import re
from base64 import urlsafe_b64encode
from binascii import b2a_base64
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import blake2b
from itertools import chain
from os import urandom
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import orjson

from memkit.errors import DecodeError, EncodeError, MemkitError
from memkit.policy import ExpiryPolicy

if TYPE_CHECKING:
    import numpy as np

SCHEMA = 1
MAX_BYTES = 16 * 1024 * 1024
ELEMENT_BYTES = 7_900
"""Several messages share an element up to about so many bytes: each write looks at the last element, and Redis keeps
up to 8,192 bytes of a list together (list-max-listpack-size), in memory that comes in steps of 1,024."""
DEEPEST = 250
VECTORS_MARK = b"memkit1 float32 "
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LATEST_MS = 10**14
"""The year 5138: later times, and greater versions, are damage."""
Message = dict[str, Any]

_URL_SAFE = bytes.maketrans(b"+/", b"-_")
_HEADER_START = re.compile(rb'\{"memkit":(\d+),')
_HEADER_END = b'"end":1}'
# Of these orjson gives back what it was given, or refuses it: nothing need be read again to know.
_EXACT = {str, int, bool, type(None)}
# A stamp, or the bracket of a save's list.
_ELEMENT = re.compile(rb'"([\w.-]{8})([0-9a-f]{1,13})\.([0-9a-f]{1,11})(\.[\w-]+)?",|(?=\[)', re.ASCII)



class Stamp(NamedTuple):
    """The stamp before an element's messages: how many bytes it takes, and the ms after the session was created."""

    bytes: int
    after_ms: int


def stamp_of(element: bytes) -> Stamp | None:
    """Return the stamp of an element; None if it has none (a list of messages has none, other elements are foreign)."""
    found = _ELEMENT.match(element)
    return Stamp(found.end(), int(found[3], 16)) if found and found[3] else None

class Version(int):
    """A session's version: a number that also knows which life of the session it counts.

    A session that expired, or was deleted, and was begun anew counts from 1 again; ``save(version=)`` and
    ``update(version=)`` do not take one life's number for another's. As a bare int (out of JSON, say) it is a number.
    """

    born: str = ""

    @classmethod
    def of(cls, number: int, born: str) -> Version:
        """Return a version of the session that was begun by the call ``born``."""
        version = cls(number)
        version.born = born
        return version

    def __reduce__(self) -> tuple[Any, ...]:
        return Version.of, (int(self), self.born)


@dataclass(frozen=True, slots=True)
class Session:
    """One conversation, as read at one instant.

    ``messages`` are oldest first, exactly as saved. ``policy`` is the one it was written under; ``ttl`` is what it
    really has left, in seconds (None: it will not expire). ``version`` is raised by one by every write.
    ``vectors_lost``: vectors were stored and are gone (evicted), to be computed again.
    """

    session_id: str
    messages: list[Message]
    summary: str | None
    metadata: dict[str, Any]
    policy: ExpiryPolicy
    ttl: float | None
    created_at: datetime
    updated_at: datetime
    version: int
    vectors_lost: bool = False


class Header(NamedTuple):
    """Element 0 of a stored session: a tuple, since every load makes one."""

    policy: ExpiryPolicy
    born: str
    version: int
    created_ms: int
    updated_ms: int
    vectors: bool
    summary: str | None
    metadata: dict[str, Any]


class Element(NamedTuple):
    """Some messages of a session; a save's lists have no version and time; ``own_id`` is "" without an id."""

    version: int | None
    at_ms: int | None
    own_id: str
    messages: list[Message]


def encode_messages(messages: Sequence[object], *, listed: bool = False) -> list[bytes]:
    """Return what scripts take for messages: the JSON of runs of them, each with an id of its own behind that id.

    ``listed``: runs of one message are lists too. Raises EncodeError, naming the message and why, for what would not
    come back equal.
    """
    owning = [index for index, message in enumerate(messages) if isinstance(message, dict) and "id" in message]
    if not owning:
        return _encode_run(messages, 0, len(messages), listed)
    encoded: list[bytes] = []
    start = 0
    for index in owning:
        own = cast("Message", messages[index])["id"]
        if own and isinstance(own, str):
            encoded += _encode_run(messages, start, index, listed)
            body = encode_message(messages[index], f"message {index}")
            encoded += own_id(own), body
            start = index + 1
    return encoded + _encode_run(messages, start, len(messages), listed)


def _encode_run(messages: Sequence[object], start: int, stop: int, listed: bool) -> list[bytes]:
    """Encode messages without ids of their own, as few elements."""
    run = messages[start:stop]
    text = _dumped(list(run)) if len(run) > 1 else None
    if text is None:
        bodies = [encode_message(message, f"message {start + index}") for index, message in enumerate(run)]
        return [b"[%b]" % body for body in bodies] if listed else bodies
    if len(text) <= ELEMENT_BYTES:
        return [text]
    count = max(1, ELEMENT_BYTES * len(run) // len(text))
    parts = [list(run[at : at + count]) for at in range(0, len(run), count)]
    return [orjson.dumps(part if listed or len(part) > 1 else part[0]) for part in parts]


def _dumped(run: list[object]) -> bytes | None:
    """Return messages as JSON, or None when one of them takes a closer look."""
    try:
        text = orjson.dumps(run)
        right = _is_plain(run) or (orjson.loads(text) == run and set(map(type, run)) == {dict})
    except (orjson.JSONEncodeError, orjson.JSONDecodeError, RecursionError):
        return None
    return text if right and len(text) <= MAX_BYTES else None


def _is_plain(run: Sequence[Any]) -> bool:
    if set(map(type, run)) != {dict}:
        return False
    return _EXACT.issuperset(map(type, chain.from_iterable(map(dict.values, run))))


def encode_message(message: object, where: str) -> bytes:
    """Return one message as a script takes it. Raises EncodeError, saying where and why."""
    if not isinstance(message, dict):
        raise EncodeError(f"{where} is {_kind(message)}; a message is a JSON object (a dict with text keys)")
    text, big = encode_value(message, where)
    return orjson.dumps(text.decode()) if big else text


def encode_value(value: object, where: str) -> tuple[bytes, bool]:
    """Return the JSON text of any value that decodes to an equal one, and whether it takes Python's json to do so.

    Raises EncodeError, saying where and why, for what JSON would not give back exactly.
    """
    try:
        text, big = orjson.dumps(value), False
        exact = _is_plain([value]) or orjson.loads(text) == value
    except (orjson.JSONEncodeError, RecursionError) as error:
        if "64-bit" not in str(error):
            raise EncodeError(f"{where}: {_why(value) or error}") from None
        text, big, exact = _encode_big(value, where), True, True
    if not exact:
        raise EncodeError(f"{where}: {_why(value) or 'it would not come back equal'}")
    if len(text) > MAX_BYTES:
        raise EncodeError(f"{where} takes {len(text):,} bytes as JSON; at most {MAX_BYTES:,} (16 MiB) can be stored")
    return text, big


def _encode_big(value: object, where: str) -> bytes:
    """Encode what holds integers beyond 64 bits, which orjson refuses; Python's own json keeps them."""
    why = _why(value)
    if why:
        raise EncodeError(f"{where}: {why}")
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        if json.loads(text) == value:
            return text.encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise EncodeError(f"{where}: {error}") from None
    raise EncodeError(f"{where}: it would not come back equal")


def _why(whole: object) -> str | None:
    """Say which part cannot be stored exactly, and why; None when nothing is found. Never shows a text.

    With a list of what is to be looked at: recursion would end early where the caller's own stack is deep.
    """
    todo: list[tuple[object, str, int]] = [(whole, "", 0)]
    while todo:
        value, path, depth = todo.pop()
        if depth > DEEPEST:
            return f"at {path[:60]}…: nested deeper than {DEEPEST} levels, or circular; nest less"
        why = _why_itself(value)
        if why:
            return f"at {path}: {why}" if path else why
        inside = enumerate(value) if isinstance(value, list) else value.items() if isinstance(value, dict) else ()
        keys = [(key, f"{path}[key]", depth + 1) for key in value] if isinstance(value, dict) else []
        todo += reversed(keys + [(inner, f"{path}[{name!r}]", depth + 1) for name, inner in inside])
    return None


def _why_itself(value: object) -> str | None:
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is not a finite number; use None or a text"
    if isinstance(value, str):
        return None if is_utf8(value) else "the text holds a lone surrogate, which UTF-8 has no bytes for"
    if isinstance(value, dict):
        return next(
            (f"the key {key!r} is {_kind(key)}; keys are text" for key in value if not isinstance(key, str)), None
        )
    if value is None or isinstance(value, bool | int | float | list):
        return None
    return f"{_kind(value)} has no exact form in JSON; use dict, list, str, int, float, bool or None"


def _kind(value: object) -> str:
    return f"a {type(value).__name__}" if value is not None else "None"


def is_utf8(text: str) -> bool:
    """Whether a text can be stored: lone surrogates cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def new_id() -> bytes:
    """Return a fresh nonce for a call: 48 random bits as 8 characters. From the system: forks never share any."""
    return b2a_base64(urandom(6), newline=False).translate(_URL_SAFE)


def own_id(text: str) -> bytes:
    """Return the id that a message is stored under for its own ``"id"``: a dot and 84 bits of a digest."""
    return b"." + urlsafe_b64encode(blake2b(text.encode(), digest_size=12).digest())[:14]


def policy_text(policy: ExpiryPolicy) -> str:
    """Return a policy as headers hold it, such as ``sliding 604800000``."""
    if policy.ttl_ms is None:
        return policy.kind
    return f"{policy.kind} {policy.ttl_ms}{' reads' if policy.refresh_on_read else ''}"


@lru_cache(maxsize=256)
def policy_of(text: str) -> ExpiryPolicy:
    """Return the policy that a header's text means. Raises ValueError."""
    kind, _, rest = text.partition(" ")
    ttl, _, reads = rest.partition(" ")
    if reads not in ("", "reads"):
        raise ValueError(f"the policy {text!r} is not known")
    return ExpiryPolicy(cast("Any", kind), int(ttl) if ttl else None, reads == "reads")


def decode_header(raw: bytes, key: str) -> Header:
    """Return element 0 as a Header. Raises DecodeError, naming the key, for anything else."""
    start = _HEADER_START.match(raw)
    if not start:
        raise DecodeError(f"{key!r} is not a memkit session: element 0 is no memkit header; `memkit inspect` shows it")
    if int(start[1]) != SCHEMA:
        raise DecodeError(
            f"{key!r} was written by a newer memkit (schema {int(start[1])}); this one reads {SCHEMA}: upgrade it"
        )
    if not raw.endswith(_HEADER_END):
        raise DecodeError(f"the header of {key!r} is truncated: {len(raw)} bytes without their end")
    try:
        return _header(orjson.loads(raw))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DecodeError(f"the header of {key!r} is damaged: {type(error).__name__} in {len(raw)} bytes") from error


def _header(fields: dict[str, Any]) -> Header:
    metadata, summary = fields.get("metadata"), fields.get("summary")
    numbers = (fields["version"], fields["created_ms"], fields["updated_ms"])
    if set(map(type, numbers)) != {int} or not 0 <= min(numbers) <= max(numbers) < LATEST_MS:
        raise ValueError("a number that is none")
    if not isinstance(fields["born"], str) or not isinstance(summary, str | None):
        raise TypeError("a text that is none")
    return Header(
        policy=policy_of(fields["policy"]),
        born=fields["born"],
        version=fields["version"],
        created_ms=fields["created_ms"],
        updated_ms=fields["updated_ms"],
        vectors=bool(fields.get("vectors")),
        summary=summary,
        # Python's json: a value may be an integer beyond 64 bits.
        metadata={name: json.loads(text) for name, text in metadata.items()} if metadata else {},
    )


def stamp(raw: bytes, key: str, index: int) -> tuple[int, int]:
    """Return an element's version, and the ms after ``created_ms`` at which it was stored; (0, 0) for a save's.

    Raises DecodeError for what is no element.
    """
    match = _ELEMENT.match(raw)
    if not match:
        raise _damaged(raw, key, index, "is damaged or foreign")
    return (int(match[2], 16), int(match[3], 16)) if match[1] else (0, 0)


def decode_element(raw: bytes, key: str, index: int, created_ms: int = 0) -> Element:
    """Return an element's parts. Raises DecodeError naming the key and the element, for a damaged or foreign one.

    ``created_ms``: the header's, from which the element's time counts.
    """
    version, after_ms = stamp(raw, key, index)
    match = cast("re.Match[bytes]", _ELEMENT.match(raw))
    try:
        messages = _messages(orjson.loads(raw[match.end() :]))
    except (ValueError, RecursionError) as error:
        raise _damaged(raw, key, index, "is damaged") from error
    if messages is None:
        raise _damaged(raw, key, index, "holds what is no message")
    at_ms = created_ms + after_ms if version else None
    return Element(version or None, at_ms, (match[4] or b"").decode(), messages)


def _damaged(raw: bytes, key: str, index: int, what: str) -> DecodeError:
    return DecodeError(f"element {index} of {key!r} {what} ({len(raw)} bytes); `memkit inspect` shows it")


def _messages(value: object) -> list[Message] | None:
    """Return the messages of an element's value, or None when it holds anything else."""
    items = [
        json.loads(item) if isinstance(item, str) else item for item in (value if isinstance(value, list) else [value])
    ]
    return cast("list[Message]", items) if all(type(item) is dict for item in items) else None


def decode_messages(elements: Sequence[bytes], key: str, first: int = 1) -> list[Message]:
    """Return the messages of consecutive elements, of which the first has index ``first``.

    Parses all of them as one JSON list (2x as fast as one by one at 100 messages); what that refuses, and what is
    unusual, is looked at element by element, to name a damaged one in a DecodeError.
    """
    try:
        values = orjson.loads(b"[%b]" % b",".join(elements))
    except (ValueError, RecursionError):
        values = []
    lists = next((at for at, value in enumerate(values) if type(value) is not list), len(values))
    stamps, bodies = values[lists::2], values[lists + 1 :: 2]
    if len(values) == lists + 2 * (len(elements) - lists) and set(map(type, stamps)) <= {str}:
        messages = [*chain.from_iterable(values[:lists]), *bodies] if lists else bodies
        if set(map(type, messages)) <= {dict}:
            return messages
    decoded = (decode_element(raw, key, first + index) for index, raw in enumerate(elements))
    return [message for element in decoded for message in element.messages]


def decode_session(session_id: str, key: str, elements: Sequence[bytes], ttl: float | None) -> tuple[Session, bool]:
    """Return a whole session from its elements, the header's included, and whether vectors were stored with it.

    Raises DecodeError.
    """
    header = decode_header(elements[0], key)
    version, after_ms = stamp(elements[-1], key, len(elements) - 1) if len(elements) > 1 else (0, 0)
    session = Session(
        session_id=session_id,
        messages=decode_messages(elements[1:], key),
        summary=header.summary,
        metadata=header.metadata,
        policy=header.policy,
        ttl=ttl,
        created_at=_at(header.created_ms),
        updated_at=_at(max(header.updated_ms, header.created_ms + after_ms)),
        version=Version.of(max(header.version, version), header.born),
    )
    return session, header.vectors


def encode_vectors(array: Any) -> bytes:
    """Return a float32 array as a line with its shape, then its raw bytes. Raises EncodeError for another type."""
    try:
        view = memoryview(array)
    except TypeError:
        view = None
    if view is None or view.format not in ("f", "<f"):
        seen = f"{type(array).__name__} of {view.format}" if view else type(array).__name__
        raise EncodeError(f"vectors must be a float32 array (array.astype('float32')), not {seen}")
    raw = view.tobytes()
    if len(raw) > MAX_BYTES:
        raise EncodeError(f"the vectors take {len(raw):,} bytes; at most {MAX_BYTES:,} (16 MiB) can be stored")
    return " ".join(map(str, view.shape or ())).encode() + b"\n" + raw


def decode_vectors(raw: bytes, key: str, born: str) -> np.ndarray | None:
    """Return the array that encode_vectors was given, or None when it is an earlier session's of the same id.

    The store's script puts a mark and the session's ``born`` in front. Raises DecodeError naming the key; MemkitError
    without numpy.
    """
    try:
        import numpy as np
    except ModuleNotFoundError:
        raise MemkitError(
            f"{key!r} is read as a numpy array, and numpy is not installed: pip install 'redis-memkit[lab]', or numpy "
            "alone. The vectors are as they were"
        ) from None
    head, newline, body = raw.partition(b"\n")
    try:
        if not head.startswith(VECTORS_MARK) or not newline:
            raise ValueError("no memkit vectors")
        whose, *shape = head.removeprefix(VECTORS_MARK).decode().split()
        array = np.frombuffer(bytearray(body), dtype="<f4").reshape([int(size) for size in shape])
    except ValueError as error:
        raise DecodeError(f"{key!r} holds damaged or foreign vectors: {error}") from None
    return array if whose == born else None


def is_header(raw: bytes) -> bool:
    """Whether an element is a header (of any schema) and not a message."""
    return _HEADER_START.match(raw) is not None


def _at(ms: int) -> datetime:
    return EPOCH + timedelta(milliseconds=ms)
