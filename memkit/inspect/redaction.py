"""Messages without their texts, and names without the words that only a payload holds, unless the reader asked."""

import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from hashlib import blake2b
from secrets import token_bytes
from typing import Any, NamedTuple

from memkit import formats
from memkit.formats.model import Tool, Turn, is_uuid, unquoted
from memkit.render import counted

_HASH_BYTES = 5
_WORDS = re.compile(r"([:|/{}\0]+)")
_MADE = re.compile(r"[:|/{}\0]*|[0-9]{1,6}", re.ASCII)
_COMMAND_WORD = re.compile(r'"[^"]*"|<[^>]*>|\S+')
_COMMAND_WORDS = ("SET", "ZADD", "EX", "KEEPTTL")


class Message(NamedTuple):
    """One message. ``text`` is None if it is redacted; ``tools`` hold hashes then, instead of names and ids.

    ``hash`` is a short keyed hash: equal texts have equal hashes within one report, and in no other.
    """

    role: str
    text: str | None
    chars: int
    lines: int
    hash: str
    tools: tuple[Tool, ...]
    at_s: float | None

    @property
    def at(self) -> datetime | None:
        """The time that the payload states."""
        return None if self.at_s is None else datetime.fromtimestamp(self.at_s, UTC)

    @property
    def shape(self) -> str:
        """The size of the text, which shows none of it."""
        return f"{self.chars:,} chars, {counted(self.lines, 'line')}" if self.chars else "empty"

    def to_dict(self) -> dict[str, Any]:
        """Return the message as ``inspect --json`` shows it."""
        tools = [tool._asdict() for tool in self.tools]
        shown = {
            "role": self.role,
            "text": self.text,
            "chars": self.chars,
            "tool": tools[0] if tools else None,
            "at": None if self.at is None else self.at.isoformat().replace("+00:00", "Z"),
            "hash": self.hash,
            "shape": self.shape,
        }
        return shown | ({"more_tools": tools[1:]} if tools[1:] else {})


class Redactor:
    """Replaces texts by hashes under a secret of its own, made for one report and never shown.

    Args:
        reveal: Keep the texts, and the names and ids of tools.
    """

    __slots__ = ("_keyed", "_reveal")

    def __init__(self, *, reveal: bool) -> None:
        self._reveal = reveal
        self._keyed = blake2b(key=token_bytes(32), digest_size=_HASH_BYTES)

    def message(self, turn: Turn) -> Message:
        """Return a message as it may be shown; an empty text hides nothing."""
        role, text, tools, at_s, _, _ = turn
        shown = text if self._reveal or not text else None
        if tools and not self._reveal:
            tools = tuple([Tool(self._tagged(name), self._tagged(call_id)) for name, call_id in tools])
        lines = text.count("\n") + 1 if "\n" in text else 1  # ``in`` is ten times as fast, and most have one line
        return Message(role, shown, len(text), lines, self._tag(text), tools, at_s)

    def _tag(self, text: str) -> str:
        keyed = self._keyed.copy()
        keyed.update(text.encode("utf-8", "surrogatepass"))
        return keyed.hexdigest()

    def _tagged(self, text: str | None) -> str | None:
        return None if text is None else f"#{self._tag(text)}"


def name_mask(names: Iterable[str], wanted: str) -> Callable[[str], str]:
    """Return a function that hides, in the name of a key that does not exist, the words that only a payload holds.

    Words of names that exist, of the id that was asked for, and those that the libraries make are shown.

    Args:
        names: The keys that exist.
        wanted: The id or key that was asked for.
    """
    there = set(names)
    words = formats.VOCABULARY.union(*(_WORDS.split(name) for name in (*there, wanted)))

    def masked(name: str) -> str:
        if name in there or name == wanted:
            return name
        return "".join(
            word if word in words or _MADE.fullmatch(word) or is_uuid(word) else "…" for word in _WORDS.split(name)
        )

    return masked


def masked_repair(repair: str, mask: Callable[[str], str]) -> str:
    """Return a command with its names masked; then it cannot be pasted, and a remark shows how to see it."""

    def shown(found: re.Match[str]) -> str:
        word = found[0]
        if word in _COMMAND_WORDS or word[0] == "<":
            return word
        name = unquoted(word)
        return word if mask(name) == name else mask(name)

    masked = _COMMAND_WORD.sub(shown, repair)
    return masked if masked == repair else f"{masked} (names in it are hidden; --reveal, or reveal=True, prints them)"
