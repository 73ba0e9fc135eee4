"""openai-agents' RedisSession: a HASH of dates and a LIST of items, both renewed in one MULTI by each append."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from typing import Any

from memkit.formats.model import Hit, Item, Known, Note, Problem, Tool, Turn, one_of, split, text_or_none
from memkit.formats.parsing.chat import ROLES, Columns, columns, dumped, flatten, role_of, roles_of
from memkit.formats.parsing.element_shapes import CALLS, RESULTS, is_item, missing, missing_content
from memkit.formats.parsing.list_elements import sample, turns, votes
from memkit.readonly.values import KeyRequest, RedisValue

STORE = "openai-agents"
SCANNED = False
KINDS = ("list", "hash")
PREFIX = "agents:session:"
LIST = ":messages"
COUNTER = ":counter"
_DATES = frozenset({"session_id", "created_at", "updated_at"})


def names(session: str) -> Iterable[str]:
    """Return the names of hash and list."""
    return (PREFIX + session, PREFIX + session + LIST)


def recognise(raw: RedisValue, wanted: str | None) -> Hit | None:
    """Claim lists ``…:messages`` of response items, hashes with the three dates' fields, and the default names."""
    default = raw.name.startswith(PREFIX)
    if raw.kind == "list" and raw.name.endswith(LIST) and (default or votes(raw)[STORE]):
        part, base = "messages", raw.name.removesuffix(LIST)
    elif raw.kind == "hash" and (default or raw.fields.keys() >= _DATES):
        part, base = "primary", raw.name
    else:
        return None
    prefix, session = split(base, PREFIX, wanted)
    if part == "primary" and not prefix:
        prefix, session = split(base, PREFIX, raw.fields.get("session_id", b"").decode(errors="replace"))
    return Hit(STORE, session, prefix, part)


def wants(known: Known) -> Iterable[KeyRequest]:
    """Return both keys."""
    base = known.hit.prefix + known.hit.session
    return (KeyRequest(base, "primary", kind="hash"), KeyRequest(base + LIST, "messages", kind="list"))


def decode(known: Known) -> Iterator[Item]:
    """Yield the list's items from head to tail; reasoning and hosted tools' items are noted, not shown."""
    base = known.hit.prefix + known.hit.session
    items = known.there(base + LIST)
    if items and items.kind == "list":
        yield from turns(items, _turn, store=STORE, plain=_plain)
        hidden = sum(1 for value in sample(items) if value.get("type") == "reasoning")
        if hidden:
            yield Note("reasoning items are not part of the dialogue and are not shown")
    elif items is None:
        yield Problem("dangling", base + LIST, "the session's dates are there and its list of messages is gone")
    if items and not known.there(base):
        yield Problem("dangling", base, "the messages are there and the hash with the session's dates is gone")


def _plain(values: list[Any]) -> Columns | None:
    """Return the columns of messages, function calls and their results, the items that most sessions are made of."""
    kinds = [value.get("type", "message") for value in values]
    if not _PLAIN.issuperset(kinds):
        return None
    if set(kinds) == {"message"}:
        contents = [value["content"] for value in values]
        return columns(roles_of([value["role"] for value in values]), list(map(_text, contents)), None, _ids(values))
    rows = [_ROWS[kind](value) for kind, value in zip(kinds, values, strict=True)]
    roles, texts, tools = map(list, zip(*rows, strict=True))
    return columns(roles, texts, tools, _ids(values))


def _ids(values: list[Any]) -> list[Any]:
    return list(map(dict.get, values, repeat("id")))


def _text(content: Any) -> Any:
    return flatten(content) if isinstance(content, list) else content


_Row = tuple[str, Any, tuple[Tool, ...]]
_ROWS: dict[str, Callable[[dict[str, Any]], _Row]] = {
    "message": lambda value: (ROLES[value["role"]], _text(value["content"]), ()),
    "function_call": lambda value: ("assistant", "", (Tool(value["name"], value["call_id"]),)),
    "function_call_output": lambda value: ("tool", value["output"], (Tool(None, value["call_id"]),)),
}
_PLAIN = frozenset(_ROWS)


def _turn(value: dict[str, Any], key: str) -> Turn | str | None:
    kind, uid = value.get("type", "message"), text_or_none(value.get("id"))
    if one_of(kind, CALLS):
        call_id = text_or_none(value.get("call_id")) or uid
        if call_id is None:
            return "it has no call_id"
        return Turn("assistant", "", (Tool(text_or_none(value.get("name")), call_id),), None, uid, key)
    if one_of(kind, RESULTS):
        if "output" not in value:
            return "it has no output"
        output = value["output"]
        text = flatten(output) if isinstance(output, list) else dumped(output)
        return Turn("tool", text, (Tool(None, text_or_none(value.get("call_id"))),), None, uid, key)
    if is_item(kind):
        return None
    lacks = missing(value, ("role",)) or missing_content(value)
    return lacks or Turn(role_of(value["role"]), flatten(value.get("content")), (), None, uid, key)
