"""langchain-community's RedisChatMessageHistory: one LIST a session, newest first (LPUSH).

The TTL is set by an EXPIRE of its own after each append; when that is lost the session is immortal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import repeat
from typing import Any

from memkit.formats.model import Hit, Item, Known, split
from memkit.formats.parsing.chat import Columns, columns, roles_of
from memkit.formats.parsing.langchain_message import tools_of, typed_turn
from memkit.formats.parsing.list_elements import turns, votes
from memkit.readonly.values import KeyRequest, RedisValue

STORE = "langchain-community"
SCANNED = False
KINDS = ("list",)
PREFIX = "message_store:"


def names(session: str) -> Iterable[str]:
    """Return the one key's default name."""
    return (PREFIX + session,)


def recognise(raw: RedisValue, wanted: str | None) -> Hit | None:
    """Claim lists whose elements are ``{"type": "human" | "ai" | …, "data": {…}}``, or that have the default name."""
    if not (votes(raw)[STORE] or raw.name.startswith(PREFIX)):
        return None
    prefix, session = split(raw.name, PREFIX, wanted)
    return Hit(STORE, session, prefix, "primary")


def wants(known: Known) -> Iterable[KeyRequest]:
    """Return the one key."""
    return (KeyRequest(known.hit.prefix + known.hit.session, "primary"),)


def decode(known: Known) -> Iterator[Item]:
    """Yield the list's messages from its tail to its head."""
    for raw in known.keys.values():
        if raw:
            yield from turns(raw, typed_turn, store=STORE, plain=_plain, newest_first=True)


def _plain(values: list[Any]) -> Columns | None:
    kinds, fields = [value["type"] for value in values], [value["data"] for value in values]
    if "chat" in kinds:
        return None
    roles, texts = roles_of(kinds), [each["content"] for each in fields]
    tools = [tools_of(*each) for each in zip(roles, fields, strict=True)]
    return columns(roles, texts, tools, list(map(dict.get, fields, repeat("id"))))
