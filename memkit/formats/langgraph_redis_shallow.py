"""langgraph-checkpoint-redis' ShallowRedisSaver: the latest checkpoint alone, its writes, and a list of them.

``checkpoint:<thread>:<ns>`` is one JSON document, overwritten by each step; ``write_registry:<thread>:<ns>:shallow`` is
the ZSET that lists the writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from memkit.formats.model import Hit, Item, Known, Problem, a_dict, quoted
from memkit.formats.parsing.documents import misshapen, peek, read
from memkit.formats.parsing.langgraph_common import (
    REDIS_KINDS,
    message_items,
    missing_channels,
    name_parts,
    newer_schema,
    thread_of,
    write_problems,
)
from memkit.readonly.values import DOCUMENT_KINDS, KeyRequest, RedisValue

STORE = "langgraph-redis-shallow"
SCANNED = True
KINDS = (*DOCUMENT_KINDS, "zset")
ROOT = "__empty__"
_END = ":shallow"


def names(session: str) -> Iterable[str]:
    """Return the names of the graph's one checkpoint and of the list of its writes."""
    return (f"checkpoint:{session}:", f"write_registry:{session}:{ROOT}{_END}")


def recognise(raw: RedisValue, wanted: str | None) -> Hit | None:
    """Claim the one checkpoint by its fields and name, the list of writes by its name.

    A write looks the same in the full saver; it is found through the list.
    """
    pieces = name_parts(raw.name, REDIS_KINDS)
    if pieces is None:
        return None
    if pieces.kind == "write_registry" and pieces.rest.endswith(_END) and raw.kind == "zset":
        listed = thread_of(pieces.rest.removesuffix(_END), ROOT, wanted)
        return Hit(STORE, listed, pieces.prefix, "write list") if listed else None
    if pieces.kind != "checkpoint" or raw.kind not in DOCUMENT_KINDS:
        return None
    document = peek(raw)
    thread = str(document.get("thread_id") or wanted or pieces.rest.removesuffix(":"))
    own = pieces.rest in (f"{thread}:", f"{thread}:{document.get('checkpoint_ns')}")
    if not own or wanted not in (None, thread):
        return None
    return Hit(STORE, thread, pieces.prefix, "checkpoint")


def wants(known: Known) -> Iterable[KeyRequest]:
    """Return checkpoint and list, and the writes that the list names."""
    hit = known.hit
    yield KeyRequest(f"{hit.prefix}checkpoint:{hit.session}:", "checkpoint")
    yield KeyRequest(f"{hit.prefix}write_registry:{hit.session}:{ROOT}{_END}", "write list", kind="zset")
    for raw in known.keys.values():
        if raw and raw.kind == "zset":
            yield from (KeyRequest(member, "write") for member in raw.scores)


def decode(known: Known) -> Iterator[Item]:
    """Yield the messages of the checkpoint, and what is missing around it."""
    hit = known.hit
    name = f"{hit.prefix}checkpoint:{hit.session}:"
    raw = known.there(name)
    if raw is None:
        yield Problem("dangling", name, "the writes are there and the checkpoint is gone: the thread is empty")
    else:
        document, problems = read(raw)
        yield from problems
        lacks = None if document is None else missing_channels(document)
        if lacks:
            yield misshapen(name, lacks)
        elif document is not None:
            checkpoint = a_dict(document.get("checkpoint"))
            yield from newer_schema(checkpoint, name)
            yield from message_items(a_dict(checkpoint.get("channel_values")), name)
    yield from _write_problems(known)


def _is_write(name: str) -> bool:
    pieces = name_parts(name, REDIS_KINDS)
    return pieces is not None and pieces.kind == "checkpoint_write"


def _write_problems(known: Known) -> Iterator[Problem]:
    registry = f"{known.hit.prefix}write_registry:{known.hit.session}:{ROOT}{_END}"
    writes = {name: raw for name, raw in known.keys.items() if _is_write(name)}
    if known.there(registry) is None and writes:
        says = f"the list of the thread's {len(writes)} pending writes is gone; recoverable: the writes are still there"
        repair = f"ZADD {quoted(registry)} " + " ".join(f"{name.rpartition(':')[2]} {quoted(name)}" for name in writes)
        yield Problem("dangling", registry, says, repair)
    for name, raw in writes.items():
        if raw is None:
            yield Problem("dangling", name, "the list of pending writes names this write and it is gone")
        else:
            yield from write_problems(raw)
