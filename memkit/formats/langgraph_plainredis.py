"""langgraph-checkpoint-plainredis: msgpack in base64 in JSON, in STRINGs; channels' values in blobs of their own.

``lg:cp:<thread>:<ns>:<id>``, ``lg:blob:<thread>:<ns>:<channel>:<version>``, ``lg:wr:<thread>:<ns>:<id>`` (HASH) and
``lg:idx:<thread>:<ns>`` (ZSET, the order); ``lg:threads`` (HASH) and ``lg:seq`` belong to all threads and never expire.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from memkit.formats.model import Format, Item, KeyOwner, Problem, SessionValues, a_dict, few, is_uuid, quoted
from memkit.formats.parsing.documents import peek, read_with
from memkit.formats.parsing.langgraph_common import (
    checkpoints,
    deserialised,
    message_items,
    missing_parents,
    name_parts,
    newer_schema,
    thread_of,
    thread_of_named,
)
from memkit.readonly.values import KeyRequest, RedisValue

STORE = "langgraph-plainredis"
_KINDS = ("cp", "blob", "wr", "idx")
_PARTS = {"cp": "checkpoint", "blob": "blob", "wr": "write", "idx": "order"}


def recognise(raw: RedisValue, wanted: str | None) -> KeyOwner | None:
    """Claim documents ``{"t", "d"}``, hashes of them and orders, all by name too: nothing in them names the thread."""
    pieces = name_parts(raw.name, _KINDS)
    if pieces is None:
        return None
    prefix, kind, rest = pieces
    if kind == "idx":
        fits = raw.kind == "zset" and prefix.endswith("lg:")
    elif kind == "wr":
        fits = raw.kind == "hash" and any(value.startswith(b'{"t"') for value in raw.fields.values())
    else:
        fits = raw.kind == "string" and ({"t", "d"} <= peek(raw).keys() or prefix.endswith("lg:"))
    thread = thread_of(rest, "", wanted)
    # A subgraph that keeps its state has a word for its namespace, and channels may have colons.
    if thread is None and kind != "blob":
        thread = thread_of_named(rest, wanted)
    elif thread is None and wanted and rest.startswith(f"{wanted}:") and "::" not in rest:
        thread = wanted
    return KeyOwner(STORE, thread, prefix, _PARTS[kind]) if fits and thread else None


def leads(raw: RedisValue) -> tuple[str, ...]:
    """Return the orders that the list of threads names."""
    return tuple(sorted(raw.fields)) if raw.name.endswith("lg:threads") else ()


def siblings(stored: SessionValues) -> Iterable[KeyRequest]:
    """Return the order, the checkpoints it lists, and the blobs and writes that those name."""
    base, thread = stored.owner.prefix, stored.owner.session
    order = f"{base}idx:{thread}:"
    yield KeyRequest(order, "order", kind="zset")
    yield KeyRequest(f"{base}threads", "shared index", (order,), shared=True, kind="hash")
    yield KeyRequest(f"{base}seq", "shared counter", shared=True, kind="string")
    listed = stored.get(order)
    for uid in listed.scores if listed else ():
        yield KeyRequest(f"{base}cp:{thread}::{uid}", "checkpoint")
    for point in _checkpoints(stored)[0].values():
        yield from (KeyRequest(name, "blob") for name in point.blobs.values())
        yield KeyRequest(f"{base}wr:{thread}::{point.uid}", "write", kind="hash")


class Checkpoint(NamedTuple):
    """A checkpoint: its id, its parent's, what made it, and the key of each channel's blob."""

    uid: str
    parent: str
    source: str
    blobs: dict[str, str]


def _checkpoints(stored: SessionValues) -> tuple[dict[str, Checkpoint], list[Problem]]:
    """Return the checkpoints that can be read, oldest first, by key; and the problems of the others."""
    thread = f"{stored.owner.session}::"  # those of subgraphs are shown as keys and not decoded
    root, blob = f"{stored.owner.prefix}cp:{thread}", f"{stored.owner.prefix}blob:{thread}"
    documents, problems = checkpoints((raw for name, raw in stored.keys.items() if name.startswith(root)), _value)
    found: dict[str, Checkpoint] = {}
    for name, value in documents.items():
        checkpoint = a_dict(value.get("checkpoint"))
        problems += newer_schema(checkpoint, name)
        blobs = {channel: f"{blob}{channel}:{at}" for channel, at in a_dict(checkpoint.get("channel_versions")).items()}
        source = str(a_dict(value.get("metadata")).get("source"))
        found[name] = Checkpoint(name.removeprefix(root), str(value.get("parent_id") or ""), source, blobs)
    return found, problems


def decode(stored: SessionValues) -> Iterator[Item]:
    """Yield the messages of the newest checkpoint that has its blob, and what is missing."""
    points, problems = _checkpoints(stored)
    yield from problems
    yield from _dialogue(stored, points)
    yield from missing_parents(stored, {name: point.parent for name, point in points.items()})
    # A checkpoint from which a step of the loop was made had writes.
    stepped = {point.parent for point in points.values() if point.source == "loop"}
    for point in points.values():
        name = f"{stored.owner.prefix}wr:{stored.owner.session}::{point.uid}"
        raw = stored.get(name)
        if raw is None and point.uid in stepped:
            reason = "the checkpoint's writes no longer exist: the step after it cannot be replayed"
            yield Problem("dangling", name, reason)
        for field, data in raw.fields.items() if raw else ():
            faults = _value(RedisValue(f"{name} {field}", "string", data=data, total=len(data)))[1]
            yield from (problem._replace(key=name) for problem in faults)
    yield from _index_problems(stored, points)


def _dialogue(stored: SessionValues, points: Mapping[str, Checkpoint]) -> Iterator[Item]:
    blobs: dict[str, Any] = {}
    for key, raw in stored.keys.items():
        if raw and key.startswith(f"{stored.owner.prefix}blob:{stored.owner.session}:"):
            value, faults = _value(raw)
            yield from faults
            blobs |= {} if faults else {key: value}
    newest = True
    for point in reversed(list(points.values())):
        name = point.blobs.get("messages", "")
        if name in blobs:
            if not newest:
                reason = "the newest messages no longer exist; this is the last state that can be read"
                yield Problem("gap", name, reason)
            yield from message_items({"messages": blobs[name]}, name)
            break
        newest = newest and not name
    else:
        channels = next(iter(points.values())).blobs if points else {}
        yield from message_items({channel: blobs[name] for channel, name in channels.items() if name in blobs}, "")
    # The oldest checkpoint may refer to blobs that expired with those before it.
    first, *others = [set(point.blobs.values()) for point in points.values()] or [set()]
    inherited = first if others and next(iter(points.values())).parent else set()
    needed = set().union(first, *others) - inherited | set().union(*others[-1:])
    lost = sorted(name for name in needed if not stored.get(name))
    reason = "a checkpoint refers to this blob, which no longer exists; the channel's value is lost with it"
    yield from few(Problem("dangling", name, reason) for name in lost)


def _index_problems(stored: SessionValues, points: Mapping[str, Checkpoint]) -> Iterator[Problem]:
    base, thread = stored.owner.prefix, stored.owner.session
    order, threads = f"{base}idx:{thread}:", stored.get(f"{base}threads")
    listed = stored.get(order)
    if listed is None:
        uids = [point.uid for point in points.values()]
        reason = "the thread's order no longer exists: the library shows an empty thread"
        reason += "; recoverable: the checkpoints exist" if uids else ""
        members = " ".join(f"{at} {uid}" for at, uid in enumerate(uids, 1))
        repair = f"ZADD {quoted(order)} {members}" if uids and all(map(is_uuid, uids)) else ""
        yield Problem("dangling", order, reason, repair)
    names = (
        [f"{base}cp:{thread}::{uid}" for uid in sorted(listed.scores, key=listed.scores.__getitem__)] if listed else []
    )
    # Old checkpoints expire first, and the order goes on listing them.
    begin = next((at for at, name in enumerate(names) if stored.get(name)), 0)
    for name in names[begin:]:
        if stored.get(name) is None:
            yield Problem("dangling", name, "the thread's order lists this checkpoint, which no longer exists")
    if threads is None or order not in threads.fields:
        yield Problem("dangling", f"{base}threads", "the list of threads does not name this one")
    if stored.get(f"{base}seq") is None:
        reason = "the counter that orders checkpoints no longer exists: new ones will sort before the existing ones"
        yield Problem("dangling", f"{base}seq", reason)


def _value(raw: RedisValue) -> tuple[Any, list[Problem]]:
    """Return what a ``{"t": …, "d": base64}`` document holds, messages as plain objects."""
    document, problems = read_with(raw, "t", "d")
    if document is None:
        return None, problems
    value, fault = deserialised(document["t"], document["d"], raw)
    return value, [*problems, *fault]


FORMAT = Format(store=STORE, kinds=("string", "hash", "zset"), recognise=recognise, siblings=siblings, decode=decode,
                names=("lg:idx:{id}:",), scanned=True)  # fmt: skip
