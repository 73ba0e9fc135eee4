"""openai-agents' RedisSession: a HASH of dates and a LIST of items, both renewed in one MULTI by each append."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from memkit.formats.model import Format, Item, KeyOwner, Note, Problem, SessionValues, Turn, seconds, split
from memkit.formats.parsing.any_message import read_any
from memkit.formats.parsing.element_shapes import CALLS, RESULTS, is_item, openai_lacks
from memkit.formats.parsing.list_elements import sample, turns
from memkit.readonly.values import KeyRequest, RedisValue
from memkit.render import counted, duration

STORE, ENCRYPTED = "openai-agents", "openai-agents-encrypted"
PREFIX = "agents:session:"
LIST = ":messages"
ENCRYPTED_TTL_S = 600
"""The default of EncryptedSession's ``ttl`` (openai-agents 0.24): it does not return older items."""
_DATES = frozenset({"session_id", "created_at", "updated_at"})


def recognise(raw: RedisValue, wanted: str | None) -> KeyOwner | None:
    """Claim the default names, and hashes with the three dates' fields.

    A list ``…:messages`` under another prefix may be anybody's: it is found through its hash, which names it.
    """
    default = raw.name.startswith(PREFIX)
    if raw.kind == "list" and raw.name.endswith(LIST) and default:
        part, base = "messages", raw.name.removesuffix(LIST)
    elif raw.kind == "hash" and (default or raw.fields.keys() >= _DATES):
        part, base = "primary", raw.name
    else:
        return None
    prefix, session = split(base, PREFIX, wanted)
    if part == "primary" and not prefix:
        prefix, session = split(base, PREFIX, raw.fields.get("session_id", b"").decode(errors="replace"))
    return KeyOwner(STORE, session, prefix, part)


def leads(raw: RedisValue) -> tuple[str, ...]:
    """Return the hash that would show a list of messages to be this store's."""
    return (raw.name.removesuffix(LIST),) if raw.kind == "list" and raw.name.endswith(LIST) else ()


def siblings(stored: SessionValues) -> Iterable[KeyRequest]:
    """Return both keys."""
    base = stored.owner.prefix + stored.owner.session
    yield KeyRequest(base, "primary", kind="hash")
    yield KeyRequest(base + LIST, "messages", kind="list")
    yield KeyRequest(base + ":counter", "counter")


def decode(stored: SessionValues) -> Iterator[Item]:
    """Yield the list's items from head to tail; reasoning and hosted tools' items are noted, not shown."""
    base = stored.owner.prefix + stored.owner.session
    items = stored.get(base + LIST)
    if items and items.kind == "list" and is_encrypted(items):
        yield from _encrypted(items)
    elif items and items.kind == "list":
        yield from turns(items, _turns, store=STORE)
        if any(value.get("type") == "reasoning" for value in sample(items)):
            yield Note("reasoning items are not part of the dialogue and are not shown")
    elif items is None:
        yield Problem(
            "dangling", base + LIST, "the hash with the session's dates exists, its list of messages does not"
        )
    if items and not stored.get(base):
        yield Problem("dangling", base, "the messages exist, the hash with the session's dates does not")


def is_encrypted(raw: RedisValue) -> bool:
    """Return whether most elements are EncryptedSession's ``{"__enc__": 1, "payload"}``."""
    found = [bool(value.get("__enc__") == 1) and "payload" in value for value in sample(raw)]
    return sum(found) > len(found) - sum(found)


def _encrypted(raw: RedisValue) -> Iterator[Item]:
    count = len(raw.elements)
    yield Note(f"EncryptedSession encrypted {counted(count, 'item')}: the texts cannot be read without its key")
    times = [at_s for value in sample(raw) if (at_s := _fernet_time(value.get("payload"))) is not None]
    span_s = max(times, default=0.0) - min(times, default=0.0)
    shown = f": these were written over {duration(1000 * span_s)}" if span_s > ENCRYPTED_TTL_S else ", stored or not"
    yield Note(f"EncryptedSession skips items older than its ttl ({ENCRYPTED_TTL_S} s by default){shown}")


def _fernet_time(token: Any) -> float | None:
    """Return when a Fernet token was made: its bytes 1 to 8 (https://github.com/fernet/spec)."""
    if not isinstance(token, str) or not token.startswith("gAAAAA"):
        return None
    try:
        return seconds(int.from_bytes(base64.urlsafe_b64decode(token[:12])[1:9], "big"))
    except (binascii.Error, ValueError):
        return None


def _name_of(stored: SessionValues) -> str:
    items = stored.get(stored.owner.prefix + stored.owner.session + LIST)
    return ENCRYPTED if items and items.kind == "list" and is_encrypted(items) else STORE


def _turns(item: dict[str, Any], key: str) -> Sequence[Turn] | str | None:
    if is_item(item.get("type")) and item["type"] not in CALLS | RESULTS:
        return None
    return openai_lacks(item) or read_any(item, key)


FORMAT = Format(store=STORE, kinds=("list", "hash"), recognise=recognise, siblings=siblings, decode=decode,
                names=(PREFIX + "{id}", PREFIX + "{id}" + LIST), prefix=PREFIX, name_of=_name_of)  # fmt: skip
