"""langgraph-checkpoint-aws' ValkeySaver: msgpack in base64 in JSON, in STRINGs.

``checkpoint:{<thread>}:<ns>:<id>``, ``writes:{<thread>}:<ns>:<id>`` and ``thread:{<thread>}:<ns>`` (a LIST of the ids,
newest first). The braces are a hash tag. Old checkpoints are not renewed, and the list goes on naming them.
"""

import re
from collections.abc import Iterable, Iterator

from memkit.formats.model import Format, Item, KeyOwner, Note, Problem, SessionValues, a_dict
from memkit.formats.parsing.documents import peek, read_with
from memkit.formats.parsing.langgraph_common import deserialised, message_items, newer_schema
from memkit.readonly.values import KeyRequest, RedisValue, to_name
from memkit.render import counted

STORE = "langgraph-aws-valkey"
_FIELDS = frozenset({"thread_id", "checkpoint_id", "checkpoint"})


def recognise(raw: RedisValue, wanted: str | None) -> KeyOwner | None:
    """Claim checkpoints by their fields, their order and their writes by the hash tag in their names."""
    thread = re.escape(wanted) if wanted else ".+"
    name = rf"((?:.*[:/|.])?)(checkpoint|writes|thread):\{{({thread})\}}:(.*)"
    found = re.fullmatch(name, raw.name, re.DOTALL)
    if found is None or raw.kind != ("list" if found[2] == "thread" else "string"):
        return None
    if found[2] == "checkpoint" and not peek(raw).keys() >= _FIELDS and raw.data[:1] == b"{":
        return None
    return KeyOwner(STORE, found[3], found[1], "order" if found[2] == "thread" else found[2])


def _base(stored: SessionValues, kind: str) -> str:
    return f"{stored.owner.prefix}{kind}:{{{stored.owner.session}}}:"


def siblings(stored: SessionValues) -> Iterable[KeyRequest]:
    """Return the order, and the checkpoints and writes that it lists."""
    order = _base(stored, "thread")
    yield KeyRequest(order, "order", kind="list")
    listed = stored.get(order)
    for element in listed.elements if listed else ():
        yield KeyRequest(f"{_base(stored, 'checkpoint')}:{to_name(element)}", "checkpoint")
        yield KeyRequest(f"{_base(stored, 'writes')}:{to_name(element)}", "writes")


def decode(stored: SessionValues) -> Iterator[Item]:
    """Yield the messages of the latest checkpoint of the graph itself, and what is missing around it."""
    root = f"{_base(stored, 'checkpoint')}:"
    found = {name: raw for name, raw in stored.keys.items() if name.startswith(root)}
    shown = False
    for _, raw in sorted(found.items(), reverse=True):
        document, problems = read_with(raw, "type", "checkpoint") if raw else (None, [])
        yield from problems
        if raw and document is not None and not shown:
            value, problems = deserialised(document["type"], document["checkpoint"], raw)
            yield from problems
            if shown := isinstance(value, dict):
                yield from newer_schema(value, raw.name)
                yield from message_items(a_dict(value.get("channel_values")), raw.name)
    order = stored.get(_base(stored, "thread"))
    listed = [root + to_name(element) for element in order.elements] if order else []
    lost = [name for name in listed if name in found and found[name] is None]
    if order is None:
        yield Problem("dangling", _base(stored, "thread"), "the thread's list of checkpoints no longer exists")
    if lost and lost[0] == listed[0]:
        reason = "the thread's list names this checkpoint as the latest, and it does not exist"
        yield Problem("dangling", lost[0], reason)
    elif lost:
        yield Note(f"{counted(len(lost), 'older checkpoint')} no longer exist: the library does not renew their TTL")


FORMAT = Format(store=STORE, kinds=("string", "list"), recognise=recognise, siblings=siblings, decode=decode,
                names=("thread:{{id}}:",), scanned=True)  # fmt: skip
