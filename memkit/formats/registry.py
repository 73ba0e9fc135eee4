"""All formats, and which of them a key belongs to."""

import re
from collections.abc import Iterable, Iterator

from memkit.formats import (
    agent_framework_redis,
    agno,
    langgraph_aws,
    langgraph_js,
    langgraph_plainredis,
    langgraph_redis,
    memkit_store,
    redisvl,
    store_layouts,
)
from memkit.formats.model import Format, Item, KeyOwner, SessionValues
from memkit.formats.parsing.dialogue_checks import Dialogue
from memkit.formats.parsing.documents import first_object, wrong_kind
from memkit.formats.parsing.langgraph_common import REDIS_KINDS
from memkit.formats.store_layouts import LAYOUTS
from memkit.readonly.values import KeyRequest, RedisValue

FORMATS: tuple[Format, ...] = (
    memkit_store.FORMAT,
    langgraph_aws.FORMAT,
    redisvl.FORMAT,
    agno.FORMAT,
    agent_framework_redis.FORMAT,
    langgraph_redis.FORMAT,
    langgraph_js.FORMAT,
    langgraph_plainredis.FORMAT,
    *(layout.format() for layout in LAYOUTS),
)
"""The order decides between formats that claim the same key."""

_PATTERNS = [
    *(name for each in FORMATS for name in each.names),
    *(layout.prefix + key.pattern for layout in LAYOUTS for key in layout.keys),
]
VOCABULARY = frozenset(
    (
        *("vectors", "chat_messages", *REDIS_KINDS, "writes", "cp", "blob", "wr", "threads", "seq", "__start__"),
        *("branch", "to", "agent", "team", "workflow", *agno.RUN_INDEX, *agno.SESSION_INDEX),
        *("PENDING", "RUNNING", "PAUSED", "COMPLETED", "CANCELLED", "ERROR"),
        *(word for pattern in _PATTERNS for word in re.sub(r"\{[^}]*\}", ":", pattern).split(":")),
    )
)
"""The words of which the stores' own key names are made; any other word in a name was chosen by a user."""

_BY_KIND = {
    kind: tuple(each for each in FORMATS if kind in each.kinds)
    for kind in {kind for each in FORMATS for kind in each.kinds}
}
_BY_STORE = {each.store: each for each in FORMATS}


def recognise(raw: RedisValue, wanted: str | None = None, *, store: str = "") -> KeyOwner | None:
    """Return the session that a key belongs to, or None.

    Each format looks at the payload before it looks at the name, and the order of ``FORMATS`` decides between them.

    Args:
        raw: The key.
        wanted: The session id that is searched, if there is one.
        store: The store that is known to have written the key; empty if it is not known.
    """
    found = (_BY_STORE[store],) if store else _BY_KIND.get(raw.kind, ())
    claims = (owner for each in found if (owner := each.recognise(raw, wanted)))
    owner = next(claims, None)
    first_object.cache_clear()  # a document may have 64 MB
    return owner


def leads(raw: RedisValue) -> tuple[str, ...]:
    """Return the keys that show which sessions a key belongs to: those that an index shared by sessions points to."""
    return agno.leads(raw) or langgraph_plainredis.leads(raw) or store_layouts.leads(raw)


def format_of(store: str) -> Format:
    """Return the format of a store, by the name that ``recognise`` gives it."""
    return _BY_STORE[store]


def lacking(stored: SessionValues) -> list[KeyRequest]:
    """Return the requests for a session's keys that have not been read.

    Of a key that sessions share only this session's entries are read, so those must all be known first.
    """
    found = {one.name: one for one in format_of(stored.owner.store).siblings(stored) if one.name not in stored.keys}
    return [one for one in found.values() if not one.shared] or list(found.values())


def store_name(stored: SessionValues) -> str:
    """Return the name to report for a session, which all of its keys decide."""
    found = format_of(stored.owner.store)
    return found.name_of(stored) if found.name_of else found.store


def spellings_of_id(session: str) -> Iterable[str]:
    """Return how stores write an id into names, if not as it is."""
    colons = {each.colon for each in FORMATS} if ":" in session else set()
    return (agent_framework_redis.encoded(session), *(session.replace(":", colon) for colon in colons - {":"}))


def decode(stored: SessionValues) -> Iterator[Item]:
    """Yield a session's dialogue, oldest first, with the problems in it and between its keys."""
    found = format_of(stored.owner.store)
    yield from Dialogue(loses_calls=found.loses_calls).follow(found.decode(stored))
    for request in {request.name: request for request in found.siblings(stored)}.values():
        raw = stored.get(request.name)
        if raw and request.kind and raw.kind != request.kind and not raw.unread_reason:
            yield wrong_kind(raw, f"a {request.kind}")
    first_object.cache_clear()
