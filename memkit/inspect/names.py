"""Names in a report: those that only a payload holds are hidden unless the reader asked to see them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cache

from memkit import formats
from memkit.formats.model import is_uuid, unquoted

_WORDS = re.compile(r"([:|/{}\0]+)")
_MADE = re.compile(r"[:|/{}\0]*|[0-9]{1,6}", re.ASCII)
_COMMAND_WORD = re.compile(r'"[^"]*"|<[^>]*>|\S+')
_COMMAND_WORDS = ("SET", "ZADD", "EX", "KEEPTTL")


def name_mask(names: Iterable[str], wanted: str) -> Callable[[str], str]:
    """Return a function that hides, in the name of a key that does not exist, the words that only a payload holds.

    Words of names that exist, of the id that was asked for, and those that the libraries make are shown.

    Args:
        names: The keys that exist.
        wanted: The id or key that was asked for.
    """
    there = set(names)

    @cache
    def known_words() -> frozenset[str]:
        return formats.VOCABULARY.union(*(_WORDS.split(name) for name in (*there, wanted)))

    def masked(name: str) -> str:
        if name in there or name == wanted:
            return name
        words = known_words()
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
