r"""A session and its stored envelope: bytes to objects and back, with a schema version. No I/O.

A session is one LIST. Element 0 is the header, a JSON object whose fields stand in a fixed order (the scripts in
``lua/`` read it with one pattern)::

    {"memkit":1,"policy":"sliding","ttl_ms":604800000,"refresh_on_read":0,"born":"Zk3_x9AbQ1-","version":3,
     "created_ms":1790000000000,"updated_ms":1790000000000,"nonces":"","vectors":0,"summary":null,
     "metadata":{"user":"\"bob\""},"end":1}

Values of ``metadata`` are JSON texts, so that a script can merge them without parsing numbers or empty lists. ``end``
is last, so that a truncated header is known as one. Each further element is a message::

    Zk3_x9AbQ1-01932f8a1b23 {"role":"user","content":"hi"}

an id of 11 characters (made by the client, ``.`` first where it is derived from the message's own ``"id"``), the
server's time in ms as 11 hex digits, the session's version in hex, a space (``~`` where an integer is beyond 64 bits)
and the message. The session's version is the larger of the header's and the last element's.
"""

from __future__ import annotations

import json
import math
import re
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from secrets import token_bytes
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import orjson

from memkit.errors import DecodeError, EncodeError
from memkit.policy import ExpiryPolicy

if TYPE_CHECKING:
    import numpy as np

SCHEMA = 1
MAX_BYTES = 16 * 1024 * 1024
ID_CHARS = 11
VECTORS_MARK = b"memkit1 float32 "
Message = dict[str, Any]

_HEADER_START = re.compile(rb'\{"memkit":(\d+),')
_HEADER_END = b',"end":1}'
_ELEMENT = re.compile(rb"([\w.-]{11})([0-9a-f]{11})([0-9a-f]+)([ ~])(\{.*\})", re.DOTALL)
# The first "{" of an element stands after 11 characters of id, 11 of time and 1 to 16 of version, and a mark.
_BODY_FROM, _BODY_TO = 24, 40


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


@dataclass(frozen=True, slots=True)
class Header:
    """Element 0 of a stored session."""

    policy: ExpiryPolicy
    born: str
    version: int
    created_at: datetime
    updated_at: datetime
    vectors: bool
    summary: str | None
    metadata: dict[str, Any]


class Element(NamedTuple):
    """One stored message: its id, when the server stored it, the session's version then, and the message."""

    id: str
    at: datetime
    version: int
    message: Message


def encode_message(message: object, where: str) -> bytes:
    """Return a message as stored after its version: a mark and a JSON object that decodes to an equal one.

    Raises EncodeError, saying where and why, for what JSON would not give back exactly.
    """
    if not isinstance(message, dict):
        raise EncodeError(f"{where} is {_kind(message)}; a message is a JSON object (a dict with text keys)")
    return encode_value(message, where)


def encode_value(value: object, where: str) -> bytes:
    """Return a mark (``" "``, or ``"~"`` for integers beyond 64 bits) and the JSON text of any value."""
    try:
        text = orjson.dumps(value)
        exact = orjson.loads(text) == value
        mark = b" "
    except (orjson.JSONEncodeError, RecursionError) as error:
        if "64-bit" not in str(error):
            raise EncodeError(f"{where}: {_why(value, '', 0) or error}") from None
        text, mark, exact = _encode_big(value, where)
    if not exact:
        raise EncodeError(f"{where}: {_why(value, '', 0) or 'it would not come back equal'}")
    if len(text) > MAX_BYTES:
        raise EncodeError(f"{where} takes {len(text):,} bytes as JSON; at most {MAX_BYTES:,} (16 MiB) can be stored")
    return mark + text


def _encode_big(value: object, where: str) -> tuple[bytes, bytes, bool]:
    """Encode what holds integers beyond 64 bits, which orjson refuses; Python's own json keeps them."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode(), b"~", bool(json.loads(text) == value)
    except (ValueError, TypeError, RecursionError) as error:
        raise EncodeError(f"{where}: {_why(value, '', 0) or error}") from None


def _why(value: object, path: str, depth: int) -> str | None:  # noqa: C901  # one question a kind of value
    """Say which part cannot be stored exactly, and why; None when nothing is found. Never shows a text."""
    at = f"at {path}: " if path else ""
    if depth > 250:
        return f"{at[:60]}…: nested deeper than 250 levels, or circular; nest less"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{at}{value} is not a finite number; use None or a text"
    if isinstance(value, str):
        lone = any("\ud800" <= char <= "\udfff" for char in value)
        return f"{at}the text holds a lone surrogate, which UTF-8 has no bytes for" if lone else None
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                return f"{at}the key {key!r} is {_kind(key)}; keys are text"
            said = _why(key, f"{path}[key]", depth + 1) or _why(inner, f"{path}[{key!r}]", depth + 1)
            if said:
                return said
        return None
    if isinstance(value, list):
        for index, inner in enumerate(value):
            said = _why(inner, f"{path}[{index}]", depth + 1)
            if said:
                return said
        return None
    if value is None or isinstance(value, bool | int | float):
        return None
    return f"{at}{_kind(value)} has no exact form in JSON; use dict, list, str, int, float, bool or None"


def _kind(value: object) -> str:
    return f"a {type(value).__name__}" if value is not None else "None"


def new_id() -> str:
    """Return a fresh id for a message or a call: 64 random bits as 11 characters."""
    return urlsafe_b64encode(token_bytes(8))[:ID_CHARS].decode()


def message_id(message: Message) -> str:
    """Return the id a message is stored under: derived from its own ``"id"`` where that is text, fresh otherwise."""
    own = message.get("id")
    if not isinstance(own, str):
        return new_id()
    return "." + urlsafe_b64encode(blake2b(own.encode(), digest_size=8).digest())[: ID_CHARS - 1].decode()


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
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise DecodeError(f"the header of {key!r} is damaged: {type(error).__name__}: {error}") from None


def _header(fields: dict[str, Any]) -> Header:
    return Header(
        policy=ExpiryPolicy(fields["policy"], fields["ttl_ms"], bool(fields["refresh_on_read"])),
        born=fields["born"],
        version=fields["version"],
        created_at=_at(fields["created_ms"]),
        updated_at=_at(fields["updated_ms"]),
        vectors=bool(fields["vectors"]),
        summary=fields["summary"],
        # Python's json: a value may be an integer beyond 64 bits.
        metadata={name: json.loads(text) for name, text in fields["metadata"].items()},
    )


def decode_element(raw: bytes, key: str, index: int) -> Element:
    """Return a stored message with its id, time and version. Raises DecodeError naming the key and the element."""
    match = _ELEMENT.fullmatch(raw)
    if not match:
        raise DecodeError(
            f"element {index} of {key!r} is damaged or foreign ({len(raw)} bytes); `memkit inspect` shows it"
        )
    try:
        message = (json.loads if match[4] == b"~" else orjson.loads)(match[5])
        at = _at(int(match[2], 16))
    except (ValueError, RecursionError, OverflowError) as error:
        raise DecodeError(
            f"element {index} of {key!r} is damaged: {type(error).__name__} in {len(raw)} bytes"
        ) from error
    return Element(match[1].decode(), at, int(match[3], 16), message)


def decode_messages(elements: Sequence[bytes], key: str, first: int = 1) -> list[Message]:
    """Return the messages of consecutive elements, of which the first has index ``first``.

    Parses all of them as one JSON list (2x as fast as one by one at 100 messages); what that refuses is looked at
    element by element, to name the damaged one in a DecodeError.
    """
    bodies, big = [], False
    for raw in elements:
        start = raw.find(b"{", _BODY_FROM, _BODY_TO)
        big |= raw[start - 1] == 0x7E
        bodies.append(raw[start:])
    text = b"[" + b",".join(bodies) + b"]"
    try:
        messages = json.loads(text) if big else orjson.loads(text)
        if len(messages) == len(elements) and all(type(message) is dict for message in messages):
            return cast("list[Message]", messages)
    except (ValueError, RecursionError):
        pass
    return [decode_element(raw, key, first + index).message for index, raw in enumerate(elements)]


def decode_session(session_id: str, key: str, header: Header, elements: Sequence[bytes], ttl: float | None) -> Session:
    """Return a whole session from its elements, the header's included. Raises DecodeError."""
    last = decode_element(elements[-1], key, len(elements) - 1) if len(elements) > 1 else None
    return Session(
        session_id=session_id,
        messages=decode_messages(elements[1:], key),
        summary=header.summary,
        metadata=header.metadata,
        policy=header.policy,
        ttl=ttl,
        created_at=header.created_at,
        updated_at=max(header.updated_at, last.at) if last else header.updated_at,
        version=max(header.version, last.version) if last else header.version,
    )


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
    return VECTORS_MARK + " ".join(map(str, view.shape or ())).encode() + b"\n" + raw


def decode_vectors(raw: bytes, key: str) -> np.ndarray:
    """Return the array that encode_vectors was given. Raises DecodeError naming the key."""
    import numpy as np

    head, newline, body = raw.partition(b"\n")
    try:
        if not head.startswith(VECTORS_MARK) or not newline:
            raise ValueError("no memkit vectors")
        shape = [int(size) for size in head.removeprefix(VECTORS_MARK).split()]
        return np.frombuffer(bytearray(body), dtype="<f4").reshape(shape)
    except ValueError as error:
        raise DecodeError(f"{key!r} holds damaged or foreign vectors: {error}") from None


def is_header(raw: bytes) -> bool:
    """Whether an element is a header (of any schema) and not a message."""
    return _HEADER_START.match(raw) is not None


def _at(ms: int) -> datetime:
    return datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=ms)
