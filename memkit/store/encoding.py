r"""The stored format of a session: objects to bytes and back, with a schema version. No I/O.

A session is one LIST. Element 0 is the header, a JSON object with its fields in this order (the scripts in ``lua/``
read it with one pattern); fields after ``updated_ms`` are optional::

    {"memkit":1,"policy":"sliding 604800000","born":"Zk3_x9Ab","created_ms":1790000000000,"version":3,
     "updated_ms":1790000000000,"vectors":1,"calls":"...","summary":"...","metadata":{"user":"\"bob\""},"end":1}

``born`` is the nonce of the call that created the session. Values of ``metadata`` are JSON strings, so that a script
can merge them without parsing numbers or empty lists. ``calls`` has the nonces of the last 255 writes other than
appends, each with its version. ``end`` is last, so that a truncated header is recognised. Each further element is JSON
too. A save stores lists of messages; an append adds a stamp and a message (or a list of them)::

    [{"role":"system","content":"be kind"},{"role":"user","content":"hi"}]
    "Zk3_x9Ab2f.1a2b",{"role":"assistant","content":"hello"}

A stamp is the nonce of the append, eight characters (dots in a save), the session's version (hex), the ms since
``created_ms`` (hex), and, after another dot, a digest of the message's own ``"id"``: such a message has its own element
and a stamp, in a save too. A message with integers of more than 64 bits is a string that contains its JSON. Elements
joined by commas are JSON, so that a whole session is parsed at once. The session's version is the larger of the
header's and the last stamp's.
"""

from __future__ import annotations

import json
import math
import os
import re
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import blake2b
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import orjson

from memkit.errors import DecodeError, EncodeError, MemkitError
from memkit.policy import ExpiryPolicy
from memkit.render import counted

if TYPE_CHECKING:
    import numpy as np

SCHEMA = 1
MAX_BYTES = 16 * 1024 * 1024
ELEMENT_BYTES = 7_900
"""Several messages share an element up to about this size: each write reads the last element, and Redis keeps up to
8,192 bytes of a list together (list-max-listpack-size), in steps of 1,024 bytes."""
MOST_ELEMENT_BYTES = 9_000
"""An element is split if it is larger: the first messages were smaller than the others."""
SAMPLED_MESSAGES = 8
DEEPEST = 250
VECTORS_MARK = b"memkit1 float32 "
LATEST_MS = 10**14
"""The year 5138: later times, and larger versions, are damage."""
Message = dict[str, Any]

_HEADER_START = re.compile(rb'\{"memkit":(\d+),')
_HEADER_END = b'"end":1}'
# orjson returns values of these types unchanged, or refuses them: no need to decode them again to know.
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
    """A session's version: a number that also identifies the session.

    A session that expired or was deleted, and was created again, counts from 1 again. ``save(version=)`` and
    ``update(version=)`` tell both sessions apart by ``born``; a bare int, from JSON for example, is compared by its
    number only.
    """

    born: str = ""

    @classmethod
    def of(cls, number: int, born: str) -> Version:
        """Return a version of the session that the call with the nonce ``born`` created."""
        version = cls(number)
        version.born = born
        return version

    def __reduce__(self) -> tuple[Any, ...]:
        return Version.of, (int(self), self.born)


@dataclass(frozen=True, slots=True, repr=False)
class Session:
    """One conversation, as read at one moment.

    Args:
        session_id: The session.
        messages: Oldest first, exactly as saved.
        summary: None without one.
        metadata: Values by name.
        policy: The policy it was written under.
        ttl: The remaining TTL in seconds; None: it never expires.
        created_at: UTC.
        updated_at: UTC.
        version: Every write adds one.
        vectors_lost: Vectors were stored, but they were evicted and have to be computed again.
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

    def __repr__(self) -> str:
        # No text: reprs end up in logs.
        number = counted(len(self.messages), "message")
        return f"<Session {self.session_id!r}: {number}, version {self.version}, {self.policy}>"


class Header(NamedTuple):
    """Element 0 of a stored session: a tuple, because every load makes one."""

    policy: ExpiryPolicy
    born: str
    version: int
    created_ms: int
    updated_ms: int
    vectors: bool
    summary: str | None
    metadata: dict[str, Any]


def encode_messages(messages: Sequence[object], *, listed: bool = False) -> list[bytes]:
    """Return messages as arguments of a script: the JSON of several together; one with its own id follows that id.

    If ``listed``, a single message is a list too. Raises EncodeError with the message's index and the reason.
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


def plain_text(message: object) -> bytes | None:
    """Return the JSON of a message without an own id that orjson encodes exactly, or None if it has to be checked."""
    if type(message) is not dict or "id" in message or not _EXACT.issuperset(map(type, message.values())):
        return None
    try:
        text = orjson.dumps(message)
    except orjson.JSONEncodeError:
        return None
    return text if len(text) <= MAX_BYTES else None


def _encode_run(messages: Sequence[object], start: int, stop: int, listed: bool) -> list[bytes]:
    """Encode messages without their own ids as few elements.

    The first messages decide how many share an element, so that a dialogue that grows keeps its first elements.
    """
    count = stop - start
    if count > SAMPLED_MESSAGES:
        sample = _dumped(list(messages[start : start + SAMPLED_MESSAGES]))
        count = max(1, ELEMENT_BYTES * SAMPLED_MESSAGES // len(sample)) if sample else count
    if count >= stop - start:
        return _encode_part(messages, start, stop, listed)
    parts = [_encode_part(messages, at, min(at + count, stop), listed) for at in range(start, stop, count)]
    return list(chain.from_iterable(parts))


def _encode_part(messages: Sequence[object], start: int, stop: int, listed: bool) -> list[bytes]:
    """Encode messages as one element, or as several if they are larger than the first ones."""
    run = messages[start:stop]
    text = _dumped(list(run)) if len(run) > 1 else None
    if text is None:
        bodies = [encode_message(message, f"message {start + index}") for index, message in enumerate(run)]
        return [b"[%b]" % body for body in bodies] if listed else bodies
    if len(text) <= MOST_ELEMENT_BYTES:
        return [text]
    count = max(1, ELEMENT_BYTES * len(run) // len(text))
    parts = [list(run[at : at + count]) for at in range(0, len(run), count)]
    return [orjson.dumps(part if listed or len(part) > 1 else part[0]) for part in parts]


def _dumped(run: list[object]) -> bytes | None:
    """Return messages as JSON, or None if one of them has to be checked by itself."""
    try:
        text = orjson.dumps(run)
        right = _is_plain(run) or (orjson.loads(text) == run and set(map(type, run)) == {dict})
    except (orjson.JSONEncodeError, orjson.JSONDecodeError, RecursionError):
        return None
    return text if right and len(text) <= MAX_BYTES else None


def _is_plain(run: Sequence[Any]) -> bool:
    try:
        return _EXACT.issuperset(map(type, chain.from_iterable(map(dict.values, run))))
    except TypeError:  # not a dict
        return False


def encode_message(message: object, where: str) -> bytes:
    """Return one message as an argument of a script. Raises EncodeError with the place and the reason."""
    if not isinstance(message, dict):
        raise EncodeError(f"{where} is {_kind(message)}; expected a JSON object (a dict with string keys)")
    text, big = encode_value(message, where)
    return orjson.dumps(text.decode()) if big else text


def encode_value(value: object, where: str) -> tuple[bytes, bool]:
    """Return the JSON of a value, and whether only Python's json decodes it (integers of more than 64 bits).

    Raises EncodeError with the place and the reason if it would not be decoded to an equal value.
    """
    try:
        text, big = orjson.dumps(value), False
        exact = _is_plain([value]) or orjson.loads(text) == value
    except (orjson.JSONEncodeError, RecursionError) as error:
        fault = _fault(value)
        if fault or "64-bit" not in str(error):
            raise EncodeError(f"{where}: {fault or error}") from None
        try:
            # Integers of more than 64 bits, which orjson refuses.
            text, big = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(), True
            exact = json.loads(text) == value
        except (ValueError, TypeError, RecursionError) as other:
            raise EncodeError(f"{where}: {other}") from None
    if not exact:
        raise EncodeError(f"{where}: {_fault(value) or 'it would not be decoded to an equal value'}")
    if len(text) > MAX_BYTES:
        raise EncodeError(f"{where} takes {len(text):,} bytes as JSON; at most {MAX_BYTES:,} (16 MiB) can be stored")
    return text, big


def _fault(whole: object) -> str | None:
    """Return which part cannot be stored exactly, and the reason, without its text; None if there is none.

    Uses a list instead of recursion, which would fail early if the caller's stack is deep.
    """
    todo: list[tuple[object, str, int]] = [(whole, "", 0)]
    while todo:
        value, path, depth = todo.pop()
        if depth > DEEPEST:
            return f"at {path[:60]}…: nested deeper than {DEEPEST} levels, or circular; nest less"
        fault = _own_fault(value)
        if fault:
            return f"at {path}: {fault}" if path else fault
        inside = enumerate(value) if isinstance(value, list) else value.items() if isinstance(value, dict) else ()
        keys = [(key, f"{path}[key]", depth + 1) for key in value] if isinstance(value, dict) else []
        todo += reversed(keys + [(inner, f"{path}[{name!r}]", depth + 1) for name, inner in inside])
    return None


def _own_fault(value: object) -> str | None:
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is not a finite number; use None or a string"
    if isinstance(value, str):
        return None if is_utf8(value) else "the string contains a lone surrogate, which UTF-8 cannot encode"
    if isinstance(value, dict):
        return next(
            (f"the key {key!r} is {_kind(key)}; expected a string" for key in value if not isinstance(key, str)), None
        )
    if value is None or isinstance(value, bool | int | float | list):
        return None
    return f"{_kind(value)} is not a JSON type; use dict, list, str, int, float, bool or None"


def _kind(value: object) -> str:
    return f"a {type(value).__name__}" if value is not None else "None"


def is_utf8(text: str) -> bool:
    """Whether a string can be encoded: lone surrogates cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def new_id() -> bytes:
    """Return a new nonce for a call: 48 random bits of the system as 8 characters."""
    return urlsafe_b64encode(os.urandom(6))


def own_id(text: str) -> bytes:
    """Return the stored form of a message's own ``"id"``: a dot and 84 bits of a digest."""
    return b"." + urlsafe_b64encode(blake2b(text.encode(), digest_size=12).digest())[:14]


def policy_text(policy: ExpiryPolicy) -> str:
    """Return the stored form of a policy, such as ``sliding 604800000``."""
    if policy.ttl_ms is None:
        return policy.kind
    return f"{policy.kind} {policy.ttl_ms}{' reads' if policy.refresh_on_read else ''}"


@lru_cache(maxsize=256)
def policy_of(text: str) -> ExpiryPolicy:
    """Return the policy of a header. Raises ValueError."""
    kind, _, rest = text.partition(" ")
    ttl, _, reads = rest.partition(" ")
    if reads not in ("", "reads"):
        raise ValueError(f"unknown policy {text!r}")
    return ExpiryPolicy(cast("Any", kind), int(ttl) if ttl else None, reads == "reads")


def decode_header(raw: bytes, key: str) -> Header:
    """Return element 0 as a Header. Raises DecodeError, naming the key, for anything else."""
    start = _HEADER_START.match(raw)
    if not start:
        raise DecodeError(f"{key!r} is not a memkit session: element 0 is not a header; `memkit inspect` shows it")
    if int(start[1]) != SCHEMA:
        raise DecodeError(
            f"{key!r} was written by a newer memkit (schema {int(start[1])}); this one reads {SCHEMA}: upgrade it"
        )
    if not raw.endswith(_HEADER_END):
        raise DecodeError(f"the header of {key!r} is truncated after {len(raw)} bytes")
    try:
        return _header(orjson.loads(raw))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DecodeError(f"the header of {key!r} is damaged: {type(error).__name__} in {len(raw)} bytes") from error


def _header(fields: dict[str, Any]) -> Header:
    metadata, summary = fields.get("metadata"), fields.get("summary")
    numbers = (fields["version"], fields["created_ms"], fields["updated_ms"])
    if set(map(type, numbers)) != {int} or not 0 <= min(numbers) <= max(numbers) < LATEST_MS:
        raise ValueError("invalid number")
    if not isinstance(fields["born"], str) or not isinstance(summary, str | None):
        raise TypeError("not a string")
    return Header(
        policy=policy_of(fields["policy"]),
        born=fields["born"],
        version=fields["version"],
        created_ms=fields["created_ms"],
        updated_ms=fields["updated_ms"],
        vectors=bool(fields.get("vectors")),
        summary=summary,
        # Python's json: a value may be an integer of more than 64 bits.
        metadata={name: json.loads(text) for name, text in metadata.items()} if metadata else {},
    )


def stamp(raw: bytes, key: str, index: int) -> tuple[int, int]:
    """Return an element's version, and the ms after ``created_ms`` at which it was stored; (0, 0) for a save's.

    Raises DecodeError for a damaged or foreign element.
    """
    match = _ELEMENT.match(raw)
    if not match:
        raise _damaged(raw, key, index, "is damaged or foreign")
    return (int(match[2], 16), int(match[3], 16)) if match[1] else (0, 0)


def decode_element(raw: bytes, key: str, index: int) -> list[Message]:
    """Return the messages of an element. Raises DecodeError for a damaged or foreign element."""
    match = _ELEMENT.match(raw)
    if not match:
        raise _damaged(raw, key, index, "is damaged or foreign")
    try:
        value = orjson.loads(raw[match.end() :])
        items = [
            json.loads(item) if isinstance(item, str) else item
            for item in (value if isinstance(value, list) else [value])
        ]
    except (ValueError, RecursionError) as error:
        raise _damaged(raw, key, index, "is damaged") from error
    if any(type(item) is not dict for item in items):
        raise _damaged(raw, key, index, "contains a value that is not a message")
    return items


def _damaged(raw: bytes, key: str, index: int, what: str) -> DecodeError:
    return DecodeError(f"element {index} of {key!r} {what} ({len(raw)} bytes); `memkit inspect` shows it")


def decode_messages(elements: Sequence[bytes], key: str, first: int = 1) -> list[Message]:
    """Return the messages of consecutive elements, the first of which has the index ``first``.

    Parses all of them as one JSON list (at 100 messages twice as fast as one by one). If that fails, or anything is
    unusual, each element is decoded by itself, so that the DecodeError names the damaged one.
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
    return list(chain.from_iterable(decoded))


def decode_session(session_id: str, key: str, elements: Sequence[bytes], ttl: float | None) -> tuple[Session, bool]:
    """Return a session from all its elements, and whether vectors were stored with it. Raises DecodeError."""
    header = decode_header(elements[0], key)
    version, after_ms = stamp(elements[-1], key, len(elements) - 1) if len(elements) > 1 else (0, 0)
    session = Session(
        session_id=session_id,
        messages=decode_messages(elements[1:], key),
        summary=header.summary,
        metadata=header.metadata,
        policy=header.policy,
        ttl=ttl,
        created_at=datetime.fromtimestamp(header.created_ms / 1000, UTC),
        updated_at=datetime.fromtimestamp(max(header.updated_ms, header.created_ms + after_ms) / 1000, UTC),
        version=Version.of(max(header.version, version), header.born),
    )
    return session, header.vectors


def encode_vectors(array: Any) -> bytes:
    """Return a float32 array as a line with its shape, then its bytes. Raises EncodeError for another type."""
    try:
        view = memoryview(array)
    except TypeError:
        view = None
    if view is None or view.format not in ("f", "<f"):
        found = f"{type(array).__name__} of {view.format}" if view else type(array).__name__
        raise EncodeError(f"expected a float32 array (array.astype('float32')); got {found}")
    raw = view.tobytes()
    if len(raw) > MAX_BYTES:
        raise EncodeError(f"the vectors take {len(raw):,} bytes; at most {MAX_BYTES:,} (16 MiB) can be stored")
    return " ".join(map(str, view.shape or ())).encode() + b"\n" + raw


def decode_vectors(raw: bytes, key: str, born: str) -> np.ndarray | None:
    """Return the array that encode_vectors was given, or None if it belongs to an earlier session of the same id.

    The store's script puts a mark and the session's ``born`` in front. Raises DecodeError; MemkitError without numpy.
    """
    try:
        import numpy as np
    except ModuleNotFoundError:
        raise MemkitError(
            f"{key!r} is read as a numpy array, but numpy is not installed: pip install 'redis-memkit[lab]', or numpy "
            "only. The vectors are unchanged"
        ) from None
    head, newline, body = raw.partition(b"\n")
    try:
        if not head.startswith(VECTORS_MARK) or not newline:
            raise ValueError("no memkit mark")
        owner, *shape = head.removeprefix(VECTORS_MARK).decode().split()
        array = np.frombuffer(bytearray(body), dtype="<f4").reshape([int(size) for size in shape])
    except ValueError as error:
        raise DecodeError(f"{key!r} contains damaged or foreign vectors: {error}") from None
    return array if owner == born else None


def is_header(raw: bytes) -> bool:
    """Whether an element is a header of any schema."""
    return _HEADER_START.match(raw) is not None
