"""How the memory stores that people run lay out their keys: one module a store, pure decoders, no I/O.

To add a store, write a module with ``STORE``, ``SCANNED`` (whether siblings can only be found by SCAN), ``KINDS`` (the
types of its own keys), ``names``, ``recognise``, ``wants`` and ``decode`` (see ``model.Format``), list it here, and put
a captured session into ``captures/``: the tests take it from there. A store of lists also has the look of its elements
in ``shapes.SHAPES``. ``LOSES_CALLS = True`` says that the library drops an assistant's tool calls when it writes. No
module imports the library whose keys it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

from memkit.formats import (
    ag2,
    agent_framework_redis,
    agno,
    google_adk_redis,
    langchain_community,
    langchain_redis,
    langgraph_plainredis,
    langgraph_redis,
    langgraph_redis_shallow,
    llama_index,
    memkit_store,
    openai_agents,
    redisvl,
)
from memkit.formats.model import Format, Hit, Item, Known
from memkit.formats.parsing.dialogue_checks import Dialogue
from memkit.formats.parsing.documents import wrong_kind
from memkit.formats.parsing.list_elements import votes
from memkit.readonly.values import RedisValue

FORMATS: tuple[Format, ...] = cast(
    "tuple[Format, ...]",
    (
        memkit_store,
        langchain_community,
        langchain_redis,
        redisvl,
        llama_index,
        openai_agents,
        agno,
        google_adk_redis,
        agent_framework_redis,
        ag2,
        langgraph_redis_shallow,
        langgraph_redis,
        langgraph_plainredis,
    ),
)

VOCABULARY = frozenset(
    (
        *(
            "agents",
            "session",
            "messages",
            "message_store",
            "vectors",
            "ag2",
            "stream",
            "chat",
            "chat_messages",
            "shallow",
        ),
        *("checkpoint", "checkpoint_latest", "checkpoint_write", "write_keys_zset", "write_registry", "__empty__"),
        *("lg", "cp", "blob", "wr", "idx", "threads", "seq", "__start__", "branch", "to"),
        *("agno", "runs", "sessions", "by_session", "index", "agent", "team", "workflow", *agno.RUN_INDEX),
        *(*agno.SESSION_INDEX, "PENDING", "RUNNING", "PAUSED", "COMPLETED", "CANCELLED", "ERROR"),
    )
)
"""The words of which the stores' own key names are made; what else a name holds, somebody put there."""

_BY_KIND = {
    kind: tuple(store for store in FORMATS if kind in store.KINDS)
    for kind in {k for store in FORMATS for k in store.KINDS}
}


def recognise(raw: RedisValue, wanted: str | None = None) -> Hit | None:
    """Return whose key this is, or None; ``wanted`` is the session id that is looked for, if there is one.

    Each store looks at the payload before it looks at the name, and the order of ``FORMATS`` decides between them. Of a
    list the most elements decide, and its name counts as one more: one foreign element changes nothing.
    """
    stores = _BY_KIND.get(raw.kind, ())
    hits = (hit for store in stores if (hit := store.recognise(raw, wanted)))
    if raw.kind != "list":
        return next(hits, None)
    claims = list(hits)
    return claims[0] if len(claims) == 1 else max(claims, key=_likeness(raw), default=None)


def _likeness(raw: RedisValue) -> Callable[[Hit], tuple[int, bool]]:
    named = {store.STORE for store in FORMATS if raw.name.startswith(getattr(store, "PREFIX", "\0"))}
    found = votes(raw)
    found[memkit_store.STORE] = len(raw.elements)  # its own claim has been weighed against the others'
    return lambda hit: (found[hit.store] + (hit.store in named), hit.store in named)


def leads(raw: RedisValue) -> tuple[str, ...]:
    """Return the keys that an index shared by many sessions points to."""
    return agno.leads(raw) or langgraph_plainredis.leads(raw)


def format_of(store: str) -> Format:
    """Return the module of a store."""
    return next(module for module in FORMATS if store == module.STORE)


def decode(known: Known) -> Iterator[Item]:
    """Yield a session's dialogue, oldest first, with the problems in it and between its keys."""
    module = format_of(known.hit.store)
    yield from Dialogue(loses_calls=getattr(module, "LOSES_CALLS", False)).follow(module.decode(known))
    for want in {want.name: want for want in module.wants(known)}.values():
        raw = known.there(want.name)
        if raw and want.kind and raw.kind != want.kind and not raw.unread_reason:
            yield wrong_kind(raw, f"a {want.kind}")
