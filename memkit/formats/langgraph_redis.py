"""langgraph-checkpoint-redis for Python: RedisSaver, which keeps every checkpoint, and ShallowRedisSaver.

RedisSaver: ``checkpoint:<thread>:<ns>:<id>`` (JSON), ``checkpoint_latest:<thread>:<ns>`` (STRING, the pointer to the
latest), ``checkpoint_write:…:<task>:<idx>``, ``write_keys_zset:<thread>:<ns>:<id>``. ``ns`` is ``__empty__`` for the
graph itself. Without the pointer the library shows an empty thread although everything is there.

ShallowRedisSaver: ``checkpoint:<thread>:<ns>`` is one document, overwritten by each step;
``write_registry:<thread>:<ns>:shallow`` is the ZSET that lists the writes. It deletes old writes itself.

The user may choose other words for ``checkpoint`` and ``checkpoint_write``. The TTL is given in minutes and set by an
EXPIRE of its own; old checkpoints are not renewed. Writes look alike in both savers: which saver a thread has is known
by its other keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from memkit.formats.model import Format, Item, KeyOwner, Note, Problem, SessionValues, quoted, text_or_none
from memkit.formats.parsing.documents import peek
from memkit.formats.parsing.langgraph_common import (
    REDIS_KINDS,
    Pieces,
    checkpoints,
    missing_parents,
    name_parts,
    pieces_of,
    state_items,
    thread_of,
    write_problems,
)
from memkit.readonly.values import DOCUMENT_KINDS, KeyRequest, RedisValue, to_name

STORE, SHALLOW = "langgraph-redis", "langgraph-redis-shallow"
ROOT = "__empty__"
_END = ":shallow"
_LATEST = "_latest"
_WRITE_FIELDS = frozenset({"thread_id", "checkpoint_id", "task_id", "channel"})
_PARTS = {"checkpoint": "checkpoint", "checkpoint_write": "write", "checkpoint_latest": "pointer",
          "write_keys_zset": "write list", "write_registry": "write list"}  # fmt: skip


def names(session: str) -> Iterable[str]:
    """Return the pointer of the graph itself, and the shallow saver's keys; the others carry ids of their own."""
    return (f"checkpoint_latest:{session}:{ROOT}", f"checkpoint:{session}:", f"write_registry:{session}:{ROOT}{_END}")


def is_shallow_name(name: str) -> bool:
    """Return whether a key's name is one of the shallow saver: its checkpoint, or the list of its writes."""
    pieces = name_parts(name, REDIS_KINDS)
    return pieces is not None and (
        pieces.kind == "write_registry" or (pieces.kind == "checkpoint" and pieces.rest[-1:] == ":")
    )


def recognise(raw: RedisValue, wanted: str | None) -> KeyOwner | None:
    """Claim checkpoints and writes by their fields, pointers by what they point to, lists of writes by their names."""
    if raw.kind == "zset":
        return _list_owner(raw, wanted)
    document = peek(raw)
    if not document:
        return _pointer_owner(raw, wanted) or _damaged_owner(raw, wanted)
    thread = text_or_none(document.get("thread_id")) or wanted or _shallow_thread(raw.name)
    if thread is None or wanted not in (None, thread) or ("checkpoint" not in document and not _is_write(document)):
        return None
    pieces = _pieces(raw.name, thread)
    if pieces is None or not _is_python(_after(pieces, thread), document):
        return None
    return KeyOwner(STORE, thread, pieces.prefix, "write" if _is_write(document) else "checkpoint")


def _pieces(name: str, thread: str) -> Pieces | None:
    """Return the pieces of a key's name; if it has another thread's name, the document was copied or changed."""
    return pieces_of(name, thread) or (name_parts(name, REDIS_KINDS) if f":{ROOT}:" in name else None)


def _after(pieces: Pieces, thread: str) -> str:
    """Return what follows the thread: the namespace, and the ids of the checkpoint and the write."""
    if pieces.rest.startswith(f"{thread}:"):
        return pieces.rest[len(thread) + 1 :]
    return ROOT + pieces.rest.partition(f":{ROOT}")[2]


def _is_write(document: Mapping[str, Any]) -> bool:
    return document.keys() >= _WRITE_FIELDS


def _is_python(after_thread: str, document: Mapping[str, Any]) -> bool:
    """Return whether a key is Python's: JavaScript's saver writes an empty namespace where Python's writes a word."""
    if after_thread.startswith((ROOT, ":")) or not after_thread:
        return not after_thread.startswith(":")
    return "run_id" in document or "blob" in document or not after_thread.count(":") or "value" not in document


def _shallow_thread(name: str) -> str | None:
    pieces = name_parts(name, REDIS_KINDS)
    return pieces.rest.removesuffix(":") if pieces and pieces.kind == "checkpoint" and pieces.rest[-1:] == ":" else None


def _list_owner(raw: RedisValue, wanted: str | None) -> KeyOwner | None:
    pieces = name_parts(raw.name, ("write_keys_zset", "write_registry"))
    if pieces is None or (pieces.kind == "write_registry" and not pieces.rest.endswith(_END)):
        return None
    thread = thread_of(pieces.rest.removesuffix(_END), ROOT, wanted)
    if thread is None:
        return None
    # The name has no prefix of the user's own, but the writes that it lists have.
    listed = pieces_of(next(iter(raw.scores), ""), thread)
    return KeyOwner(STORE, thread, (listed or pieces).prefix, "write list")


def _pointer_owner(raw: RedisValue, wanted: str | None) -> KeyOwner | None:
    head, mark, rest = raw.name.partition(f"{_LATEST}:")
    named = name_parts(raw.name, ("checkpoint_latest",))
    if raw.kind != "string" or not mark or not (named or to_name(raw.data).startswith(f"{head}:{rest}:")):
        return None
    thread = thread_of(named.rest if named else rest, ROOT, wanted)
    prefix = named.prefix if named else head[: head.rfind(":") + 1]
    return KeyOwner(STORE, thread, prefix, "pointer") if thread else None


def _damaged_owner(raw: RedisValue, wanted: str | None) -> KeyOwner | None:
    """Claim what cannot be read by its name."""
    pieces = name_parts(raw.name, ("checkpoint", "checkpoint_write"))
    if pieces is None or raw.kind not in DOCUMENT_KINDS:
        return None
    thread = thread_of(pieces.rest, ROOT, wanted)
    if thread is None and pieces.kind == "checkpoint" and pieces.rest[-1:] == ":":
        thread = pieces.rest[:-1] if wanted in (None, pieces.rest[:-1]) else None
    return KeyOwner(STORE, thread, pieces.prefix, _PARTS[pieces.kind]) if thread else None


def _kind(name: str, stored: SessionValues) -> str:
    """Return the kind of one of the session's keys: checkpoint, shallow, write, pointer, write list, registry."""
    pieces = _pieces(name, stored.owner.session) or Pieces("", "", "")
    rest, raw = _after(pieces, stored.owner.session), stored.get(name)
    if pieces.kind == "write_keys_zset":
        return "write list"
    if pieces.kind == "write_registry":
        return "registry"
    if pieces.kind.endswith(_LATEST) and (raw is None or raw.kind == "string"):
        return "pointer"
    document = peek(raw) if raw else {}
    if (
        _is_write(document)
        or pieces.kind == "checkpoint_write"
        or (rest.count(":") >= 3 and "checkpoint" not in document)
    ):
        return "write"
    return "shallow" if not rest or rest == document.get("checkpoint_ns") else "checkpoint"


def _by_kind(stored: SessionValues) -> dict[str, dict[str, RedisValue | None]]:
    found: dict[str, dict[str, RedisValue | None]] = {}
    for name, raw in stored.keys.items():
        found.setdefault(_kind(name, stored), {})[name] = raw
    return found


def _exists(keys: Mapping[str, RedisValue | None] | None) -> bool:
    return any(raw is not None for raw in (keys or {}).values())


def is_shallow(stored: SessionValues) -> bool:
    """Return whether the shallow saver wrote the thread: it has one checkpoint without an id, or a registry."""
    found = _by_kind(stored)
    if _exists(found.get("checkpoint")) or _exists(found.get("pointer")):
        return False
    return _exists(found.get("shallow")) or _exists(found.get("registry"))


def _head(stored: SessionValues) -> str:
    """Return the word for checkpoints with its prefix, as the thread's own keys have it."""
    for name, raw in stored.keys.items():
        kind = _kind(name, stored) if raw else ""
        pieces = pieces_of(name, stored.owner.session)
        if pieces and kind in ("checkpoint", "shallow", "pointer"):
            return pieces.prefix + (pieces.kind.removesuffix(_LATEST) if kind == "pointer" else pieces.kind)
    return f"{stored.owner.prefix}checkpoint"


def _pointer_name(stored: SessionValues) -> str:
    return f"{_head(stored)}{_LATEST}:{stored.owner.session}:{ROOT}"


def _registry_name(stored: SessionValues) -> str:
    found = (name for name in stored.keys if name.endswith(_END))
    return next(found, f"{stored.owner.prefix}write_registry:{stored.owner.session}:{ROOT}{_END}")


def siblings(stored: SessionValues) -> Iterable[KeyRequest]:
    """Return the keys of the saver, or of both while only writes are known, and whatever pointers and lists name."""
    found = _by_kind(stored)
    full = _exists(found.get("checkpoint")) or _exists(found.get("pointer")) or _exists(found.get("write list"))
    if full or not is_shallow(stored):
        yield KeyRequest(_pointer_name(stored), "pointer", kind="string")
    if not full:
        yield KeyRequest(f"{_head(stored)}:{stored.owner.session}:", "checkpoint")
        yield KeyRequest(_registry_name(stored), "write list", kind="zset")
    lists = {**found.get("write list", {}), **found.get("registry", {})}
    for raw in lists.values():
        yield from (KeyRequest(member, "write") for member in (raw.scores if raw else ()))
    yield from (KeyRequest(to_name(raw.data), "checkpoint") for raw in found.get("pointer", {}).values() if raw)
    for name in found.get("write", {}):
        pieces = pieces_of(name, stored.owner.session)
        if pieces and not is_shallow(stored):
            yield KeyRequest(_write_list(stored, pieces.rest.rsplit(":", 2)[0], lists), "write list", kind="zset")
    for name, raw in found.get("checkpoint", {}).items():
        pieces = pieces_of(name, stored.owner.session)
        if raw and pieces and peek(raw).get("has_writes") is True:
            yield KeyRequest(_write_list(stored, pieces.rest, lists), "write list", kind="zset")


def _write_list(stored: SessionValues, rest: str, lists: Mapping[str, RedisValue | None]) -> str:
    """Return the name of a checkpoint's list of writes: it has a prefix only if the lists that were read have it."""
    own = next((name for name in lists if name.endswith(f"write_keys_zset:{rest}")), None)
    heads = {name.partition("write_keys_zset:")[0] for name, raw in lists.items() if raw}
    return own or f"{next(iter(heads), stored.owner.prefix)}write_keys_zset:{rest}"


def decode(stored: SessionValues) -> Iterator[Item]:
    """Yield the messages of the latest checkpoint, and what is missing around it."""
    yield from (_decode_shallow if is_shallow(stored) else _decode_full)(stored)


def _decode_full(stored: SessionValues) -> Iterator[Item]:
    found = _by_kind(stored)
    documents, problems = checkpoints(found.get("checkpoint", {}).values())
    yield from problems
    yield from _pointer_problems(stored, documents)
    pointed = _pointed(stored)
    latest = pointed if pointed in documents else _newest(documents)
    if latest:
        if problems and latest != pointed:
            yield Note("the latest checkpoint cannot be read; this is the newest state that can be")
        yield from state_items(documents[latest], latest)
    yield from missing_parents(
        stored, {name: str(each.get("parent_checkpoint_id") or "") for name, each in documents.items()}
    )
    # The shallow saver keeps no such lists; if it wrote to the thread too, only stored checkpoints need one.
    both = _exists(found.get("shallow")) or _exists(found.get("registry"))
    for name, raw in found.get("write list", {}).items():
        rest = name.partition("write_keys_zset:")[2]
        if raw is None and not (both and not any(key.endswith(rest) for key in found.get("checkpoint", {}))):
            yield Problem("dangling", name, "a checkpoint has writes, and the list of them no longer exists")
    yield from write_problems(found.get("write", {}))


def _pointed(stored: SessionValues) -> str:
    pointer = stored.get(_pointer_name(stored))
    return to_name(pointer.data) if pointer else ""


def _newest(documents: dict[str, dict[str, Any]]) -> str | None:
    roots = [name for name, document in documents.items() if document.get("checkpoint_ns") in (ROOT, "", None)]
    return roots[-1] if roots else next(reversed(documents), None)


def _pointer_problems(stored: SessionValues, documents: dict[str, dict[str, Any]]) -> Iterator[Problem]:
    name = _pointer_name(stored)
    pointer, newest = stored.get(name), _newest(documents)
    option = "KEEPTTL" if pointer else "EX <the checkpoints' TTL in seconds>"
    repair = f"SET {quoted(name)} {quoted(newest or '')} {option}"
    if pointer is None:
        reason = "the pointer to the latest checkpoint no longer exists: the library shows an empty thread"
    elif stored.get(to_name(pointer.data)) is None:
        reason = "the pointer names a checkpoint that does not exist: the library shows an empty thread"
    else:
        return
    if newest:
        reason += f"; recoverable: the checkpoints are still there ({len(documents)} of them)"
    yield Problem("dangling", name, reason, repair if newest else "")


def _decode_shallow(stored: SessionValues) -> Iterator[Item]:
    found = _by_kind(stored)
    name = f"{_head(stored)}:{stored.owner.session}:"
    raw = stored.get(name)
    if raw is None:
        yield Problem("dangling", name, "the writes exist and the checkpoint does not: the thread is empty")
    else:
        documents, problems = checkpoints([raw])
        yield from problems
        for document in documents.values():
            yield from state_items(document, name)
    registry, writes = _registry_name(stored), found.get("write", {})
    if stored.get(registry) is None and writes:
        reason = f"the list of the thread's {len(writes)} pending writes no longer exists; recoverable: the writes do"
        repair = f"ZADD {quoted(registry)} " + " ".join(f"{name.rpartition(':')[2]} {quoted(name)}" for name in writes)
        yield Problem("dangling", registry, reason, repair)
    yield from write_problems(found.get("write", {}))


def _name_of(stored: SessionValues) -> str:
    return SHALLOW if is_shallow(stored) else STORE


FORMAT = Format(store=STORE, kinds=(*DOCUMENT_KINDS, "zset"), recognise=recognise, siblings=siblings, decode=decode,
                names=names, scanned=True, name_of=_name_of)  # fmt: skip
