"""redisvl's MessageHistory: one HASH a message, ``<index>:<session>:<time>:<hash>``; the library has no TTL option."""

from collections.abc import Iterator

from memkit.formats.model import (
    NO_TTL_OPTION,
    Format,
    Item,
    KeyOwner,
    Problem,
    SessionValues,
    Tool,
    Turn,
    a_dict,
    few,
    seconds,
    text_or_none,
)
from memkit.formats.parsing.bounded_json import parse
from memkit.formats.parsing.chat import role_of
from memkit.readonly.values import RedisValue

STORE = "redisvl"
FIELDS = frozenset({"entry_id", "session_tag", "role", "content", "timestamp"})
_ENOUGH = 3  # of these fields: what lacks one or two is a damaged message, what has only two is not a message


def recognise(raw: RedisValue, wanted: str | None) -> KeyOwner | None:
    """Claim hashes with an entry id, a session tag, a role, a content and a time, one or two of which may be lost."""
    if raw.fields.keys() != FIELDS:
        there = FIELDS & raw.fields.keys()
        if len(there) < _ENOUGH or not there & {"entry_id", "session_tag"}:
            return None
    # The session's tag, or what the entry's id begins with: time and hash are its last two parts.
    session, entry = _text(raw, "session_tag"), _text(raw, "entry_id")
    if "session_tag" not in raw.fields:
        session = wanted if wanted and entry.startswith(f"{wanted}:") else entry.rsplit(":", 2)[0]
    prefix, found, _ = raw.name.partition(f"{session}:")
    return KeyOwner(STORE, session, prefix if found else "", "message") if wanted in (None, session) else None


def decode(stored: SessionValues) -> Iterator[Item]:
    """Yield the messages in the order of their timestamps."""
    found = sorted(filter(None, stored.keys.values()), key=lambda raw: (_number(raw) or 0.0, raw.name))
    damaged: list[Problem] = []
    for raw in found:
        if reason := _lacks(raw):
            damaged.append(Problem("corrupt", raw.name, reason))
        if "content" not in raw.fields:
            continue
        role, call_id = role_of(_text(raw, "role")), text_or_none(_text(raw, "tool_call_id"))
        call = a_dict(a_dict(parse(raw.fields["metadata"]).value).get("tool_call")) if "metadata" in raw.fields else {}
        tool = Tool(text_or_none(call.get("name")), call_id or text_or_none(call.get("id")))
        tools = (tool,) if call_id or call or role == "tool" else ()
        yield Turn(role, _text(raw, "content"), tools, seconds(_number(raw)), _text(raw, "entry_id"), raw.name)
    yield from few(damaged)


def _lacks(raw: RedisValue) -> str | None:
    if raw.unread_reason:
        return None
    for field in ("role", "content", "entry_id", "session_tag", "timestamp"):
        if field not in raw.fields:
            return f"this message has no {field}" + (", and is not shown" if field == "content" else "")
        try:
            text = raw.fields[field].decode()
        except UnicodeDecodeError as error:
            return f"the {field} of this message is not valid UTF-8 at byte {error.start:,} of {len(error.object):,}"
        if not text and field != "content":
            return f"the {field} of this message is empty"
    return None if _number(raw) is not None else "this message's timestamp is not a number: its position is unknown"


def _text(raw: RedisValue, field: str) -> str:
    return raw.fields.get(field, b"").decode("utf-8", "replace")


def _number(raw: RedisValue) -> float | None:
    try:
        return float(raw.fields.get("timestamp", b""))
    except ValueError:
        return None


FORMAT = Format(
    store=STORE, kinds=("hash",), recognise=recognise, decode=decode, scanned=True, ttl_option=NO_TTL_OPTION
)
