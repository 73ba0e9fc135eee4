"""langgraph-checkpoint-redis: a JSON document a checkpoint, a pointer to the latest, writes and their lists.

``checkpoint:<thread>:<ns>:<id>``, ``checkpoint_latest:<thread>:<ns>`` (STRING), ``checkpoint_write:…:<task>:<idx>``,
``write_keys_zset:<thread>:<ns>:<id>``. ``ns`` is ``__empty__`` for the graph itself. The TTL is given in minutes and
set by an EXPIRE of its own; old checkpoints are not renewed. Without the pointer the library shows an empty thread
although everything is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from memkit.formats.model import Hit, Item, Known, Note, Problem, a_dict, quoted
from memkit.formats.parsing.documents import misshapen, peek, read
from memkit.formats.parsing.langgraph_common import (
    REDIS_KINDS,
    message_items,
    missing_channels,
    missing_parents,
    name_parts,
    newer_schema,
    thread_of,
    write_problems,
)
from memkit.readonly.values import DOCUMENT_KINDS, KeyRequest, RedisValue, to_name

STORE = "langgraph-redis"
SCANNED = True
KINDS = (*DOCUMENT_KINDS, "zset")
ROOT = "__empty__"
_PARTS = {"checkpoint": "checkpoint", "checkpoint_write": "write", "checkpoint_latest": "pointer",
          "write_keys_zset": "write list"}  # fmt: skip


def names(session: str) -> Iterable[str]:
    """Return the pointer of the graph itself; the other keys carry ids of their own."""
    return (f"checkpoint_latest:{session}:{ROOT}",)


def recognise(raw: RedisValue, wanted: str | None) -> Hit | None:
    """Claim checkpoints and writes by their fields, pointers and lists by their names."""
    pieces = name_parts(raw.name, REDIS_KINDS)
    if pieces is None or pieces.kind not in _PARTS:
        return None
    document = peek(raw) if pieces.kind in ("checkpoint", "checkpoint_write") else {}
    thread = document.get("thread_id") if isinstance(document.get("thread_id"), str) else None
    thread = thread or thread_of(pieces.rest, ROOT, wanted)
    if not isinstance(thread, str) or wanted not in (None, thread):
        return None
    if pieces.kind == "checkpoint" and pieces.rest in (f"{thread}:", f"{thread}:{document.get('checkpoint_ns')}"):
        return None  # the shallow saver's one checkpoint
    return Hit(STORE, thread, pieces.prefix, _PARTS[pieces.kind])


def _kind(name: str) -> str:
    pieces = name_parts(name, REDIS_KINDS)
    return pieces.kind if pieces else ""


def wants(known: Known) -> Iterable[KeyRequest]:
    """Return the pointers, and whatever pointers and lists name."""
    hit = known.hit
    yield KeyRequest(f"{hit.prefix}checkpoint_latest:{hit.session}:{ROOT}", "pointer", kind="string")
    for name, raw in known.keys.items():
        pieces = name_parts(name, REDIS_KINDS)
        if raw is None or pieces is None:
            continue
        if pieces.kind == "checkpoint_latest":
            yield KeyRequest(to_name(raw.data), "checkpoint")
        if pieces.kind == "checkpoint_write":
            yield KeyRequest(f"{hit.prefix}write_keys_zset:{pieces.rest.rsplit(':', 2)[0]}", "write list", kind="zset")
        if pieces.kind == "write_keys_zset":
            yield from (KeyRequest(member, "write") for member in raw.scores)
        if pieces.kind == "checkpoint" and peek(raw).get("has_writes") is True:
            yield KeyRequest(f"{hit.prefix}write_keys_zset:{pieces.rest}", "write list", kind="zset")


def decode(known: Known) -> Iterator[Item]:
    """Yield the messages of the latest checkpoint, and what is missing around it."""
    documents, problems = _documents(known)
    yield from problems
    yield from _pointer_problems(known, documents)
    latest = _latest(known, documents)
    if latest:
        if problems and latest != _pointed(known):
            yield Note("the latest checkpoint cannot be read; this is the newest state that can be")
        checkpoint = a_dict(documents[latest].get("checkpoint"))
        yield from newer_schema(checkpoint, latest)
        yield from message_items(a_dict(checkpoint.get("channel_values")), latest)
    yield from missing_parents(
        known, {name: str(each.get("parent_checkpoint_id") or "") for name, each in documents.items()}
    )
    yield from _write_problems(known)


def _documents(known: Known) -> tuple[dict[str, dict[str, Any]], list[Problem]]:
    """Return the checkpoints that can be read, oldest first; their ids sort by time."""
    documents: dict[str, dict[str, Any]] = {}
    problems: list[Problem] = []
    for name, raw in known.keys.items():
        if raw and _kind(name) == "checkpoint":
            document, found = read(raw)
            problems += found
            lacks = None if document is None else missing_channels(document)
            if lacks:
                problems.append(misshapen(name, lacks))
            elif document is not None:
                documents[name] = document
    return dict(sorted(documents.items(), key=lambda pair: str(pair[1].get("checkpoint_id")))), problems


def _latest(known: Known, documents: dict[str, dict[str, Any]]) -> str | None:
    target = _pointed(known)
    return target if target in documents else _newest(documents)


def _pointed(known: Known) -> str:
    pointer = known.there(f"{known.hit.prefix}checkpoint_latest:{known.hit.session}:{ROOT}")
    return to_name(pointer.data) if pointer else ""


def _newest(documents: dict[str, dict[str, Any]]) -> str | None:
    roots = [name for name, document in documents.items() if document.get("checkpoint_ns") in (ROOT, "", None)]
    return roots[-1] if roots else next(reversed(documents), None)


def _pointer_problems(known: Known, documents: dict[str, dict[str, Any]]) -> Iterator[Problem]:
    name = f"{known.hit.prefix}checkpoint_latest:{known.hit.session}:{ROOT}"
    pointer, newest = known.there(name), _newest(documents)
    option = "KEEPTTL" if pointer else "EX <the checkpoints' TTL in seconds>"
    repair = f"SET {quoted(name)} {quoted(newest or '')} {option}"
    if pointer is None:
        says = "the pointer to the latest checkpoint is gone: the library shows an empty thread"
    elif known.there(to_name(pointer.data)) is None:
        says = "the pointer names a checkpoint that is gone: the library shows an empty thread"
    else:
        return
    if newest:
        says += f"; recoverable: the checkpoints are still there ({len(documents)} of them)"
    yield Problem("dangling", name, says, repair if newest else "")


def _write_problems(known: Known) -> Iterator[Problem]:
    for name, raw in known.keys.items():
        kind = _kind(name)
        if raw is None and kind == "checkpoint_write":
            yield Problem("dangling", name, "a list of pending writes names this write and it is gone")
        elif raw is None and kind == "write_keys_zset":
            yield Problem("dangling", name, "a checkpoint has writes and the list of them is gone")
        elif raw and kind == "checkpoint_write":
            yield from write_problems(raw)
