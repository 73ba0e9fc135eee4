"""llama-index-storage-chat-store-redis: one LIST a session whose key is the session's id, without any prefix."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from memkit.formats.model import SEPARATORS, Hit, Item, Known, Tool, Turn, a_dict, a_list
from memkit.formats.parsing.chat import Columns, answered, calls, columns, flatten, role_of, roles_of
from memkit.formats.parsing.element_shapes import missing, missing_content
from memkit.formats.parsing.list_elements import turns, votes
from memkit.readonly.values import KeyRequest, RedisValue

STORE = "llama-index"
SCANNED = False
KINDS = ("list",)


def names(session: str) -> Iterable[str]:
    """Return the one key: the id itself."""
    return (session,)


def recognise(raw: RedisValue, wanted: str | None) -> Hit | None:
    """Claim lists of ``{"role", "blocks"}`` (before 0.11: ``{"role", "content"}``) with ``additional_kwargs``."""
    if not votes(raw)[STORE]:
        return None
    prefix = raw.name.removesuffix(wanted) if wanted else ""
    if prefix[-1:] not in SEPARATORS:
        return None
    return Hit(STORE, raw.name[len(prefix) :], prefix, "primary")


def wants(known: Known) -> Iterable[KeyRequest]:
    """Return the one key."""
    return (KeyRequest(known.hit.prefix + known.hit.session, "primary"),)


def decode(known: Known) -> Iterator[Item]:
    """Yield the list's messages from head to tail."""
    for raw in known.keys.values():
        if raw:
            yield from turns(raw, _turn, store=STORE, plain=_plain)


def _plain(values: list[Any]) -> Columns | None:
    blocks = [value["blocks"] for value in values]
    if (
        set(map(type, blocks)) != {list}
        or set(map(len, blocks)) != {1}
        or {block["block_type"] for (block,) in blocks} != {"text"}
    ):
        return None
    roles, texts = roles_of([value["role"] for value in values]), [block["text"] for (block,) in blocks]
    extras = [value["additional_kwargs"] for value in values]
    tools = [_tools(*each) if each[1] or each[0] == "tool" else () for each in zip(roles, extras, strict=True)]
    return columns(roles, texts, tools)


def _tools(role: str, extra: dict[str, Any]) -> tuple[Tool, ...]:
    return (answered(extra),) if role == "tool" else calls(extra.get("tool_calls"))


def _turn(value: dict[str, Any], key: str) -> Turn | str:
    in_blocks = "blocks" in value or "content" not in value
    lacks = missing(value, ("role",))
    lacks = lacks or (missing(value, ("blocks",), kind=list) if in_blocks else missing_content(value))
    if lacks:
        return lacks
    role, extra = role_of(value.get("role")), a_dict(value.get("additional_kwargs"))
    blocks = a_list(value.get("blocks"))
    tools = _tools(role, extra) or _calls(blocks)
    return Turn(role, flatten(blocks if in_blocks else value["content"]), tools, None, None, key)


def _calls(blocks: list[Any]) -> tuple[Tool, ...]:
    return calls([block for block in blocks if a_dict(block).get("block_type") == "tool_call"])
