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

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from memkit.formats.model import Format, Item, KeyOwner, Note, Problem, SessionValues, quoted, text_or_none
from memkit.formats.parsing.documents import peek
from memkit.formats.parsing.langgraph_common import (
    REDIS_KINDS,
    REDIS_PARTS,
    ROOT,
    Pieces,
    blobs,
    checkpoints,
    is_javascript,
    lists_of_javascript,
    missing_parents,
    name_parts,
    pieces_of,
    state_items,
    thread_of,
    thread_of_named,
    write_problems,
)
from memkit.readonly.values import DOCUMENT_KINDS, KeyRequest, RedisValue, to_name

STORE, SHALLOW = "langgraph-redis", "langgraph-redis-shallow"
_END = ":shallow"
_LATEST = "_latest"
_FIELDS = {
    "write": frozenset({"thread_id", "checkpoint_id", "task_id", "channel"}),
    "blob": frozenset({"thread_id", "channel", "version", "blob"}),
    "checkpoint": frozenset({"checkpoint"}),
}
_SINCE = ("checkpoint_ts", "run_id")
"""The fields of checkpoints since these versions, 0.1 of RedisSaver and 0.3 of ShallowRedisSaver."""
MOST_NAME_BYTES = 10_000
"""A longer value of a pointer is not a key's name: the expressions for names take 0.1 s for 9 MB (measured)."""


def recognise(raw: RedisValue, wanted: str | None) -> KeyOwner | None:
    """Claim documents by their fields, pointers by what they point to, lists of writes by their names and entries."""
    if raw.kind == "zset":
        return _list_owner(raw, wanted)
    document = peek(raw)
    if not document:
        pointer, pieces = _pointer_owner(raw, wanted), name_parts(raw.name, ("checkpoint", "checkpoint_write"))
        thread = thread_of(pieces.rest, ROOT, wanted) or _shallow_thread(pieces) if pieces else None
        if pointer or not pieces or not thread or wanted not in (None, thread) or raw.kind not in DOCUMENT_KINDS:
            return pointer
        # A damaged document is known by its name.
        return KeyOwner(STORE, thread, pieces.prefix, REDIS_PARTS[pieces.kind])
    thread = text_or_none(document.get("thread_id")) or wanted or _shallow_thread(name_parts(raw.name, REDIS_KINDS))
    kind = next((kind for kind, fields in _FIELDS.items() if document.keys() >= fields), None)
    if kind is None or thread is None or wanted not in (None, thread) or is_javascript(document):
        return None
    pieces = _pieces(raw.name, thread)
    if pieces is None or _after(pieces, thread).startswith(":"):  # JavaScript's saver has no word for this namespace
        return None
    return KeyOwner(STORE, thread, pieces.prefix, kind)


def _pieces(name: str, thread: str) -> Pieces | None:
    """Return the pieces of a key's name; if it has another thread's name, the document was copied or changed."""
    return pieces_of(name, thread) or (name_parts(name, REDIS_KINDS) if f":{ROOT}:" in name else None)


def _after(pieces: Pieces, thread: str) -> str:
    """Return what follows the thread: the namespace, and the ids of the checkpoint and the write."""
    if pieces.rest.startswith(f"{thread}:"):
        return pieces.rest[len(thread) + 1 :]
    return ROOT + pieces.rest.partition(f":{ROOT}")[2]


def _shallow_thread(pieces: Pieces | None) -> str | None:
    return pieces.rest[:-1] if pieces and pieces.kind == "checkpoint" and pieces.rest[-1:] == ":" else None


def _list_owner(raw: RedisValue, wanted: str | None) -> KeyOwner | None:
    pieces = name_parts(raw.name, ("write_keys_zset", "write_registry"))
    if pieces is None or (pieces.kind == "write_registry" and not pieces.rest.endswith(_END)):
        return None
    rest, first = pieces.rest.removesuffix(_END), next(iter(raw.scores), "")
    if rest == pieces.rest and lists_of_javascript(raw, rest):
        return None
    thread = thread_of(rest, ROOT, wanted)
    if thread is None and (f":{ROOT}:" in first or rest != pieces.rest):
        thread = thread_of(rest, "", wanted)  # before 0.3 the lists had no word for this namespace
    thread = thread or thread_of_named(rest, wanted)
    if thread is None:
        return None
    # The name has no prefix of the user's own, but the writes that it lists have.
    listed = pieces_of(first, thread)
    return KeyOwner(STORE, thread, (listed or pieces).prefix, "write list")


def _pointer_owner(raw: RedisValue, wanted: str | None) -> KeyOwner | None:
    head, mark, rest = raw.name.partition(f"{_LATEST}:")
    named, pointed = name_parts(raw.name, ("checkpoint_latest",)), _pointed(raw)
    points = pointed.startswith(f"{head}:{rest}:")
    if raw.kind != "string" or not mark or not (named or points):
        return None
    rest = named.rest if named else rest
    thread = thread_of(rest, ROOT, wanted) or (thread_of_named(rest, wanted) if f":{rest}:" in pointed else None)
    if thread is None:
        return None
    # Before 0.5 the name had no prefix of the user's own, but the checkpoint that it names has.
    pieces = pieces_of(pointed, thread) or named
    return KeyOwner(STORE, thread, pieces.prefix if pieces else head[: head.rfind(":") + 1], "pointer")


def _pointed(raw: RedisValue | None) -> str:
    """Return the name that a pointer holds; more bytes than a name has are none."""
    return to_name(raw.data) if raw and len(raw.data) <= MOST_NAME_BYTES else ""


def _kind(name: str, stored: SessionValues, document: dict[str, Any]) -> str:
    """Return the kind of one of the session's keys: checkpoint, shallow, write, blob, pointer, write list, registry."""
    pieces = _pieces(name, stored.owner.session) or Pieces("", "", "")
    rest = _after(pieces, stored.owner.session)
    if pieces.kind in ("write_keys_zset", "write_registry"):
        return "registry" if name.endswith(_END) else "write list"
    if pieces.kind.endswith(_LATEST) and not document:
        return "pointer"
    if pieces.kind == "checkpoint_blob":
        return "blob"
    if (
        document.keys() >= _FIELDS["write"]
        or pieces.kind == "checkpoint_write"
        or (rest.count(":") >= 3 and "checkpoint" not in document)
    ):
        return "write"
    return "shallow" if not rest or rest == document.get("checkpoint_ns") else "checkpoint"


class _Thread:
    """The keys of one thread by their kind, and the names that those may have which each thread has.

    ``indexed``: whether its pointer and its lists of writes must exist: RedisSaver has none before 0.1, and before 0.3
    ShallowRedisSaver deletes its list at each step.
    """

    def __init__(self, stored: SessionValues) -> None:
        self.stored, owner = stored, stored.owner
        self.kinds: defaultdict[str, dict[str, RedisValue | None]] = defaultdict(dict)
        self.documents = {name: peek(raw) if raw else {} for name, raw in stored.keys.items()}
        for name, raw in stored.keys.items():
            self.kinds[_kind(name, stored, self.documents[name])][name] = raw
        self.pointed = [name for raw in self.kinds["pointer"].values() if (name := _pointed(raw))]
        kept = [name for kind in ("checkpoint", "shallow") for name, raw in self.kinds[kind].items() if raw]
        heads = [f"{pieces.prefix}{pieces.kind}" for name in (*kept, *self.pointed)
                 if (pieces := pieces_of(name, owner.session))]  # fmt: skip
        lists = [raw for kind in ("write list", "registry") for raw in self.kinds[kind].values() if raw]
        writes = [*self.kinds["write"], *(name for raw in lists for name in raw.scores)]
        words = {pieces.kind for name in writes if (pieces := pieces_of(name, owner.session))}
        self.named = bool(heads) or words <= {"checkpoint_write"}
        """Whether the word for checkpoints is known: that for writes does not show it."""
        head, session = [*heads, f"{owner.prefix}checkpoint"][0], owner.session
        self.shallow = not self.exists("checkpoint", "pointer") and self.exists("shallow", "registry")
        documents = [self.documents[name] for name in kept]
        self.indexed = not any(documents) or any(_SINCE[self.shallow] in each for each in documents)
        self.checkpoint = f"{head}:{session}:"
        self.pointers = self._named_so(f"{head}{_LATEST}:{session}:{ROOT}", f"checkpoint{_LATEST}:{session}:{ROOT}")
        own, without = f"write_registry:{session}:{ROOT}{_END}", f"write_keys_zset:{session}:{ROOT}{_END}"
        self.registries = self._named_so(f"{owner.prefix}{own}", own, f"{owner.prefix}{without}", without)

    def _named_so(self, *names: str) -> list[str]:
        """Return the first of these names that exists, else all; before 0.3 some had no word for the namespace."""
        names = (*names, *(name.replace(f":{ROOT}", ":", 1) for name in names if _LATEST not in name))
        there = [name for name in names if self.stored.get(name)]
        return there[:1] or list(dict.fromkeys(names))

    def exists(self, *kinds: str) -> bool:
        return any(raw is not None for kind in kinds for raw in self.kinds[kind].values())

    def lost(self, names: Iterable[str]) -> bool:
        """Return whether a key was looked for under all names that it may have, and does not exist."""
        return all(name in self.stored.keys and self.stored.get(name) is None for name in names)

    def write_lists(self) -> Iterator[list[str]]:
        """Yield the names that the list of each checkpoint's writes may have."""
        session, prefix = self.stored.owner.session, self.stored.owner.prefix
        wrote = [name for name in self.kinds["checkpoint"] if self.documents[name].get("has_writes") is True]
        writes = [name.rsplit(":", 2)[0] for name in (() if self.shallow else self.kinds["write"])]
        found = (pieces_of(name, session) for name in (*writes, *wrote))
        for rest in dict.fromkeys(pieces.rest for pieces in found if pieces) if self.indexed else ():
            yield self._named_so(f"{prefix}write_keys_zset:{rest}", f"write_keys_zset:{rest}")


def siblings(stored: SessionValues) -> Iterable[KeyRequest]:
    """Return the keys of the saver, or of both while only writes are known, and whatever pointers and lists name."""
    thread = _Thread(stored)
    full = thread.exists("checkpoint", "pointer", "write list")
    if (full or not thread.shallow) and thread.indexed and thread.named:
        yield from (KeyRequest(name, "pointer", kind="string") for name in thread.pointers)
    if not full:
        yield from (KeyRequest(name, "write list", kind="zset") for name in thread.registries)
        yield from [KeyRequest(thread.checkpoint, "checkpoint")] if thread.named else ()
    for raw in (*thread.kinds["write list"].values(), *thread.kinds["registry"].values()):
        yield from (KeyRequest(member, "write") for member in (raw.scores if raw else ()))
    yield from (KeyRequest(name, "checkpoint") for name in thread.pointed)
    # A damaged document does not show its thread, but its child names it.
    parents = ((name, thread.documents[name].get("parent_checkpoint_id")) for name in thread.kinds["checkpoint"])
    yield from (KeyRequest(f"{name.rpartition(':')[0]}:{uid}", "checkpoint") for name, uid in parents if uid)
    for names in thread.write_lists():
        yield from (KeyRequest(name, "write list", kind="zset") for name in names)
    for name in () if thread.indexed else thread.kinds["checkpoint"]:
        yield from (KeyRequest(blob, "blob") for blob in blobs(stored, name, thread.documents[name]).values())


def decode(stored: SessionValues) -> Iterator[Item]:
    """Yield the messages of the latest checkpoint, and what is missing around it."""
    thread = _Thread(stored)
    yield from _decode_shallow(thread) if thread.shallow else _decode_full(thread)
    # A shallow saver's list goes on naming the writes that led to checkpoints which are replaced.
    kept = [str(uid) for name in thread.kinds["shallow"] if (uid := thread.documents[name].get("checkpoint_id"))]
    writes = {
        name: raw
        for name, raw in thread.kinds["write"].items()
        if raw or not thread.shallow or not kept or any(uid in name for uid in kept)
    }
    yield from write_problems(writes)


def _decode_full(thread: _Thread) -> Iterator[Item]:
    stored, kept = thread.stored, thread.kinds["checkpoint"]
    documents, problems = checkpoints(kept.values())
    yield from problems
    roots = [name for name, document in documents.items() if document.get("checkpoint_ns") in (ROOT, "", None)]
    newest = next(reversed(roots or list(documents)), "")
    yield from _pointer_problems(thread, newest, len(documents))
    pointer = stored.get(thread.pointers[0])
    pointed = _pointed(pointer)
    if latest := pointed if pointed in documents else newest:
        if problems and latest != pointed:
            yield Note("the latest checkpoint cannot be read; this is the newest state that can be")
        names = {} if thread.indexed else blobs(stored, latest, documents[latest])
        yield from state_items(documents[latest], latest, stored, names)
    yield from missing_parents(stored, {name: each.get("parent_checkpoint_id") for name, each in documents.items()})
    # The shallow saver keeps no such lists; if it wrote to the thread too, only stored checkpoints need one.
    both = thread.exists("shallow", "registry")
    for names_of_list in thread.write_lists():
        rest = names_of_list[0].partition("write_keys_zset:")[2]
        if thread.lost(names_of_list) and not (both and not any(key.endswith(rest) for key in kept)):
            reason = "a checkpoint has writes, and the list of them no longer exists"
            yield Problem("dangling", names_of_list[0], reason)


def _pointer_problems(thread: _Thread, newest: str, count: int) -> Iterator[Problem]:
    name = thread.pointers[0]
    pointer = thread.stored.get(name)
    option = "KEEPTTL" if pointer else "EX <the checkpoints' TTL in seconds>"
    if thread.lost(thread.pointers):
        reason = "the pointer to the latest checkpoint no longer exists: the library shows an empty thread"
    elif pointer and thread.stored.get(_pointed(pointer)) is None:
        reason = "the pointer names a checkpoint that does not exist: the library shows an empty thread"
    else:
        return
    if newest:
        reason += f"; recoverable: the checkpoints exist ({count} of them)"
    yield Problem("dangling", name, reason, f"SET {quoted(name)} {quoted(newest)} {option}" if newest else "")


def _decode_shallow(thread: _Thread) -> Iterator[Item]:
    raw, writes = thread.stored.get(thread.checkpoint), thread.kinds["write"]
    if raw is None and thread.named:
        reason = "the writes exist and the checkpoint does not: the thread is empty"
        yield Problem("dangling", thread.checkpoint, reason)
    documents, problems = checkpoints([raw])
    yield from problems
    for name, document in documents.items():
        yield from state_items(document, name, thread.stored)
    if thread.lost(thread.registries) and thread.indexed and writes:
        registry = thread.registries[0]
        reason = f"the list of {len(writes)} pending writes no longer exists; recoverable: the writes still exist"
        members = " ".join(f"{name.rpartition(':')[2]} {quoted(name)}" for name in writes)
        yield Problem("dangling", registry, reason, f"ZADD {quoted(registry)} {members}")


FORMAT = Format(store=STORE, kinds=(*DOCUMENT_KINDS, "zset"), recognise=recognise, siblings=siblings, decode=decode,
                names=("checkpoint_latest:{id}:__empty__", "checkpoint:{id}:", "write_registry:{id}:__empty__:shallow"),
                scanned=True, name_of=lambda stored: SHALLOW if _Thread(stored).shallow else STORE)  # fmt: skip
