"""What the decoders speak: a key as it was read, the session it belongs to, and the turns and problems found in it.

Pure data. Names of keys are text; bytes that are not UTF-8 are kept as surrogate escapes, so every name goes back to
Redis exactly as it came.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from memkit.readonly.values import KeyRequest, RedisValue, to_bytes, to_name

SEPARATORS = ":/|{}.#"
"""What stands between a prefix and an id; ``-`` and ``_`` may, but stand inside ids as well."""
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_PLAIN = re.compile(r"[A-Za-z0-9_:./|~@=+-]+", re.ASCII)
_FIRST_S, _LAST_S = 6.3e8, 4.1e9


def quoted(name: str) -> str:
    """Return a name as redis-cli takes it: bare when it is plain, else in double quotes with every oddity escaped."""
    if _PLAIN.fullmatch(name):
        return name
    shown = (chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\x{byte:02x}" for byte in to_bytes(name))
    return f'"{"".join(shown)}"'


def unquoted(word: str) -> str:
    """Return the name that ``quoted`` wrote."""
    if word[:1] != '"':
        return word
    raw = re.sub(rb"\\x([0-9a-f]{2})", lambda found: bytes.fromhex(found[1].decode()), word[1:-1].encode())
    return to_name(raw)


class Tool(NamedTuple):
    """A tool's name and the id of the call, where the store keeps them."""

    name: str | None
    call_id: str | None


class Turn(NamedTuple):
    """One message, oldest first. ``tools`` are the calls an assistant makes, or the one call that a tool answers.

    A named tuple, not a dataclass: a session has thousands, and building a frozen dataclass costs four times as much.
    ``at_s`` is seconds since 1970.
    """

    role: str
    text: str
    tools: tuple[Tool, ...] = ()
    at_s: float | None = None
    uid: str | None = None
    key: str = ""


class Run(NamedTuple):
    """Consecutive messages, oldest first, as columns: what ``Turn`` has, an empty column being None.

    Most messages have the shape that their library always writes, and this is four times as fast as a ``Turn`` each.
    Every tool of a run has the id of its call.
    """

    roles: list[str]
    texts: list[str]
    key: str
    at_s: list[float | None] | None = None
    tools: list[tuple[Tool, ...]] | None = None
    uids: list[str | None] | None = None


class Problem(NamedTuple):
    """Something wrong with a session; ``repair`` is a command for a person to judge, which memkit never runs."""

    cause: str
    key: str
    says: str
    repair: str = ""


class Note(NamedTuple):
    """Something worth knowing that is not wrong."""

    says: str


class Meant(NamedTuple):
    """How long the session's own payload says it should live, in ms; None: for ever."""

    ttl_ms: int | None


Item = Turn | Run | Problem | Note | Meant


class Hit(NamedTuple):
    """Whose key it is: the store, the session, the prefix before it, and the part the key plays in it."""

    store: str
    session: str
    prefix: str
    part: str

    @property
    def group(self) -> tuple[str, str, str]:
        """Equal for all keys of one session."""
        return self.store, self.session, self.prefix


class Known(NamedTuple):
    """A session's keys as far as they have been read; None stands for a key that was looked for and is not there."""

    hit: Hit
    keys: Mapping[str, RedisValue | None]

    def there(self, name: str) -> RedisValue | None:
        """Return the key if it exists."""
        return self.keys.get(name)


class Format(Protocol):
    """What every module of ``memkit.formats`` offers; see the package's docstring."""

    STORE: str
    SCANNED: bool
    KINDS: tuple[str, ...]

    def names(self, session: str) -> Iterable[str]:
        """Return the exact names a session's keys have under the library's default prefix."""

    def recognise(self, raw: RedisValue, wanted: str | None) -> Hit | None:
        """Return whose key this is, by its payload first; ``wanted`` is the id that is looked for, if any."""

    def wants(self, known: Known) -> Iterable[KeyRequest]:
        """Return the keys that this session should have, judging by those read so far."""

    def decode(self, known: Known) -> Iterator[Item]:
        """Yield the dialogue, oldest first, with what is wrong and what is worth knowing."""


def split(name: str, marker: str, wanted: str | None) -> tuple[str, str]:
    """Return prefix and session of a key that ends with the session's id.

    Behind the library's own prefix an id begins after a separator, so that ``A`` is not found in ``sess-A``.
    """
    prefix = name.removesuffix(wanted) if wanted else name
    if wanted and prefix != name and (prefix[-1:] in SEPARATORS or marker not in prefix):
        return prefix, wanted
    head, found, tail = name.partition(marker)
    return (head + marker, tail) if found else ("", name)


def text_or_none(value: Any) -> str | None:
    """Return the value if it is non-empty text."""
    return value if isinstance(value, str) and value else None


def one_of(value: Any, names: Container[str]) -> bool:
    """Return whether the value is text, and one of these; what comes out of JSON may not even be hashable."""
    return isinstance(value, str) and value in names


def is_uuid(text: str) -> bool:
    """Return whether a text is a UUID, which a library made and nobody's name is in."""
    return _UUID.fullmatch(text) is not None


def a_dict(value: Any) -> dict[str, Any]:
    """Return the value if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def a_list(value: Any) -> list[Any]:
    """Return the value if it is a JSON array, else an empty one."""
    return value if isinstance(value, list) else []


def many_seconds(values: list[Any]) -> list[float | None]:
    """Return ``seconds`` of each; in no time where all are plain."""
    if set(map(type, values)) == {float} and min(values) > _FIRST_S and max(values) < _LAST_S:
        return values
    return list(map(seconds, values))


def seconds(value: Any) -> float | None:
    """Return a plausible time in seconds since 1970 (years 1990 to 2100; milliseconds are recognised)."""
    if type(value) not in (int, float):
        return None
    scaled = value / 1000 if value > 1e11 else float(value)
    return scaled if _FIRST_S < scaled < _LAST_S else None
