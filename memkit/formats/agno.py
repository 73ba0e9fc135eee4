"""agno's RedisDb: a STRING for the session, a STRING a run, a ZSET that orders the runs, and index SETs.

Keys are ``<prefix>:sessions:<id>``, ``<prefix>:runs:<uuid>``, ``<prefix>:runs:by_session:<id>`` and
``<prefix>:<table>:index:<field>:<value>``. Each write sets the TTL of the key written: a run's is never renewed, so the
oldest runs expire first, and the index sets never get one.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from memkit.formats.model import (
    Format,
    Item,
    KeyOwner,
    Problem,
    SessionValues,
    Turn,
    a_dict,
    a_list,
    is_uuid,
    quoted,
    seconds,
    text_or_none,
)
from memkit.formats.parsing.any_message import read_any
from memkit.formats.parsing.documents import messages, misshapen, peek, read, read_with, salvage
from memkit.formats.parsing.element_shapes import kind_of, missing, missing_content
from memkit.readonly.values import KeyRequest, RedisValue

STORE = "agno"
PREFIX = "agno:"
ORDER = "runs:by_session:"
RUN_INDEX = ("agent_id", "team_id", "workflow_id", "run_type", "session_id", "status", "user_id")
SESSION_FIELDS = frozenset({"session_id", "session_type", "session_data"})
SESSION_INDEX = ("agent_id", "team_id", "workflow_id", "session_type", "user_id")


def recognise(raw: RedisValue, wanted: str | None) -> KeyOwner | None:
    """Claim runs and sessions by their fields, and the order and the session's own index by the default names."""
    if raw.kind != "string":
        mark = {"zset": ORDER, "set": "runs:index:session_id:"}.get(raw.kind)
        prefix, found, session = raw.name.partition(mark) if mark else ("", "", "")
        part = "order" if raw.kind == "zset" else "index"
        return KeyOwner(STORE, session, prefix, part) if found and wanted in (None, session) else None
    document = peek(raw)
    if "run_data" in document and isinstance(document.get("session_id"), str):
        return KeyOwner(STORE, document["session_id"], raw.name.rpartition("runs:")[0], "run")
    prefix, found, session = raw.name.partition("sessions:")
    if document.keys() >= SESSION_FIELDS or (found and prefix == PREFIX and not document):
        session = text_or_none(document.get("session_id")) or session
        return KeyOwner(STORE, session, prefix if found else "", "primary") if wanted in (None, session) else None
    return None


def leads(raw: RedisValue) -> tuple[str, ...]:
    """Return the keys that an index set's members name; an index is everybody's, and so belongs to no one session."""
    table, found, _ = raw.name.partition(":index:")
    return tuple(f"{table}:{member}" for member in sorted(raw.members)) if found else ()


def siblings(stored: SessionValues) -> Iterable[KeyRequest]:
    """Return session, order, each ordered run, and the index entries that session and runs should have."""
    owner = stored.owner
    yield KeyRequest(f"{owner.prefix}sessions:{owner.session}", "primary")
    yield KeyRequest(owner.prefix + ORDER + owner.session, "order", kind="zset")
    yield KeyRequest(f"{owner.prefix}runs:index:session_id:{owner.session}", "index", kind="set")
    for run in _run_ids(stored):
        yield KeyRequest(f"{owner.prefix}runs:{run}", "run")
    for name, ids in _index_entries(stored).items():
        if not name.startswith(f"{owner.prefix}runs:index:session_id:"):
            yield KeyRequest(name, "shared index", tuple(sorted(ids)), shared=True, kind="set")


def _run_ids(stored: SessionValues) -> list[str]:
    """Return the ids of the runs, in the order of the ZSET; those that the index alone knows come last."""
    order = stored.get(stored.owner.prefix + ORDER + stored.owner.session)
    listed = dict(sorted(order.scores.items(), key=lambda pair: pair[1])) if order else {}
    index = stored.get(f"{stored.owner.prefix}runs:index:session_id:{stored.owner.session}")
    return list(listed) + sorted((index.members if index else frozenset()) - listed.keys())


def _index_entries(stored: SessionValues) -> dict[str, set[str]]:
    """Return which members the index sets should have, judging by the documents that can be read."""
    entries: dict[str, set[str]] = {}
    base = stored.owner.prefix
    for raw in stored.keys.values():
        document = peek(raw) if raw and raw.kind == "string" else {}
        is_run = "run_data" in document
        table, fields = ("runs", RUN_INDEX) if is_run else ("sessions", SESSION_INDEX)
        member = text_or_none(document.get("run_id" if is_run else "session_id"))
        for field in fields if member else ():
            value = text_or_none(document.get(field))
            if value and member:
                entries.setdefault(f"{base}{table}:index:{field}:{value}", set()).add(member)
    return entries


def decode(stored: SessionValues) -> Iterator[Item]:
    """Yield the messages of the runs in order, leaving out those that a run repeats from its history."""
    owner = stored.owner
    name = f"{owner.prefix}sessions:{owner.session}"
    if session := stored.get(name):
        document, problems = read_with(session, "session_id")
        yield from problems
        for run in a_list(a_dict(document).get("runs")):  # agno 1 kept the runs inside the session
            yield from _messages(a_dict(run), name)
    else:
        yield Problem("dangling", name, "the runs exist and their session does not")
    yield from _runs(stored)
    order, runs = owner.prefix + ORDER + owner.session, _run_ids(stored)
    if stored.get(order) is None and runs:  # a session without any run has no order yet
        reason = "the order of the runs no longer exists: agno will show an empty session"
        reason += "; recoverable: the runs are still there, listed in the session's index"
        members = " ".join(f"{position} {quoted(run)}" for position, run in enumerate(runs))
        repair = f"ZADD {quoted(order)} {members}" if all(map(is_uuid, runs)) else ""
        yield Problem("dangling", order, reason, repair)
    for name, ids in _index_entries(stored).items():
        index = stored.get(name)
        lost = ids - (index.members if index else frozenset())
        if lost:
            what = "no longer exists" if index is None else "does not list it"
            reason = f"the index {what}: agno's search by it misses {len(lost)} entries of this session"
            yield Problem("dangling", name, reason)


def _runs(stored: SessionValues) -> Iterator[Item]:
    documents: dict[str, dict[str, Any]] = {}
    for run in _run_ids(stored):
        name = f"{stored.owner.prefix}runs:{run}"
        raw = stored.get(name)
        if raw is None:
            yield Problem("dangling", name, "the order lists this run, which no longer exists; its messages are lost")
            continue
        document, problems = read(raw)
        yield from problems
        if document is None:
            yield from messages(list(salvage(raw.data, "messages")), name, _turns)
        elif lacks := missing(document, ("run_data",), kind=dict):
            yield misshapen(name, lacks)
        else:
            documents[name] = document
            yield from _messages(document["run_data"], name)
    if len(documents) < len(_run_ids(stored)):
        return
    # If the runs' own numbers leave some out, those were lost with all that named them.
    numbered = [(each["run_index"], name) for name, each in documents.items() if isinstance(each.get("run_index"), int)]
    expected = 0
    for number, name in sorted(numbered):
        if number > expected:
            reason = f"run {number} follows {expected} runs: {number - expected} before it no longer exist"
            yield Problem("gap", name, reason)
        expected = max(expected, number + 1)


def _messages(run: dict[str, Any], key: str) -> Iterator[Item]:
    stored = run.get("messages")
    if not isinstance(stored, list | None):
        yield misshapen(key, f"its messages are {kind_of(stored)}")
    for item in messages(a_list(stored), key, _turns):
        if isinstance(item, Turn) and item.at_s is None:
            item = item._replace(at_s=seconds(run.get("created_at")))
        yield item


def _turns(message: dict[str, Any], key: str) -> Sequence[Turn] | str | None:
    if message.get("from_history"):
        return None
    return missing(message, ("role",)) or missing_content(message) or read_any(message, key)


FORMAT = Format(store=STORE, kinds=("string", "zset", "set"), recognise=recognise, siblings=siblings, decode=decode,
                names=("agno:sessions:{id}", "agno:runs:by_session:{id}", "agno:runs:index:session_id:{id}"),
                prefix=PREFIX)  # fmt: skip
