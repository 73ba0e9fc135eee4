"""redisvl's MessageHistory: one HASH a message, ``<index>:<session>:<time>:<hash>``; the library has no TTL option."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from memkit.formats.bounded import parse
from memkit.formats.chat import ROLES, role_of
from memkit.formats.elements import BLOCK
from memkit.formats.model import Hit, Item, Known, Raw, Run, Tool, Turn, Want, a_dict, seconds, text_or_none

STORE = "redisvl"
SCANNED = True
KINDS = ("hash",)
FIELDS = {"entry_id", "session_tag", "role"}
_PLAIN = FIELDS | {"content", "timestamp"}


def names(_session: str) -> Iterable[str]:
    """Return nothing: each message's key ends with its time and a hash."""
    return ()


def recognise(raw: Raw, wanted: str | None) -> Hit | None:
    """Claim hashes with an entry id, a session tag and a role."""
    if not raw.fields.keys() >= FIELDS:
        return None
    session = _text(raw, "session_tag")
    prefix, found, _ = raw.name.partition(f"{session}:")
    return Hit(STORE, session, prefix if found else "", "message") if wanted in (None, session) else None


def wants(_known: Known) -> Iterable[Want]:
    """Return nothing beyond the messages that were found: nothing lists them."""
    return ()


def decode(known: Known) -> Iterator[Item]:
    """Yield the messages in the order of their timestamps."""
    found = [(_number(raw), raw.name, raw) for raw in known.keys.values() if raw]
    found.sort(key=lambda each: (each[0] or 0.0, each[1]))
    once = len({raw.fields.get("entry_id") for _, _, raw in found}) == len(found)
    for start in range(0, len(found), BLOCK):
        numbers, _, block = zip(*found[start : start + BLOCK], strict=True)
        run = _run(block, numbers) if once else None
        yield from (run,) if run else map(_turn, block)


def _run(block: Sequence[Raw], numbers: Sequence[float | None]) -> Run | None:
    """Return messages that are a role, a text and a time and nothing else; None where one of them is more."""
    fields = [raw.fields for raw in block]
    if not all(map(_PLAIN.issuperset, fields)):
        return None
    try:
        roles = [ROLES.get(each["role"].decode("utf-8", "replace"), "other") for each in fields]
        texts = [each["content"].decode("utf-8", "replace") for each in fields]
    except KeyError:
        return None
    return None if "tool" in roles else Run(roles, texts, block[0].name, list(map(seconds, numbers)))


def _turn(raw: Raw) -> Turn:
    role, call_id = role_of(_text(raw, "role")), text_or_none(_text(raw, "tool_call_id"))
    call = a_dict(a_dict(parse(raw.fields["metadata"]).value).get("tool_call")) if "metadata" in raw.fields else {}
    name = text_or_none(call.get("name"))
    tools = (Tool(name, call_id or text_or_none(call.get("id"))),) if call_id or call or role == "tool" else ()
    return Turn(role, _text(raw, "content"), tools, seconds(_number(raw)), _text(raw, "entry_id"), raw.name)


def _text(raw: Raw, field: str) -> str:
    return raw.fields.get(field, b"").decode("utf-8", "replace")


def _number(raw: Raw) -> float | None:
    try:
        return float(raw.fields.get("timestamp", b""))
    except ValueError:
        return None
