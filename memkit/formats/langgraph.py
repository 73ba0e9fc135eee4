"""What the three LangGraph savers share: names of keys, the state's messages, chains of checkpoints."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

from memkit.formats.chat import chat_turn, looks_like_chat
from memkit.formats.langchain_message import TYPES, constructed_turn, is_constructed, message_turn
from memkit.formats.model import DOCUMENT_KINDS, Item, Known, Note, Problem, Turn, one_of

KNOWN_VERSION = 4
_SAID = 5


class Pieces(NamedTuple):
    """A key's name taken apart: what stands before the kind, the kind, and what follows it."""

    prefix: str
    kind: str
    rest: str


def name_parts(name: str, kinds: tuple[str, ...]) -> Pieces | None:
    """Return the pieces of a key's name, or None when it is of none of these kinds."""
    found = _kinds(kinds).match(name)
    return Pieces(found[1], found[2], found[3]) if found else None


@cache
def _kinds(kinds: tuple[str, ...]) -> re.Pattern[str]:
    # A prefix ends with one of these marks, so that "checkpoint" is not found inside "my_checkpoint".
    return re.compile(rf"((?:.*?[:/|{{}}.])?)({'|'.join(sorted(kinds, key=len, reverse=True))}):(.*)", re.DOTALL)


# A subgraph's namespace: ``node:task``, several joined by ``|``; the task is a UUID.
_SUBGRAPH = r"[^:|]+:[0-9a-fA-F-]{36}(?:\|[^:|]+:[0-9a-fA-F-]{36})*"


def thread_of(rest: str, root: str, wanted: str | None) -> str | None:
    """Return the thread of ``<thread>:<namespace>[:…]``; both may hold colons, so the namespace must look like one.

    ``root`` is how the graph's own namespace is written; ``wanted`` is the thread that is looked for, if any.
    """
    if wanted:
        fits = rest.startswith(f"{wanted}:") and _after(root).match(rest, len(wanted))
        return wanted if fits else None
    found = [at.start() for at in _after(root).finditer(rest) if at.start()]
    return rest[: found[-1]] if found else None


@cache
def _after(root: str) -> re.Pattern[str]:
    return re.compile(rf":(?={re.escape(root)}(?::|$)|{_SUBGRAPH}(?::|$))")


def message_items(channels: Mapping[str, Any], key: str) -> Iterator[Item]:
    """Yield the messages of a graph's state: channel ``messages``, else the first that holds some."""
    for name in sorted(channels, key=lambda channel: channel != "messages"):
        value = channels[name]
        if name == "__start__" and isinstance(value, dict):
            value = value.get("messages")  # the very first checkpoint: the input, not yet taken up
        found = [_turn(entry, key) for entry in value] if isinstance(value, list) else []
        if found and all(found):
            yield from (turn for turn in found if turn)
            return
    yield Note("no channel of the graph's state holds messages")


def _turn(entry: Any, key: str) -> Turn | None:
    if is_constructed(entry):
        return constructed_turn(entry, key)
    if not isinstance(entry, dict):
        return None
    if one_of(entry.get("type"), TYPES) and "content" in entry:
        return message_turn(entry["type"], entry, key)
    return chat_turn(entry, key) if looks_like_chat([entry]) else None


def missing_parents(known: Known, parents: Mapping[str, str]) -> Iterator[Problem]:
    """Yield a problem for each checkpoint whose parent is gone; ``parents`` gives the parent's id by key.

    A checkpoint's id ends its key, so that one which is there and cannot be read is not taken for gone.
    """
    there = {name.rpartition(":")[2] for name, raw in known.keys.items() if raw and raw.kind in DOCUMENT_KINDS}
    lost = [name for name, parent in parents.items() if parent and parent not in there]
    for name in lost[:_SAID]:
        yield Problem("gap", name, "this checkpoint's parent is gone: the thread cannot be rewound past it")
    if len(lost) > _SAID:
        yield Problem("gap", lost[_SAID], f"… and {len(lost) - _SAID} more checkpoints whose parents are gone")


def newer_schema(checkpoint: Mapping[str, Any], key: str) -> Iterator[Problem]:
    """Yield a problem for a checkpoint in a version of LangGraph's format that is not known here."""
    version = checkpoint.get("v")
    if isinstance(version, int) and version > KNOWN_VERSION:
        says = f"the checkpoint's format has version {version}, and those up to {KNOWN_VERSION} are known here"
        yield Problem("unknown_schema", key, says)
