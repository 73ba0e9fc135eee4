"""langgraph-checkpoint-plainredis: msgpack in base64 in JSON, in STRINGs; channels' values in blobs of their own.

``lg:cp:<thread>:<ns>:<id>``, ``lg:blob:<thread>:<ns>:<channel>:<version>``, ``lg:wr:<thread>:<ns>:<id>`` (HASH) and
``lg:idx:<thread>:<ns>`` (ZSET, the order); ``lg:threads`` (HASH) and ``lg:seq`` are everybody's and never expire.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from memkit.formats.model import Hit, Item, Known, Problem, a_dict, is_uuid, quoted
from memkit.formats.parsing import msgpack
from memkit.formats.parsing.bounded_json import Fault, Parsed
from memkit.formats.parsing.documents import corrupt, misshapen, peek, read
from memkit.formats.parsing.element_shapes import kind_of, missing
from memkit.formats.parsing.langgraph_common import (
    message_items,
    missing_channels,
    missing_parents,
    name_parts,
    newer_schema,
    thread_of,
)
from memkit.readonly.values import KeyRequest, RedisValue

STORE = "langgraph-plainredis"
SCANNED = True
KINDS = ("string", "hash", "zset")
_KINDS = ("cp", "blob", "wr", "idx")
_PARTS = {"cp": "checkpoint", "blob": "blob", "wr": "write", "idx": "order"}
_PYDANTIC = (4, 5)
_BY_KEYWORDS = 2
MAX_SHELLS = 4  # extensions inside extensions; each is unpacked anew, so depth must be bounded


def names(session: str) -> Iterable[str]:
    """Return the order of the graph itself; it leads to everything else."""
    return (f"lg:idx:{session}:",)


def recognise(raw: RedisValue, wanted: str | None) -> Hit | None:
    """Claim documents ``{"t", "d"}``, hashes of them and orders, all by name too: nothing in them names the thread."""
    pieces = name_parts(raw.name, _KINDS)
    if pieces is None or not _fits(raw, pieces.kind, pieces.prefix):
        return None
    thread = thread_of(pieces.rest, "", wanted)
    return Hit(STORE, thread, pieces.prefix, _PARTS[pieces.kind]) if thread else None


def _kind(name: str) -> str:
    pieces = name_parts(name, _KINDS)
    return pieces.kind if pieces else ""


def _fits(raw: RedisValue, kind: str, prefix: str) -> bool:
    if kind == "idx":
        return raw.kind == "zset" and prefix.endswith("lg:")
    if kind == "wr":
        return raw.kind == "hash" and any(value.startswith(b'{"t"') for value in raw.fields.values())
    return raw.kind == "string" and ({"t", "d"} <= peek(raw).keys() or prefix.endswith("lg:"))


def leads(raw: RedisValue) -> tuple[str, ...]:
    """Return the orders that the list of threads names."""
    return tuple(sorted(raw.fields)) if raw.name.endswith("lg:threads") else ()


def wants(known: Known) -> Iterable[KeyRequest]:
    """Return the order, the checkpoints it lists, and the blobs and writes that those name."""
    base, thread = known.hit.prefix, known.hit.session
    order = f"{base}idx:{thread}:"
    yield KeyRequest(order, "order", kind="zset")
    yield KeyRequest(f"{base}threads", "shared index", (order,), shared=True, kind="hash")
    yield KeyRequest(f"{base}seq", "shared counter", shared=True, kind="string")
    listed = known.there(order)
    for uid in listed.scores if listed else ():
        yield KeyRequest(f"{base}cp:{thread}::{uid}", "checkpoint")
    for point in _checkpoints(known)[0].values():
        yield from (KeyRequest(name, "blob") for name in point.blobs.values())
        yield KeyRequest(f"{base}wr:{thread}::{point.uid}", "write", kind="hash")


class Checkpoint(NamedTuple):
    """A checkpoint: its id, its parent's, what made it, and the key of each channel's blob."""

    uid: str
    parent: str
    source: str
    blobs: dict[str, str]


def _checkpoints(known: Known) -> tuple[dict[str, Checkpoint], list[Problem]]:
    """Return the checkpoints that can be read, oldest first, by key; and the problems of the others."""
    found: dict[str, Checkpoint] = {}
    problems: list[Problem] = []
    root = f"{known.hit.prefix}cp:{known.hit.session}::"  # those of subgraphs are shown as keys and not decoded
    for name, raw in known.keys.items():
        if raw and name.startswith(root):
            value, faults = _value(raw)
            lacks = missing_channels(value) if isinstance(value, dict) else f"it holds {kind_of(value)}"
            problems += [*faults, *([misshapen(name, lacks)] if lacks and not faults and not raw.unread_reason else [])]
            if isinstance(value, dict) and not lacks:
                found[name] = _checkpoint(known, value, name.removeprefix(root))
                problems += newer_schema(a_dict(value.get("checkpoint")), name)
    return dict(sorted(found.items(), key=lambda pair: pair[1].uid)), problems


def _checkpoint(known: Known, value: Mapping[str, Any], uid: str) -> Checkpoint:
    checkpoint, metadata = a_dict(value.get("checkpoint")), a_dict(value.get("metadata"))
    base = f"{known.hit.prefix}blob:{known.hit.session}::"
    versions = a_dict(checkpoint.get("channel_versions"))
    blobs = {channel: f"{base}{channel}:{version}" for channel, version in versions.items()}
    return Checkpoint(uid, str(value.get("parent_id") or ""), str(metadata.get("source")), blobs)


def decode(known: Known) -> Iterator[Item]:
    """Yield the messages of the newest checkpoint whose blob is there, and what is missing."""
    checkpoints, problems = _checkpoints(known)
    yield from problems
    yield from _dialogue(known, checkpoints)
    yield from missing_parents(known, {name: point.parent for name, point in checkpoints.items()})
    yield from _missing_writes(known, checkpoints)
    yield from _index_problems(known, checkpoints)


def _dialogue(known: Known, checkpoints: Mapping[str, Checkpoint]) -> Iterator[Item]:
    blobs, problems = _blobs(known)
    yield from problems
    newest = True
    for point in reversed(list(checkpoints.values())):
        name = point.blobs.get("messages", "")
        if name in blobs:
            if not newest:
                yield Problem("gap", name, "the newest messages are gone; this is the last state that can be read")
            yield from message_items({"messages": blobs[name]}, name)
            break
        newest = newest and not name
    else:
        channels = next(iter(checkpoints.values())).blobs if checkpoints else {}
        yield from message_items({channel: blobs[name] for channel, name in channels.items() if name in blobs}, "")
    lost = sorted({name for point in checkpoints.values() for name in point.blobs.values() if not known.there(name)})
    for name in lost[:5]:
        yield Problem("dangling", name, "a checkpoint names this blob and it is gone, with the channel's value")
    if len(lost) > 5:
        yield Problem("dangling", lost[5], f"… and {len(lost) - 5} more blobs are gone")


def _blobs(known: Known) -> tuple[dict[str, Any], list[Problem]]:
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    for name, raw in known.keys.items():
        if raw and _kind(name) == "blob":
            value, faults = _value(raw)
            problems += faults
            if not faults:
                values[name] = value
    return values, problems


def _missing_writes(known: Known, checkpoints: Mapping[str, Checkpoint]) -> Iterator[Problem]:
    """Yield the checkpoints without writes from which a step of the loop was made: they have lost them."""
    stepped = {point.parent for point in checkpoints.values() if point.source == "loop"}
    for point in checkpoints.values():
        name = f"{known.hit.prefix}wr:{known.hit.session}::{point.uid}"
        raw = known.there(name)
        if raw is None and point.uid in stepped:
            yield Problem("dangling", name, "the checkpoint's writes are gone: the step after it cannot be replayed")
        for field, data in raw.fields.items() if raw else ():
            faults = _value(RedisValue(f"{name} {field}", "string", data=data, total=len(data)))[1]
            yield from (problem._replace(key=name) for problem in faults)


def _index_problems(known: Known, checkpoints: Mapping[str, Checkpoint]) -> Iterator[Problem]:
    base, thread = known.hit.prefix, known.hit.session
    order, threads = f"{base}idx:{thread}:", known.there(f"{base}threads")
    listed = known.there(order)
    if listed is None:
        members = " ".join(f"{at} {point.uid}" for at, point in enumerate(checkpoints.values(), 1))
        says = "the thread's order is gone: the library shows an empty thread"
        says += "; recoverable: the checkpoints are still there" if members else ""
        yield Problem(
            "dangling",
            order,
            says,
            f"ZADD {quoted(order)} {members}"
            if all(is_uuid(point.uid) for point in checkpoints.values()) and members
            else "",
        )
    for uid in listed.scores if listed else ():
        name = f"{base}cp:{thread}::{uid}"
        if known.there(name) is None:
            yield Problem("dangling", name, "the thread's order lists this checkpoint and it is gone")
    if threads is None or order not in threads.fields:
        yield Problem("dangling", f"{base}threads", "the list of threads does not name this one")
    if known.there(f"{base}seq") is None:
        says = "the counter that orders checkpoints is gone: the next ones will sort before those that are there"
        yield Problem("dangling", f"{base}seq", says)


def _value(raw: RedisValue) -> tuple[Any, list[Problem]]:
    """Return what a ``{"t": …, "d": base64}`` document holds, messages as plain objects."""
    document, problems = read(raw)
    lacks = missing(document, ("t", "d")) if document is not None else None
    if lacks:
        problems.append(misshapen(raw.name, lacks))
    if document is None or lacks or document["t"] != "msgpack":
        return None, problems
    try:
        data = base64.b64decode(document["d"], validate=True)
        return _plain(msgpack.unpack(data)), problems
    except msgpack.MsgpackFault as error:
        cause = Parsed(None, Fault(f"msgpack {error.says} at its byte {error.byte:,}", error.byte))
        return None, [*problems, corrupt(raw.name, data, cause)]
    except (binascii.Error, ValueError):
        return None, [*problems, corrupt(raw.name, raw.data, Parsed(None, Fault("not valid base64", 0)))]


def _plain(value: Any, shells: int = 0) -> Any:
    if isinstance(value, msgpack.Ext):
        return _constructed(value, shells)
    if isinstance(value, list):
        return [_plain(entry, shells) for entry in value]
    if isinstance(value, dict):
        return {key: _plain(entry, shells) for key, entry in value.items()}
    return value


def _constructed(value: msgpack.Ext, shells: int) -> Any:
    """Return a LangChain message from its extension, ``[module, class, fields, …]``; any other class stays shut."""
    if value.code not in (*_PYDANTIC, _BY_KEYWORDS) or shells == MAX_SHELLS:
        return None
    inner = msgpack.unpack(value.data)
    if not (isinstance(inner, list) and len(inner) >= 3 and isinstance(inner[2], dict)):
        return None
    return {"lc": 1, "id": [inner[0], inner[1]], "kwargs": _plain(inner[2], shells + 1)}
