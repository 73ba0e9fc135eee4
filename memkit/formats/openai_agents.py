"""The items of openai-agents' RedisSession that are not messages: reasoning, hosted tools' items, encrypted ones."""

import base64
from collections.abc import Iterable, Sequence
from typing import Any

from memkit.formats.model import SessionValues, Turn, seconds
from memkit.formats.parsing.any_message import read_any
from memkit.formats.parsing.element_shapes import CALLS, RESULTS, is_item, openai_lacks
from memkit.formats.parsing.list_elements import sample
from memkit.readonly.values import RedisValue
from memkit.render import counted, duration

STORE, ENCRYPTED = "openai-agents", "openai-agents-encrypted"
ENCRYPTED_TTL_S = 600
"""The default of EncryptedSession's ``ttl`` (openai-agents 0.24): it does not return older items."""


def turns(item: dict[str, Any], key: str) -> Sequence[Turn] | str | None:
    """Return an item's messages; None if it is not part of the dialogue, or EncryptedSession's."""
    if lacks := openai_lacks(item):
        return lacks
    is_encrypted = item.get("__enc__") == 1 and "payload" in item
    is_hidden = is_item(item.get("type")) and item["type"] not in CALLS | RESULTS
    return None if is_encrypted or is_hidden else read_any(item, key)


def _is_encrypted(raw: RedisValue | None) -> bool:
    found = ["__enc__" in value for value in sample(raw)] if raw else []
    return 2 * sum(found) > len(found)


def name_of(stored: SessionValues) -> str:
    """Return the store by whether most items are encrypted."""
    return ENCRYPTED if any(map(_is_encrypted, stored.keys.values())) else STORE


def notes(stored: SessionValues) -> Iterable[str]:
    """Yield what is not shown, and what EncryptedSession's users should know."""
    for raw in filter(None, stored.keys.values()):
        if any(value.get("type") == "reasoning" for value in sample(raw)):
            yield "reasoning items are not part of the dialogue and are not shown"
        if _is_encrypted(raw):
            count = counted(len(raw.elements), "item")
            yield f"EncryptedSession encrypted {count}: the texts cannot be read without its key"
            times = [at_s for value in sample(raw) if (at_s := _fernet_time(value.get("payload"))) is not None]
            span_s = max(times, default=0.0) - min(times, default=0.0)
            written = f": these were written over {duration(1000 * span_s)}"
            shown = written if span_s > ENCRYPTED_TTL_S else ", stored or not"
            yield f"EncryptedSession skips items older than its ttl ({ENCRYPTED_TTL_S} s by default){shown}"


def _fernet_time(token: Any) -> float | None:
    """Return when a Fernet token was made: its bytes 1 to 8 (https://github.com/fernet/spec)."""
    if not isinstance(token, str) or not token.startswith("gAAAAA"):
        return None
    try:
        return seconds(int.from_bytes(base64.urlsafe_b64decode(token[:12])[1:9], "big"))
    except ValueError:
        return None
