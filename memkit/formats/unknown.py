"""Keys of no known store: shown as far as they can be understood, with a guess at each payload's encoding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from memkit.formats.model import Item, SessionValues, Note, Problem, Turn, a_dict
from memkit.formats.parsing.bounded_json import parse
from memkit.formats.parsing.chat import chat_columns, chat_turn, looks_like_chat
from memkit.formats.parsing.encodings import encoding_of, is_packed, pickle_opcodes
from memkit.formats.parsing.list_elements import sample, turns
from memkit.readonly.values import DOCUMENT_KINDS, RedisValue

STORE = "unknown"
_CHAT_FIELDS = ("messages", "history", "chat_history", "conversation")


def payload_encoding(raw: RedisValue) -> str:
    """Return the guessed encoding of a key's payloads, judged by the first."""
    first = next(iter(raw.payloads), None)
    return "" if first is None or raw.unread_reason else encoding_of(first)


def decode(stored: SessionValues) -> Iterator[Item]:
    """Yield what looks like chat messages, and what the payloads are where they do not."""
    for raw in stored.keys.values():
        if raw is None or raw.unread_reason:
            continue
        if raw.kind == "list" and looks_like_chat(sample(raw)):
            yield from turns(raw, chat_turn, plain=chat_columns)
        elif raw.kind in DOCUMENT_KINDS and (found := _chat(raw)):
            yield from found
        else:
            yield from _packed(raw)


def _chat(raw: RedisValue) -> list[Turn]:
    value = parse(raw.data).value
    fields = a_dict(value)
    for candidate in (value, *(fields.get(field) for field in _CHAT_FIELDS)):
        if isinstance(candidate, list) and looks_like_chat(candidate):
            return [chat_turn(message, raw.name) for message in candidate]
    return []


def _packed(raw: RedisValue) -> Iterator[Item]:
    encoding = payload_encoding(raw)
    if not encoding or not is_packed(encoding):
        return
    yield Problem("encoded", raw.name, f"the payload looks like {encoding}: its text cannot be read here")
    if encoding.endswith("pickle"):
        yield Note(_pickle_says(next(iter(raw.payloads))))


def _pickle_says(data: bytes) -> str:
    opcodes: Any = pickle_opcodes(data)
    calls = sum(opcodes[name] for name in ("REDUCE", "NEWOBJ", "NEWOBJ_EX", "INST", "OBJ", "BUILD"))
    verdict = f"{calls} of them call code when it is loaded" if calls else "none of them calls code"
    return f"a pickle is never loaded; disassembled, its first 64 KB have {opcodes.total()} opcodes, {verdict}"
