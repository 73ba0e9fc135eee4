"""Find the messages in any decoded payload, and tell from their content in which order they stand."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from memkit.formats.model import Note, Turn
from memkit.formats.parsing.any_message import messages_of, spoken_line
from memkit.formats.parsing.bounded_json import json_start, parse
from memkit.formats.parsing.chat import role_of

LIKELY_FIELDS = ("messages", "history", "chat_history", "chatHistory", "conversation", "turns", "dialogue", "dialog",
                 "chat", "transcript", "exchanges", "events", "items", "entries", "log", "contents", "memory", "data",
                 "state")  # fmt: skip
PAIR_FIELDS = ("history", "chat_history", "chatHistory", "conversation", "messages", "turns", "dialogue", "dialog",
               "chat", "chatbot", "exchanges", "internal", "visible")  # fmt: skip
"""Fields in which ``[["hi", "ho"]]`` is a question and its answer (Gradio, text-generation-webui)."""
_MOST_WRAPPED = 2
"""Jackson writes an array as ``["java.util.ArrayList", […]]``."""
MAX_DEPTH = 5
_CLEAR_MAJORITY = 4
"""How many pairs of neighbours must be in one order for one that is not: a few clocks are always skewed."""
_JUDGED = 200
"""The order is judged by this many entries at each end; a list is written in one direction."""

_LETTER = re.compile(r"[^\W\d_]")
_TRAILING_NUMBER = re.compile(r"(\d{1,20})$", re.ASCII)
_NUMBERED = re.compile(r"(?:[a-z]+[:._-])?(\d{1,9})[:._-]([a-zA-Z]+)|([a-zA-Z]+)[:._-](\d{1,9})", re.ASCII)

OLDEST_FIRST, NEWEST_FIRST, UNKNOWN_ORDER = "oldest first", "newest first", "unknown"


class Entry(NamedTuple):
    """The messages of one element, and the number that orders it (a time or an index), if it has one."""

    turns: Sequence[Turn]
    place: float | None = None


def entry_of(value: Any, key: str) -> Entry | None:
    """Return an element's messages: an object, ``[role, text]``, a text that holds JSON, or a line ``User: hello``."""
    if isinstance(value, str):
        inner = json_in(value)
        if not isinstance(inner, dict):
            turn = spoken_line(value, key)
            return Entry((turn,)) if turn else None
        value = inner
    if isinstance(value, list) and len(value) == 2 and all(isinstance(each, str) for each in value):
        role, text = role_of(value[0].lower()), value[1]
        return Entry((Turn(role, text, (), None, None, key),)) if role != "other" else None
    if isinstance(value, list) and value and not any(isinstance(each, dict) for each in value[1:]):
        value = value[0]  # a message with its marks (AgentScope)
    if not isinstance(value, dict):
        return None
    turns, place = messages_of(value, key)
    return Entry(turns, place) if turns else None


def find_entries(value: Any, key: str, depth: int = 0) -> list[Entry]:
    """Return the messages somewhere in a decoded payload; empty if there are none.

    Args:
        value: What JSON or msgpack holds: a list of messages, one message, or an object with either in a field.
        key: The Redis key that it comes from.
        depth: How many objects this one is in.
    """
    if depth > MAX_DEPTH:
        return []
    if isinstance(value, str):
        value = json_in(value)
    if isinstance(value, list):
        spoken = list(_spoken({str(at): each for at, each in enumerate(value)}, key).values())
        if 2 * len(spoken) >= len(value):  # of a conversation at least half are messages
            return spoken
        return _deeper(value, key, depth) if len(value) <= _MOST_WRAPPED else []
    if not isinstance(value, dict):
        return []
    fields = [value[name] for name in LIKELY_FIELDS if name in value]
    lists = [each for each in fields if isinstance(each, list)]
    if found := _deeper(lists, key, depth):  # a session may have an author, or a type, beside its messages
        return found
    if alone := _spoken({"": value}, key):
        return list(alone.values())
    if pairs := next((found for name in PAIR_FIELDS if name in value and (found := _pairs(value[name], key))), []):
        return pairs
    fields += [each for name, each in value.items() if name not in LIKELY_FIELDS]
    return named_entries(value, key) or _deeper(fields, key, depth)


def named_entries(values: Mapping[str, Any], key: str) -> list[Entry]:
    """Return the messages that an object or a hash has under a name each: two or more, in the order of their numbers.

    A name may hold the number and the role (``0:user``), or several names the fields of one message (``0:role``).
    """
    each = _spoken(values, key)
    if len(each) < 2:
        groups: dict[int, dict[str, Any]] = {}
        for name, value in values.items():
            if found := _NUMBERED.fullmatch(name):
                groups.setdefault(int(found[1] or found[4]), {})[found[2] or found[3]] = value
        each = {str(number): entry for number in sorted(groups) if (entry := entry_of(groups[number], key))}
    count = sum(len(entry.turns) for entry in each.values())
    if count < 2 or 2 * count < sum(isinstance(value, dict) for value in values.values()):
        return []
    numbers = [trailing_number(name) for name in each]
    if None not in numbers and len(set(numbers)) > 1:
        return [entry for _, entry in sorted(zip(numbers, each.values(), strict=True), key=lambda pair: pair[0] or 0)]
    return sorted_entries(list(each.values())) or list(each.values())


def _spoken(values: Mapping[str, Any], key: str) -> dict[str, Entry]:
    """Return the values that are messages.

    ``{"user": "hi"}`` is one only beside one of the other side: it may name a user.
    """
    found = {name: entry for name, value in values.items() if (entry := entry_of(value, key))}
    # An object with the fields of a message is one, whatever its sender is called.
    shapes = {frozenset(values[name]) for name in found if isinstance(values[name], dict)}
    if shapes and len(found) < len(values):
        found = {name: entry for name, value in values.items()
                 if (entry := found.get(name) or (entry_of({"sender": "", **value}, key)
                     if isinstance(value, dict) and frozenset(value) in shapes else None))}  # fmt: skip
    single = {name for name in found if isinstance(values[name], dict) and len(values[name]) == 1}
    sides = {turn.role for name in single for turn in found[name].turns}
    return found if len(sides) != 1 else {name: entry for name, entry in found.items() if name not in single}


def _pairs(value: Any, key: str) -> list[Entry]:
    """Return questions and answers without names; empty if the value is not an array of such pairs."""
    pairs = [each for each in value if isinstance(each, list) and len(each) == 2] if isinstance(value, list) else []
    texts = [text for pair in pairs for text in pair if text is not None]
    if not texts or len(pairs) < len(value):
        return []
    if not all(isinstance(text, str) and _LETTER.search(text) for text in texts):  # prices by date are pairs too
        return []
    return [
        Entry([Turn(role, text, (), None, None, key) for role, text in zip(("user", "assistant"), pair, strict=True)
               if text is not None])
        for pair in pairs
    ]  # fmt: skip


def trailing_number(name: str) -> int | None:
    """Return the number at the end of a name."""
    found = _TRAILING_NUMBER.search(name)
    return int(found[1]) if found else None


def _deeper(values: Iterable[Any], key: str, depth: int) -> list[Entry]:
    """Return the messages in the first of these values that has some."""
    return next((found for each in values if (found := find_entries(each, key, depth + 1))), [])


def json_in(text: str) -> Any:
    """Return the JSON array or object in a text; None if it holds none."""
    data = text.encode("utf-8", "surrogatepass")
    return parse(data).value if json_start(data) in (b"[", b"{") else None


def order_of(entries: Sequence[Entry]) -> str:
    """Return in which order entries stand, by what they contain.

    A tool's call stands before its result; times and indexes grow; a system message is the first. If these do not
    decide, the order is unknown.
    """
    if len(entries) < 2:
        return OLDEST_FIRST
    judged = entries if len(entries) <= 2 * _JUDGED else [*entries[:_JUDGED], *entries[-_JUDGED:]]
    if order := _by_calls(judged):
        return order
    places = [entry.place for entry in judged if entry.place is not None]
    rising = sum(first < second for first, second in pairwise(places))
    falling = sum(first > second for first, second in pairwise(places))
    if rising > _CLEAR_MAJORITY * falling:
        return OLDEST_FIRST
    if falling > _CLEAR_MAJORITY * rising:
        return NEWEST_FIRST
    first, last = (judged[at].turns[0].role == "system" for at in (0, -1))
    return UNKNOWN_ORDER if first == last else OLDEST_FIRST if first else NEWEST_FIRST


def _by_calls(entries: Sequence[Entry]) -> str | None:
    called: dict[str, int] = {}
    answered: dict[str, int] = {}
    for at, entry in enumerate(entries):
        for turn in entry.turns:
            for tool in turn.tools:
                if tool.call_id:
                    (answered if turn.role == "tool" else called).setdefault(tool.call_id, at)
    after = [at - called[uid] for uid, at in answered.items() if called.get(uid, at) != at]
    if after:
        return OLDEST_FIRST if sum(gap > 0 for gap in after) * 2 > len(after) else NEWEST_FIRST
    # A result without an id follows the assistant's message that asks for it, and an assistant's answer follows it.
    roles = [entry.turns[0].role for entry in entries]
    results = [at for at, role in enumerate(roles) if role == "tool"]
    asks = sum(at > 0 and roles[at - 1] == "assistant" and not entries[at - 1].turns[0].text for at in results)
    asked = sum(
        at + 1 < len(roles) and roles[at + 1] == "assistant" and not entries[at + 1].turns[0].text for at in results
    )
    return None if asks == asked else OLDEST_FIRST if asks > asked else NEWEST_FIRST


def user_speaks_last(entries: Sequence[Entry]) -> bool:
    """Return whether an assistant stands first and a user last: a hint, but no proof, that the newest is first."""
    return entries[0].turns[0].role == "assistant" and entries[-1].turns[-1].role == "user"


def sorted_entries(entries: Sequence[Entry]) -> list[Entry] | None:
    """Return entries of a container without an order by their times or indexes; None if some have none."""
    places = [entry.place for entry in entries]
    if None in places or (len(set(places)) == 1 and len(places) > 1):
        return None
    return sorted(entries, key=lambda entry: entry.place or 0.0)


def in_order(entries: Sequence[Entry], *, ordered: bool = False) -> Iterator[Turn | Note]:
    """Yield the messages of entries, oldest first, with a note if their content does not show the order.

    Args:
        entries: The messages as they stand in their key.
        ordered: Whether they are known to stand oldest first.
    """
    order = OLDEST_FIRST if ordered else order_of(entries)
    if order == UNKNOWN_ORDER:
        order = NEWEST_FIRST if user_speaks_last(entries) else OLDEST_FIRST
        shown = "the last element first" if order == NEWEST_FIRST else "as they are stored"
        yield Note(f"the order of the messages is not known: no time, tool call or system message shows it ({shown})")
    for entry in entries[::-1] if order == NEWEST_FIRST else entries:
        yield from entry.turns
