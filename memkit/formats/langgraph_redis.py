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

from collections import defaultdict
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


def recognise(raw: RedisValue, wanted: str | None) -> KeyOwner | None:
    """Claim checkpoints and writes by their fields, pointers by what they point to, lists of writes by their names."""
    if raw.kind == "zset":
        return _list_owner(raw, wanted)
    document = peek(raw)
    if not document:
        return _pointer_owner(raw, wanted) or _damaged_owner(raw, wanted)
    thread = text_or_none(document.get("thread_id")) or wanted or _shallow_thread(name_parts(raw.name, REDIS_KINDS))
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


def _shallow_thread(pieces: Pieces | None) -> str | None:
    return pieces.rest[:-1] if pieces and pieces.kind == "checkpoint" and pieces.rest[-1:] == ":" else None


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
    thread = thread_of(pieces.rest, ROOT, wanted) or _shallow_thread(pieces)
    return KeyOwner(STORE, thread, pieces.prefix, _PARTS[pieces.kind]) if thread and wanted in (None, thread) else None


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


class _Thread:
    """The keys of one thread by their kind, and the names of those that each thread has."""

    def __init__(self, stored: SessionValues) -> None:
        self.stored, owner = stored, stored.owner
        self.kinds: defaultdict[str, dict[str, RedisValue | None]] = defaultdict(dict)
        heads = [f"{owner.prefix}checkpoint"]
        for name, raw in stored.keys.items():
            kind = _kind(name, stored)
            self.kinds[kind][name] = raw
            pieces = pieces_of(name, owner.session)
            if raw and pieces and kind in ("checkpoint", "shallow", "pointer"):
                heads.insert(-1, pieces.prefix + pieces.kind.removesuffix(_LATEST if kind == "pointer" else ""))
        self.shallow = not self.exists("checkpoint", "pointer") and self.exists("shallow", "registry")
        self.checkpoint = f"{heads[0]}:{owner.session}:"
        self.pointer = f"{heads[0]}{_LATEST}:{owner.session}:{ROOT}"
        registry = f"{owner.prefix}write_registry:{owner.session}:{ROOT}{_END}"
        self.registry = next((name for name in stored.keys if name.endswith(_END)), registry)

    def exists(self, *kinds: str) -> bool:
        """Return whether the thread has a key of one of these kinds."""
        return any(raw is not None for kind in kinds for raw in self.kinds[kind].values())

    def write_list(self, rest: str) -> KeyRequest:
        """Return the list of a checkpoint's writes: it has a prefix only if the lists that were read have it."""
        lists = {**self.kinds["write list"], **self.kinds["registry"]}
        own = next((name for name in lists if name.endswith(f"write_keys_zset:{rest}")), None)
        heads = {name.partition("write_keys_zset:")[0] for name, raw in lists.items() if raw}
        default = f"{next(iter(heads), self.stored.owner.prefix)}write_keys_zset:{rest}"
        return KeyRequest(own or default, "write list", kind="zset")


def siblings(stored: SessionValues) -> Iterable[KeyRequest]:
    """Return the keys of the saver, or of both while only writes are known, and whatever pointers and lists name."""
    thread, session = _Thread(stored), stored.owner.session
    full = thread.exists("checkpoint", "pointer", "write list")
    if full or not thread.shallow:
        yield KeyRequest(thread.pointer, "pointer", kind="string")
    if not full:
        yield KeyRequest(thread.checkpoint, "checkpoint")
        yield KeyRequest(thread.registry, "write list", kind="zset")
    for raw in (*thread.kinds["write list"].values(), *thread.kinds["registry"].values()):
        yield from (KeyRequest(member, "write") for member in (raw.scores if raw else ()))
    yield from (KeyRequest(to_name(raw.data), "checkpoint") for raw in thread.kinds["pointer"].values() if raw)
    for name in () if thread.shallow else thread.kinds["write"]:
        if pieces := pieces_of(name, session):
            yield thread.write_list(pieces.rest.rsplit(":", 2)[0])
    for name, raw in thread.kinds["checkpoint"].items():
        pieces = pieces_of(name, session)
        if raw and pieces and peek(raw).get("has_writes") is True:
            yield thread.write_list(pieces.rest)


def decode(stored: SessionValues) -> Iterator[Item]:
    """Yield the messages of the latest checkpoint, and what is missing around it."""
    thread = _Thread(stored)
    yield from _decode_shallow(thread) if thread.shallow else _decode_full(thread)
    yield from write_problems(thread.kinds["write"])


def _decode_full(thread: _Thread) -> Iterator[Item]:
    stored, kept = thread.stored, thread.kinds["checkpoint"]
    documents, problems = checkpoints(kept.values())
    yield from problems
    roots = [name for name, document in documents.items() if document.get("checkpoint_ns") in (ROOT, "", None)]
    newest = next(reversed(roots or list(documents)), "")
    yield from _pointer_problems(thread, newest, len(documents))
    pointer = stored.get(thread.pointer)
    pointed = to_name(pointer.data) if pointer else ""
    if latest := pointed if pointed in documents else newest:
        if problems and latest != pointed:
            yield Note("the latest checkpoint cannot be read; this is the newest state that can be")
        yield from state_items(documents[latest], latest)
    yield from missing_parents(
        stored, {name: str(each.get("parent_checkpoint_id") or "") for name, each in documents.items()}
    )
    # The shallow saver keeps no such lists; if it wrote to the thread too, only stored checkpoints need one.
    both = thread.exists("shallow", "registry")
    for name, raw in thread.kinds["write list"].items():
        rest = name.partition("write_keys_zset:")[2]
        if raw is None and not (both and not any(key.endswith(rest) for key in kept)):
            yield Problem("dangling", name, "a checkpoint has writes, and the list of them no longer exists")


def _pointer_problems(thread: _Thread, newest: str, count: int) -> Iterator[Problem]:
    pointer = thread.stored.get(thread.pointer)
    option = "KEEPTTL" if pointer else "EX <the checkpoints' TTL in seconds>"
    if pointer is None:
        reason = "the pointer to the latest checkpoint no longer exists: the library shows an empty thread"
    elif thread.stored.get(to_name(pointer.data)) is None:
        reason = "the pointer names a checkpoint that does not exist: the library shows an empty thread"
    else:
        return
    if newest:
        reason += f"; recoverable: the checkpoints are still there ({count} of them)"
    repair = f"SET {quoted(thread.pointer)} {quoted(newest)} {option}" if newest else ""
    yield Problem("dangling", thread.pointer, reason, repair)


def _decode_shallow(thread: _Thread) -> Iterator[Item]:
    raw, writes = thread.stored.get(thread.checkpoint), thread.kinds["write"]
    if raw is None:
        reason = "the writes exist and the checkpoint does not: the thread is empty"
        yield Problem("dangling", thread.checkpoint, reason)
    documents, problems = checkpoints([raw])
    yield from problems
    for name, document in documents.items():
        yield from state_items(document, name)
    if thread.stored.get(thread.registry) is None and writes:
        reason = f"the list of the thread's {len(writes)} pending writes no longer exists; recoverable: the writes do"
        members = " ".join(f"{name.rpartition(':')[2]} {quoted(name)}" for name in writes)
        yield Problem("dangling", thread.registry, reason, f"ZADD {quoted(thread.registry)} {members}")


def _name_of(stored: SessionValues) -> str:
    return SHALLOW if _Thread(stored).shallow else STORE


FORMAT = Format(store=STORE, kinds=(*DOCUMENT_KINDS, "zset"), recognise=recognise, siblings=siblings, decode=decode,
                names=("checkpoint_latest:{id}:__empty__", "checkpoint:{id}:", "write_registry:{id}:__empty__:shallow"),
                scanned=True, name_of=_name_of)  # fmt: skip
