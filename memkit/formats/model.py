"""The data that decoders exchange: which session a key belongs to, its messages, and the problems in it.

Pure data. Names of keys are text. Bytes that are not UTF-8 are kept as surrogate escapes, so that every name goes back
to Redis exactly as it was read.
"""

import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from memkit.policy import ExpiryPolicy
from memkit.readonly.values import KeyRequest, RedisValue, to_bytes, to_name

SEPARATORS = ":/|{}.#"
"""The characters between a prefix and an id. ``-`` and ``_`` are not among them because ids contain them too."""
PART_WORDS = (
    r"(?:messages?|msgs?|history|chat_history|chats?|stream|log|events|turns|meta|metadata|info|summary|state|context|"
    r"ids|index|order|vectors|data)"
)
"""The words that people write behind a session's id to name one of its keys."""
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
REPORTED_PER_CAUSE = 5
_PLAIN = re.compile(r"[A-Za-z0-9_:./|~@=+-]+", re.ASCII)
ISO_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d")
_EARLIEST_S, _LATEST_S = 6.3e8, 4.1e9
"""The years 1990 and 2100: a number outside is not a time in seconds."""
_MILLISECONDS = 1e11
"""In seconds this is the year 5138; every larger number is a time in milliseconds."""
_MICROSECONDS = 1e14
ZONE_MS = 14 * 3_600_000
"""No time zone is further from UTC."""
NO_TTL_OPTION = "has no TTL option"


def quoted(name: str) -> str:
    """Return a name as redis-cli takes it: bare if it is plain, else in double quotes with escapes."""
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
    """A tool's name and the id of the call, if the store keeps them."""

    name: str | None
    call_id: str | None


class Turn(NamedTuple):
    """One message. ``tools`` are the calls that an assistant makes, or the one call that a tool answers.

    A named tuple, because a session has thousands and building a frozen dataclass costs four times as much.
    ``at_s`` is seconds since 1970; ``uid`` is the message's own id.
    """

    role: str
    text: str
    tools: tuple[Tool, ...] = ()
    at_s: float | None = None
    uid: str | None = None
    key: str = ""


class Problem(NamedTuple):
    """A fault of a session. ``repair`` is a command for a person to review; memkit never runs it.

    ``pop_explains``: it is not a fault if the application itself removed the last element.
    ``written_ms``: when the key that no longer exists was written, if its id states that.
    """

    cause: str
    key: str
    message: str
    repair: str = ""
    pop_explains: bool = False
    written_ms: float | None = None


class LikeProblems:
    """Problems by cause: the first five of each cause are kept, and the others are counted."""

    def __init__(self) -> None:
        self._kept: dict[str, list[Problem]] = {}
        self._counts: Counter[str] = Counter()

    def add(self, cause: str, key: str, message: str | Callable[[], str]) -> None:
        """Add a problem; a message that takes time is made by a function, and only if it is kept."""
        self._counts[cause] += 1
        kept = self._kept.setdefault(cause, [])
        if len(kept) < REPORTED_PER_CAUSE:
            kept.append(Problem(cause, key, message if isinstance(message, str) else message()))

    def report(self, more: str = "more like it") -> Iterator[Problem]:
        """Yield the problems that were kept, and after those of a cause one that counts the others."""
        for cause, kept in self._kept.items():
            yield from kept
            if self._counts[cause] > len(kept):
                yield kept[-1]._replace(message=f"… and {self._counts[cause] - len(kept):,} {more}")


def few(problems: Iterable[Problem]) -> Iterator[Problem]:
    """Yield five of many like problems, and a sixth that counts the others."""
    found = LikeProblems()
    for problem in problems:
        found.add(problem.cause, problem.key, problem.message)
    return found.report()


class Note(NamedTuple):
    """A fact about a session that is not a fault."""

    message: str


class ConfiguredTtl(NamedTuple):
    """The expiry policy that the session's own payload states."""

    policy: ExpiryPolicy


Item = Turn | Problem | Note | ConfiguredTtl


SessionKey = tuple[str, str, str]
"""A session's store, its id and the prefix before the id: equal for all keys of one session."""


class KeyOwner(NamedTuple):
    """The session that a key belongs to: its store, its id, the prefix before the id, and the key's part in it."""

    store: str
    session: str
    prefix: str
    part: str

    @property
    def group(self) -> SessionKey:
        """Equal for all keys of one session."""
        return self.store, self.session, self.prefix


class SessionValues(NamedTuple):
    """The keys of a session that have been read so far; None stands for a key that does not exist."""

    owner: KeyOwner
    keys: Mapping[str, RedisValue | None]

    def get(self, name: str) -> RedisValue | None:
        """Return the key if it exists."""
        return self.keys.get(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """How one store lays out its keys.

    Attributes:
        store: The name of the store.
        kinds: The Redis types of its own keys.
        recognise: Returns the owner of a key, by its payload first; the second argument is the id that is searched.
        decode: Yields the messages, oldest first, with problems and notes.
        siblings: Returns the keys that a session should have, judging by those read so far.
        names: The names of a session's keys under the library's default prefix, with ``{id}`` for the id; only those
            that have nothing else in them.
        scanned: Whether siblings can only be found by SCAN.
        prefix: The library's default prefix, if names begin with one.
        loses_calls: Whether the library drops an assistant's tool calls when it writes.
        ttl_option: What the library's TTL option is, for a session without a TTL; empty if nothing is known of it.
        name_of: Returns the name to report, if it depends on all keys of the session.
        colon: How names write a colon of the session's id.
        written_s: Returns when a document was last written, if its fields together state that.
        names_message: Whether a name can only be that of one message of the session: its payload may be damaged.
    """

    store: str
    kinds: tuple[str, ...]
    recognise: Callable[[RedisValue, str | None], KeyOwner | None]
    decode: Callable[[SessionValues], Iterator[Item]]
    siblings: Callable[[SessionValues], Iterable[KeyRequest]] = lambda _: ()
    names: tuple[str, ...] = ()
    scanned: bool = False
    prefix: str = ""
    loses_calls: bool = False
    ttl_option: str = ""
    name_of: Callable[[SessionValues], str] | None = None
    colon: str = ":"
    written_s: Callable[[Mapping[str, Any]], float | None] | None = None
    names_message: Callable[[KeyOwner, str], bool] = lambda _owner, _name: False


def text_or_none(value: Any) -> str | None:
    """Return the value if it is non-empty text."""
    return value if isinstance(value, str) and value else None


def one_of(value: Any, names: Container[str]) -> bool:
    """Return whether the value is text, and one of these; a value out of JSON may not even be hashable."""
    return isinstance(value, str) and value in names


def is_uuid(text: str) -> bool:
    """Return whether a text is a UUID: a library made it, so it holds no user's name."""
    return _UUID.fullmatch(text) is not None


def a_dict(value: Any) -> dict[str, Any]:
    """Return the value if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def a_list(value: Any) -> list[Any]:
    """Return the value if it is a JSON array, else an empty one."""
    return value if isinstance(value, list) else []


def seconds(value: Any) -> float | None:
    """Return a plausible time in seconds since 1970 (years 1990 to 2100), or None.

    Args:
        value: Seconds, milliseconds or microseconds as a number, or an ISO 8601 text. A text without a time zone counts
            as UTC, because servers run in UTC.
    """
    if isinstance(value, str):
        if not ISO_TIME.match(value):
            return None
        try:
            at = datetime.fromisoformat(value)
        except ValueError:
            return None
        value = (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    if type(value) not in (int, float) or value > _LATEST_S * 1e6:  # an integer may be beyond all floats
        return None
    scale = 1e6 if value > _MICROSECONDS else 1e3 if value > _MILLISECONDS else 1
    scaled = value / scale
    return scaled if _EARLIEST_S < scaled < _LATEST_S else None
