"""What a MemoryStore does, without I/O: each operation is a Read or a Write that a store sends.

A read is plain commands. A write is one script that carries its TTL and may be sent twice.
"""

from __future__ import annotations

import re
import warnings
from binascii import crc_hqx
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from hashlib import sha1
from importlib.resources import files
from itertools import count
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, ParamSpec, TypeVar, cast

from redis.exceptions import ResponseError

from memkit.connect import escape_glob
from memkit.errors import Conflict, DecodeError, EncodeError, PolicyError, PolicyShortenedWarning, SessionNotFound
from memkit.policy import ExpiryPolicy
from memkit.store.encoding import (
    Message,
    Session,
    Version,
    decode_header,
    decode_messages,
    decode_session,
    decode_vectors,
    encode_messages,
    encode_value,
    encode_vectors,
    is_header,
    is_utf8,
    new_id,
    plain_text,
    policy_of,
    policy_text,
    stamp,
)

if TYPE_CHECKING:
    import numpy as np

Warned = tuple[str, ExpiryPolicy, ExpiryPolicy | None]
T = TypeVar("T")
P = ParamSpec("P")
Argument = bytes | str | int
REMEMBERED_SESSIONS: Final = 4096
"""A store remembers the last seen version of this many sessions; an append then searches newer elements only."""
MOST_ELEMENTS: Final = 2**32
"""More than a list of Redis has; Redis refuses numbers of more than 64 bits."""
SAME_MOMENT_MS: Final = 10
"""How far back a moved clock may go between two PTTLs of one read."""
ONE_READ_MS: Final = 1_000
"""The longest time that reading one session takes; 100 MB take less than half of it (measured)."""
OWN_ID: Final = ord(".")
REFUSAL: Final = ord("!")
BORN: Final = re.compile(rb'"born":"([\w-]+)",', re.ASCII)


class Default:
    """The default of an argument that takes None too, shown in signatures as what it stands for."""

    def __init__(self, shown: str) -> None:
        self._shown = shown

    def __repr__(self) -> str:
        return self._shown


KEEP: Final = Default("KEEP")
"""Leave the summary unchanged; None removes it."""


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script of the store and its SHA1 digest."""

    text: str
    sha: str


@cache
def script(name: str) -> Script:
    """Return a script of ``lua/`` behind the part that all share; the usual append is in front of that."""
    folder = files("memkit.store") / "lua"
    parts = ("append_fast", "session", "append") if name == "append" else ("session", name)
    text = "".join((folder / f"{part}.lua").read_text() for part in parts)
    return Script(text, sha1(text.encode(), usedforsecurity=False).hexdigest())


# Tuples, because every call makes one: a frozen dataclass takes three times as long (measured).
class Read(NamedTuple, Generic[T]):
    """Plain commands that are sent together, and the function that decodes their replies.

    ``is_inconsistent`` is true if another client wrote in between, so that the read must be repeated.
    """

    key: str
    commands: tuple[tuple[Argument, ...], ...]
    decode: Callable[[list[Any]], T]
    is_inconsistent: Callable[[list[Any]], bool] = lambda _: False


# A plain tuple: a named one takes an append 2 % more (measured).
Write = tuple[str, Script, tuple[Argument, ...], Callable[[bytes], T]]
"""One script call: its key, the script, its arguments, and the function that decodes its reply. Sent again, its bytes
and its nonce are the same."""


class Names(NamedTuple):
    """The names that belong to one session: its key, the same as bytes, and the key of its vectors."""

    key: str
    encoded: bytes
    vectors: bytes


class Operations:
    """The operations of a store, without I/O. ``warned`` has the warnings that the stores of its client have issued."""

    def __init__(self, prefix: str, policy: ExpiryPolicy, *, shorten: bool, warned: set[Warned]) -> None:
        self.prefix = prefix
        self.policy = policy
        self._policy = f"{'!' if shorten else ''}{policy_text(policy)}".encode()
        # Threads share these without a lock: each step is atomic, and a forked child could inherit a held lock.
        self._seen: OrderedDict[str, bytes] = OrderedDict()
        self._warned = warned

    def key(self, session_id: str) -> str:
        """Return the session's key. Raises PolicyError for an invalid id."""
        return self._names(session_id).key

    def _names(self, session_id: str) -> Names:
        if not isinstance(session_id, str) or not session_id:
            raise PolicyError(f"expected a session id of at least one character; got {session_id!r}")
        return names_of(self.prefix + session_id)

    def load(self, session_id: str, last: int | None) -> Read[list[Message] | None]:
        """Read all messages, or the last n. They are in the last n elements, because each holds at least one."""
        if last is not None and (isinstance(last, bool) or not isinstance(last, int) or last < 0):
            raise PolicyError(f"last={last!r}: expected a number of messages, 0 or more, or None for all")
        names = self._names(session_id)
        start = 0 if last is None else -min(max(1, last), MOST_ELEMENTS)

        def decode(replies: list[Any]) -> list[Message] | None:
            head, elements = replies[0], replies[-1]
            # Either reply shows that the session did not exist at that moment.
            if not elements or head is None:
                return None
            if start == 0 or is_header(elements[0]):
                self._saw(session_id, _state(elements, names.key))
                messages = decode_messages(elements[1:], names.key)
            else:
                decode_header(head, names.key)
                messages = decode_messages(elements, names.key, first=start)
            return messages if last is None else messages[len(messages) - min(last, len(messages)) :]

        whole = ("LRANGE", names.encoded, start, -1)
        return Read(names.key, (whole,) if last is None else (("LINDEX", names.encoded, 0), whole), decode)

    def get(self, session_id: str) -> Read[tuple[Session, bool] | None]:
        """Read the session, and whether vectors were stored with it.

        Only if PTTL before and after agree, the TTL belongs to the session that was read.
        """
        names = self._names(session_id)

        def decode(replies: list[Any]) -> tuple[Session, bool] | None:
            before_ms, elements, after_ms = replies
            if -2 in (before_ms, after_ms) or not elements:
                return None
            left_ms = min((left for left in (before_ms, after_ms) if left >= 0), default=None)
            found = decode_session(session_id, names.key, elements, None if left_ms is None else left_ms / 1000)
            self._saw(session_id, _state(elements, names.key))
            return found

        left = ("PTTL", names.encoded)
        return Read(names.key, (left, ("LRANGE", names.encoded, 0, -1), left), decode, _ttl_changed)

    def vectors_lost(self, session: Session) -> Read[Session]:
        """Read whether the vectors that were stored with a session no longer exist."""
        names = self._names(session.session_id)
        command = ("EXISTS", names.vectors)
        return Read(names.key, (command,), lambda replies: replace(session, vectors_lost=not replies[0]))

    def ttl(self, session_id: str) -> Read[float | None]:
        """Read the TTL; a foreign key raises DecodeError."""
        names = self._names(session_id)

        def decode(replies: list[Any]) -> float | None:
            left_ms, head = replies
            if left_ms == -2 or head is None:
                raise _not_found(names.key)
            decode_header(head, names.key)
            return None if left_ms == -1 else left_ms / 1000

        return Read(names.key, (("PTTL", names.encoded), ("LINDEX", names.encoded, 0)), decode)

    def append(self, session_id: str, messages: tuple[Message, ...], *, create: bool) -> Write[int]:
        """Add the messages that are not among the last 1,024."""
        names = self._names(session_id)
        seen = self._seen.get(session_id, b"")
        text = plain_text(messages[0]) if len(messages) == 1 else None
        bodies = [text] if text else _for(names.key, encode_messages, messages)
        if len(bodies) > 1 and any(body[0] == OWN_ID for body in bodies):
            seen = b""  # messages with own ids may be older than what was last seen: search the whole window for them
        return self._write("append", session_id, names, seen if create else seen + b"!", bodies)

    def save(self, session_id: str, messages: list[Message], *, version: int | None) -> Write[int]:
        """Replace the dialogue."""
        names = self._names(session_id)
        return self._write("save", session_id, names, _version_argument(version), _for(names.key, _dialogue, messages))

    def update(
        self,
        session_id: str,
        summary: str | Default | None,
        metadata: Mapping[str, Any] | None,
        version: int | None,
    ) -> Write[int]:
        """Change the summary and merge metadata."""
        names = self._names(session_id)
        fields = (*_for(names.key, _summary_arguments, summary), *_for(names.key, _metadata_arguments, metadata))
        return self._write("update", session_id, names, _version_argument(version), fields)

    def put_vectors(self, session_id: str, array: Any) -> Write[int]:
        """Store an array with the session."""
        names = self._names(session_id)
        return self._write("put_vectors", session_id, names, b"", (_for(names.key, encode_vectors, array),))

    def touch(self, session_id: str) -> Write[bool]:
        """Renew the deadline only; return whether the session exists."""
        key, script, arguments, _ = self._write("touch", session_id, self._names(session_id))

        def decode(reply: bytes) -> bool:
            if reply[0] == REFUSAL:
                return False
            self._version(session_id, key, reply)
            return True

        return key, script, arguments, decode

    def born(self, session_id: str) -> Read[bytes | None]:
        """Read the nonce of the call that created the session: b"" if it is damaged, None without a session."""
        names = self._names(session_id)

        def decode(replies: list[Any]) -> bytes | None:
            if replies[0] is not None and not is_header(replies[0]):
                decode_header(replies[0], names.key)
            born = BORN.search(replies[0] or b"")
            return born[1] if born else replies[0] and b""

        return Read(names.key, (("LINDEX", names.encoded, 0),), decode)

    def delete(self, session_id: str, born: bytes) -> Write[bool]:
        """Remove the session that this call created, and its vectors."""
        key, script, arguments, _ = self._write("delete", session_id, self._names(session_id), born)
        return key, script, arguments, lambda _: True

    def get_vectors(self, session_id: str) -> Read[np.ndarray | None]:
        """Read the array if session and vectors exist."""
        names = self._names(session_id)

        def decode(replies: list[Any]) -> np.ndarray | None:
            head, raw = replies
            if head is None:
                return None
            header = decode_header(head, names.key)
            return decode_vectors(raw, names.vectors.decode(), header.born) if header.vectors and raw else None

        return Read(names.key, (("LINDEX", names.encoded, 0), ("GET", names.vectors)), decode)

    def pattern(self) -> bytes:
        """Return the MATCH pattern of this store's keys."""
        return f"{escape_glob(self.prefix)}*".encode()

    def session_of(self, key: bytes) -> str | None:
        """Return the session id of a key, or None for a key that is not a session of this store."""
        try:
            return key.decode().removeprefix(self.prefix) or None
        except UnicodeDecodeError:
            return None

    def _write(
        self, name: str, session_id: str, names: Names, expected: bytes = b"", contents: Sequence[bytes] = ()
    ) -> Write[int]:
        """Return a call that replies with a version. Its nonce is made once, here, even if the call is sent again."""
        key = names.key
        call = b"%b%b\n%b\n%b" % (new_id(), self._policy, expected, names.vectors)
        arguments: tuple[Argument, ...] = (1, names.encoded, call, *contents)
        return key, script(name), arguments, lambda reply: self._version(session_id, key, reply)

    def _version(self, session_id: str, key: str, reply: bytes) -> Version:
        """Decode the reply of a write, remember its version, and warn if a longer policy was kept."""
        if reply[0] == REFUSAL:
            if reply == b"!not_found":
                raise _not_found(key)
            raise Conflict(
                f"{key!r} is at version {int(reply.split()[1], 16)}, not at the given one: another client has written "
                "since, or the session expired and was created again; read the session again with get(), and repeat "
                "the change with its new version"
            )
        words = reply.split(b" ", 2)
        kept = len(words) > 2
        self._saw(session_id, b"%b %b" % (words[0], words[1]) if kept else reply)
        if kept:
            written = policy_of(words[2].decode())
            warning = (self.prefix, written, self.policy)
            if warning not in self._warned:
                self._warned.add(warning)
                warnings.warn(
                    f"{key!r} was written under a longer policy ({written}) than this store's ({self.policy}); its "
                    "deadline was kept. New sessions expire earlier: if that is a mistake, change ttl= back; otherwise "
                    "MemoryStore(..., shorten=True) applies it to existing sessions too",
                    PolicyShortenedWarning,
                    stacklevel=5,
                )
        return Version.of(int(words[1], 16), words[0].decode())

    def _saw(self, session_id: str, state: bytes) -> None:
        self._seen[session_id] = state
        if len(self._seen) > REMEMBERED_SESSIONS:
            self._seen.popitem(last=False)


@lru_cache(maxsize=REMEMBERED_SESSIONS)
def names_of(key: str) -> Names:
    """Return a session's names. Raises PolicyError if the key cannot be encoded."""
    return Names(key, encoded(key), vectors_key(key))


def encoded(key: str) -> bytes:
    """Return a key as UTF-8. Raises PolicyError if that is impossible."""
    if not is_utf8(key):
        raise PolicyError(f"the key {key!r} contains a lone surrogate, which UTF-8 cannot encode")
    return key.encode()


def vectors_key(key: str) -> bytes:
    """Return the key of a session's vectors, in the same cluster slot.

    It is ``{session:42}:vectors`` for ``session:42``. A key with its own hash tag keeps it in front; a key with a brace
    but without a tag gets a suffix that leads to the same slot.
    """
    start = key.find("{")
    end = key.find("}", start + 1) if start >= 0 else -1
    if end > start + 1:
        return f"{key}\0vectors".encode()
    return _same_slot(key.encode()) if "}" in key else f"{{{key}}}:vectors".encode()


def _same_slot(key: bytes) -> bytes:
    """Find a suffix by trial: the slot of a key is its CRC16 modulo 16384."""
    slot = crc_hqx(key, 0) % 16384
    start = crc_hqx(key + b"\0vectors", 0)
    suffix = next(n for n in count() if crc_hqx(b"%d" % n, start) % 16384 == slot)
    return b"%b\0vectors%d" % (key, suffix)


def _ttl_changed(replies: list[Any]) -> bool:
    """Whether the TTL was renewed or shortened, or the session created again, during the read."""
    passed = replies[0] - replies[-1]
    return not -SAME_MOMENT_MS <= passed <= ONE_READ_MS


def _state(elements: list[bytes], key: str) -> bytes:
    """Return ``born`` and version of a whole session, which an append sends back."""
    header = decode_header(elements[0], key)
    version = stamp(elements[-1], key, len(elements) - 1)[0] if len(elements) > 1 else 0
    return b"%b %x" % (header.born.encode(), max(header.version, version))


def _version_argument(version: int | None) -> bytes:
    if version is None:
        return b""
    if isinstance(version, bool) or not isinstance(version, int) or version < 0:
        raise PolicyError(f"version={version!r}: expected Session.version, 0 if the session must not exist, or None")
    born = version.born if isinstance(version, Version) else ""
    return f"{int(version)} {born}".rstrip().encode()


def _for(key: str, encode: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call an encoder; its error names the key."""
    try:
        return encode(*args, **kwargs)
    except EncodeError as error:
        raise EncodeError(f"{key!r}: {error}") from None


def _dialogue(messages: object) -> list[bytes]:
    if not isinstance(messages, list):
        raise EncodeError(f"expected a list of JSON objects; got {type(messages).__name__}")
    return encode_messages(messages, listed=True)


def _summary_arguments(summary: str | Default | None) -> tuple[bytes, bytes]:
    if isinstance(summary, Default):
        return b"0", b""
    if summary is None:
        return b"2", b""
    if not isinstance(summary, str):
        raise EncodeError(f"the summary must be a string or None; got {type(summary).__name__}")
    encode_value(summary, "the summary")
    return b"1", summary.encode()


def _metadata_arguments(metadata: Mapping[str, Any] | None) -> list[bytes]:
    if metadata is not None and not isinstance(metadata, Mapping):
        raise EncodeError(f"metadata must be a mapping; got {type(metadata).__name__}")
    arguments = []
    for name, value in (metadata or {}).items():
        encode_value({name: value}, "metadata")
        arguments += [name.encode(), b"0" if value is None else b"1", encode_value(value, "metadata")[0]]
    return arguments


def _not_found(key: str) -> SessionNotFound:
    return SessionNotFound(f"there is no session at {key!r}: it was never saved, or it was expired, evicted or deleted")


REFUSALS: Final = {
    "foreign": "is not a memkit session: element 0 is not a memkit header",
    "schema": "was written by a newer memkit (schema {0}); upgrade this one",
    "header": "has a damaged header",
    "element": "has a damaged element, number {0}",
    "vectors": "cannot have vectors: the key {vectors!r} belongs to another application",
}


def raise_decode_error(error: ResponseError, key: str) -> None:
    """Raise a DecodeError if Redis or a script refused a foreign or damaged key; otherwise return."""
    message = str(error)
    # Redis 6.2 wraps an error within a script: "ERR Error running script (...): @user_script:9: WRONGTYPE ...".
    if "WRONGTYPE Operation against a key" in message:
        raise DecodeError(f"{key!r} is not a memkit session: it has another Redis type. Nothing was changed") from error
    if message.startswith("MEMKIT "):
        _, refusal, *rest = message.split()
        reason = REFUSALS[refusal].format(*rest, vectors=vectors_key(key).decode())
        raise DecodeError(f"{key!r} {reason}. Nothing was changed; `memkit inspect` shows it") from error


def checked_replies(operation: Read[Any], replies: list[Any]) -> list[Any]:
    """Return the replies, or raise the first error; it names the key of its command."""
    for command, reply in zip(operation.commands, replies, strict=True):
        if isinstance(reply, ResponseError):
            raise_decode_error(reply, cast("bytes", command[1]).decode())
        if isinstance(reply, Exception):
            raise reply
    return replies
