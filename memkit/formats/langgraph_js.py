"""@langchain/langgraph-checkpoint-redis for JavaScript: RedisSaver and ShallowRedisSaver.

RedisSaver: ``checkpoint:<thread>:<ns>:<id>``, ``checkpoint_blob:<thread>:<ns>:<channel>:<version>`` (the messages are
there), ``checkpoint_write:…`` (all JSON), ``write_keys_zset:<thread>:<ns>:<id>``. ``ns`` is empty for the graph itself,
and there is no pointer to the latest checkpoint. ShallowRedisSaver: one ``checkpoint:<thread>:<ns>:shallow`` with the
messages inside; it deletes its old writes. The TTL is given in minutes.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator

from memkit.formats.model import Format, Item, KeyOwner, Note, Problem, SessionValues, text_or_none
from memkit.formats.parsing.documents import peek, read
from memkit.formats.parsing.langgraph_common import (
    REDIS_KINDS,
    REDIS_PARTS,
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
from memkit.readonly.values import DOCUMENT_KINDS, KeyRequest, RedisValue

STORE, SHALLOW = "langgraph-js", "langgraph-js-shallow"
_END = ":shallow"
_KINDS = REDIS_PARTS.keys() - {"checkpoint_latest", "write_registry"}
"""The kinds that this saver writes: those two are Python's alone."""


def recognise(raw: RedisValue, wanted: str | None) -> KeyOwner | None:
    """Claim a thread's keys by their documents; Python's saver writes a word where this one has no namespace."""
    pieces = name_parts(raw.name, REDIS_KINDS)
    if pieces is None or pieces.kind not in _KINDS or (pieces.kind == "write_keys_zset") != (raw.kind == "zset"):
        return None
    document = peek(raw)
    thread = text_or_none(document.get("thread_id")) or (None if document else thread_of(pieces.rest, "", wanted))
    own_list = raw.kind == "zset" and lists_of_javascript(raw, pieces.rest)
    thread = thread or (thread_of_named(pieces.rest, wanted) if own_list else None)
    if thread is None or wanted not in (None, thread) or not pieces.rest.startswith(f"{thread}:"):
        return None
    after = pieces.rest[len(thread) + 1 :]
    own = is_javascript(document) or after[:1] == ":" or after.endswith(_END) or pieces.kind == "checkpoint_blob"
    return KeyOwner(STORE, thread, pieces.prefix, REDIS_PARTS[pieces.kind]) if own or own_list else None


def _by_kind(stored: SessionValues) -> defaultdict[str, dict[str, RedisValue | None]]:
    found: defaultdict[str, dict[str, RedisValue | None]] = defaultdict(dict)
    for name, raw in stored.keys.items():
        if pieces := pieces_of(name, stored.owner.session):
            found["shallow" if name.endswith(_END) else pieces.kind][name] = raw
    return found


def siblings(stored: SessionValues) -> Iterable[KeyRequest]:
    """Return the blobs that checkpoints name, and the writes that lists name."""
    found = _by_kind(stored)
    for name, raw in found["checkpoint"].items():
        yield from (KeyRequest(blob, "blob") for blob in blobs(stored, name, peek(raw) if raw else {}).values())
    for raw in found["write_keys_zset"].values():
        yield from (KeyRequest(member, "write") for member in (raw.scores if raw else ()))


def decode(stored: SessionValues) -> Iterator[Item]:
    """Yield the messages of the latest checkpoint, and what is missing around it."""
    yield Note("the library searches with KEYS, which blocks the server for all clients")
    found = _by_kind(stored)
    shallow, problems = checkpoints(found["shallow"].values())
    full, more = checkpoints(found["checkpoint"].values())
    yield from [*problems, *more]
    documents = full or shallow
    roots = [name for name in documents if f":{stored.owner.session}::" in name]  # the others are of subgraphs
    if name := next(reversed(roots or list(documents)), ""):
        names = blobs(stored, name, documents[name]) if full else {}
        yield from state_items(documents[name], name, stored, names)
        lost = names.get("messages", "")  # other channels are written only if they hold a value
        if lost in stored.keys and stored.get(lost) is None:
            yield Problem("dangling", lost, "the latest checkpoint refers to this blob, which no longer exists")
    yield from missing_parents(stored, {key: each.get("parent_checkpoint_id") for key, each in full.items()})
    for raw in filter(None, found["checkpoint_blob"].values()):
        yield from read(raw)[1]
    yield from write_problems(found["checkpoint_write"])


def _name_of(stored: SessionValues) -> str:
    found = _by_kind(stored)
    return SHALLOW if any(found["shallow"].values()) and not any(found["checkpoint"].values()) else STORE


FORMAT = Format(store=STORE, kinds=(*DOCUMENT_KINDS, "zset"), recognise=recognise, siblings=siblings, decode=decode,
                names=("checkpoint:{id}::shallow",), scanned=True, name_of=_name_of)  # fmt: skip
