"""Read any JSON object that is a message, whatever its fields are called.

The names are those of OpenAI, Anthropic, Gemini, the AI SDK, LangChain, LangChain4j, Spring AI, Strands, Pydantic AI,
and of sessions that people build themselves. They are compared in lower case and without ``_`` and ``-``, so that
``userMessage``, ``user_message`` and ``UserMessage`` are one name.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from memkit.formats.model import Tool, Turn, a_dict, a_list, one_of, seconds, text_or_none
from memkit.formats.parsing.chat import (
    CALL_PARTS,
    ROLES,
    answered,
    calls,
    dumped,
    flatten,
    inner_text,
    part_text,
    plain_fields,
    plain_name,
    role_of,
    tool_in,
)
from memkit.formats.parsing.element_shapes import CALLS

_MORE_ROLES = {
    **{name.lower(): role for name, role in ROLES.items()},
    **dict.fromkeys(("customer", "client", "visitor", "me", "usermessage", "request", "question", "incoming", "inbound",
                     "received", "userprompt", "q", "u", "h"), "user"),
    **dict.fromkeys(("agent", "gpt", "assistantmessage", "response", "answer", "outgoing", "outbound", "sent", "reply",
                     "a"), "assistant"),
    **dict.fromkeys(("systemprompt", "instructions"), "system"),
    **dict.fromkeys(("toolresult", "toolresponse", "toolexecutionresult", "functionresponse", "toolreturn",
                     "functionexecutionresult"), "tool"),
}  # fmt: skip
"""Names that are roles only in a field for a role."""
_MODEL = re.compile(r"(?:chat)?gpt|claude|gemini|llama|mistral|copilot")
"""A message by such a sender is the assistant's: ``gpt-4o``, ``Claude``."""
_ROLE_FIELDS = ("role", "messagerole", "type", "messagetype", "sendertype", "senderrole", "usertype", "sender",
                "author", "from", "speaker", "event", "kind", "source", "direction")  # fmt: skip
_PERSON_FIELDS = ("role", "sender", "author", "from", "speaker", "senderid", "authorid")
_ROLE_WORDS = re.compile(r"[^a-z]+|message|msg")
"""What stands beside the role in ``message.user`` and ``bot_msg``."""
_SHORTEST_WORD = 2
"""``u2`` is a user's id."""
_FLAGS = {"isuser": "user", "fromuser": "user", "ishuman": "user", "isai": "assistant", "isassistant": "assistant",
          "isme": "assistant", "isbot": "assistant", "bot": "assistant"}  # fmt: skip
_DIRECTIONS = {"in": "user", "out": "assistant"}
_OTHER_SIDE = {"user": "assistant", "assistant": "user"}
_TEXT_FIELDS = ("content", "text", "message", "parts", "body", "contents", "blocks", "msg", "value", "utterance",
                "items", "payload", "data")  # fmt: skip
_TIME_FIELDS = ("createdat", "timestamp", "ts", "time", "date", "datetime", "sentat", "datesent", "at", "created",
                "createtime", "timestampms", "senton")  # fmt: skip
_ORDER_FIELDS = (*_TIME_FIELDS, "index", "i", "seq", "sequence", "order", "position", "turn", "n", "no")
_ID_FIELDS = ("id", "messageid", "uuid", "msgid")
_INNER_FIELDS = ("message", "data", "kwargs", "payload", "msg", "value", "content", "item")
_CALL_FIELDS = ("toolcalls", "toolexecutionrequests", "invalidtoolcalls")
_RESULT_FIELDS = ("toolresponses", "responses", "toolresults")
_NO_TEXT = re.compile(r".*id|model|.*name|status|lang\w*|channel|platform|version|.*reason|session|thread|topic|title|"
                      r"conversation|.*type|.*role|.*hash")  # fmt: skip
"""Fields beside the text of a message: if one text is left, it is the message's."""
_SPOKEN = r"(?:message|msg|inputs?|query|prompt|text|question|content|utterance|outputs?|response|reply|answer)"
_ASKED = re.compile(
    rf"(?:prompt|question|query|utterance|instruction|inputs?|request|q)(?:text)?|(?:user|human|customer|client){_SPOKEN}?"
)
_ANSWERED = re.compile(
    r"(?:response|answer|outputs?|completion|reply|generation|fulfillment|a)(?:text)?|"
    rf"(?:assistant|ai|bot|llm|agent|gpt|chatbot|model){_SPOKEN}?"
)
_LESS_LIKELY = ("user", "customer", "client", "model", "agent")
"""Beside a question or an answer these may be the name of a person or of a model."""
_SHORTEST_ALONE = 2
"""``{"q": …, "a": …}`` is a pair; one field of one letter may be anything."""
_PLAIN_FIELDS = frozenset({"role", "content", "id"})
_RESULT_PARTS = frozenset({"toolresult", "functionresult", "functionresponse", "toolresponse", "toolreturn"})
_DONE_STATES = ("result", "output-available", "output-error")
_TRANSCRIPT_CHARS = 1 << 20
_STAMP = r"(?:[\[(]?\d[\d:.,/T+ -]{3,28}[AP]?M?Z?[\])]?[ -]{1,3})?"
"""The time before a line of a transcript: ``[10:02]``, ``2026-11-28 10:02:03 -``."""
_BEFORE, _AFTER = r"[\s*\[<]{0,8}", r"[*\]>]{0,8}\s{0,8}"
"""What stands around a speaker's name; bounded, because a hostile line must not be read once for each character."""
_SPOKEN_LINE = re.compile(rf"({_STAMP}){_BEFORE}(\w[\w ]{{0,20}}?){_AFTER}[:|][*_]{{0,3}}\s*(.*)", re.DOTALL)
_LINE_START = re.compile(rf"^(?={_STAMP}[*\[<]{{0,8}}\w[\w ]{{0,20}}?{_AFTER}:)", re.MULTILINE)


def any_role(value: Any) -> str:
    """Return a role however it is written: ``USER``, ``TOOL_EXECUTION_RESULT``, ``customer``."""
    if not isinstance(value, str):
        return "other"
    plain = plain_name(value.strip())
    if role := _MORE_ROLES.get(plain) or ("assistant" if _MODEL.match(plain) else None):
        return role
    words = [word for word in _ROLE_WORDS.split(plain) if len(word) >= _SHORTEST_WORD]
    return _MORE_ROLES.get(words[0], "other") if len(words) == 1 else "other"


def read_any(value: dict[str, Any], key: str) -> Sequence[Turn] | str:
    """Return an object's messages, whatever its fields are called, or why it is not a message."""
    return _plain(value, key) or _messages(_unwrapped(value), key) or "no field of it gives a role and a text"


def messages_of(value: Mapping[str, Any], key: str) -> tuple[list[Turn], float | None]:
    """Return the messages of one JSON object: none, one, or several (a pair, a call with its result).

    Args:
        value: The object, with whatever field names.
        key: The Redis key that it comes from.

    Returns:
        The messages, and the number that orders them among others, a time or an index, if the object has one.
    """
    if plain := _plain(value, key):
        return plain, None
    fields = _unwrapped(value)
    turns = _messages(fields, key)
    return turns, _place(fields, value) if turns else None


def _plain(value: Mapping[str, Any], key: str) -> list[Turn]:
    """Return a message that has nothing but a role, a content and an id: most have nothing else."""
    role = role_of(value.get("role")) if value.keys() <= _PLAIN_FIELDS else "other"
    if role in ("other", "tool") or not isinstance(value.get("content"), str):
        return []
    return [Turn(role, value["content"], (), None, text_or_none(value.get("id")), key)]


def _messages(fields: Mapping[str, Any], key: str) -> list[Turn]:
    role = _role(fields)
    if role is None:
        return _item(fields, key) or _pair(fields, key)
    names = [name for name in _TEXT_FIELDS if name in fields and isinstance(fields[name], str | list | dict)]
    name = next((name for name in names if fields[name]), names[0] if names else None)
    # The AI SDK repeats a text in ``parts``, or has the calls beside it; LangChain and llama-index keep OpenAI's form.
    parts = [_taken_apart(fields[each]) for each in (name, "parts", "toolinvocations") if each and each in fields]
    extra = plain_fields(a_dict(fields.get("additionalkwargs")))
    made, results = _calls_of(fields, extra, parts), _results_of(fields, parts)
    text = parts[0].text if name else ""
    if name is None and not made and not results and "content" not in fields:
        only = _only_text(fields)
        if only is None:
            return _pair(fields, key)
        text = fields[only]
    if role == "tool" and not results:
        tool, made = answered({**extra, **fields}), []
        own = fields.get("id") if "toolname" in fields else None  # LangChain4j's id of a result is the call's
        results, text = [(tool if tool.call_id else Tool(tool.name, text_or_none(own)), text)], ""
    instructions = [Turn("system", each, (), None, None, key) for part in parts[:1] for each in part.instructions]
    at_s = _time(fields)
    uid = next((found for name in _ID_FIELDS if name in fields and (found := text_or_none(fields[name]))), None)
    spoken = [Turn(role, text, tuple(made), at_s, uid, key)]
    if (results or instructions) and not text and not made:
        spoken = []
    replies = [Turn("tool", result, (tool,), at_s, None, key) for tool, result in results]
    if not spoken and len(replies) == 1 and "toolname" not in fields:
        replies[0] = replies[0]._replace(uid=uid)
    # An assistant's answer comes before its results, a user's text after.
    return [*instructions, *spoken, *replies] if role == "assistant" else [*instructions, *replies, *spoken]


class _Parts(NamedTuple):
    """A content taken apart: its text, the calls in it, the results in it with their texts, and system prompts."""

    text: str
    calls: list[Tool]
    results: list[tuple[Tool, str]]
    instructions: list[str]


def _calls_of(fields: Mapping[str, Any], extra: Mapping[str, Any], parts: Sequence[_Parts]) -> list[Tool]:
    """Return a message's calls: from fields of their own, else from its parts, else from OpenAI's older fields."""
    made = [tool for field in _CALL_FIELDS if field in fields for tool in calls(fields[field])]
    made = made or next((each.calls for each in parts if each.calls), [])
    if made or not (extra or "functioncall" in fields):
        return made
    return list(calls([*a_list(extra.get("toolcalls")), extra.get("functioncall"), fields.get("functioncall")]))


def _results_of(fields: Mapping[str, Any], parts: Sequence[_Parts]) -> list[tuple[Tool, str]]:
    """Return the results of tools in a message: from fields of their own, else from its parts."""
    answers = [each for field in _RESULT_FIELDS if field in fields for each in a_list(fields[field])]
    plain = [plain_fields(each) for each in answers if isinstance(each, dict)]
    found = [(tool_in(each), _result_text(each)) for each in plain]
    return found or next((each.results for each in parts if each.results), [])


def _taken_apart(content: Any) -> _Parts:
    if isinstance(content, dict) and isinstance(content.get("parts"), list):
        content = content["parts"]
    if not isinstance(content, list):
        return _Parts(_text_of(content) or "", [], [], [])
    texts: list[str] = []
    made: list[Tool] = []
    results: list[tuple[Tool, str]] = []
    prompts: list[str] = []
    for part in content:
        if isinstance(part, dict) and part.get("type", part.get("block_type")) == "text" and "text" in part:
            texts.append(inner_text(part) or "")  # most parts are texts
            continue
        kind, inner = _tool_part(part)
        if kind:
            if kind != "result":
                made.append(tool_in(inner))
            if kind != "call":
                results.append((tool_in(inner), _result_text(inner)))
        elif (text := _text_of(part)) is not None:
            is_prompt = isinstance(part, dict) and part.get("part_kind") == "system-prompt"  # Pydantic AI
            (prompts if is_prompt else texts).append(text)
    return _Parts("\n".join(texts), made, results, prompts)


def _text_of(part: Any) -> str | None:
    """Return one part as text or mark; None for a tool call, and for a step's mark."""
    if isinstance(part, dict) and "text" not in part and isinstance(text := plain_fields(part).get("text"), str):
        return text
    return part_text(part)


def _tool_part(part: Any) -> tuple[str, Mapping[str, Any]]:
    """Return what a part is (``call``, ``result``, both, or nothing), and its fields with plain names."""
    fields = plain_fields(a_dict(part))
    kind = next((fields[name] for name in ("type", "partkind", "blocktype") if isinstance(fields.get(name), str)), None)
    if kind is None and isinstance(fields.get("name"), str) and ("arguments" in fields or "callid" in fields):
        return ("call" if "arguments" in fields else "result"), fields  # AutoGen
    plain = plain_name(kind or "")
    if plain in _RESULT_PARTS or plain in CALL_PARTS:
        return ("result" if plain in _RESULT_PARTS else "call"), fields
    if (
        plain == "toolinvocation"
        or (kind is None and "state" in fields and "toolname" in fields)
        or (plain.startswith("tool") and "toolcallid" in fields)
    ):
        inner = {"toolname": (kind or "").removeprefix("tool-")} | fields
        inner |= plain_fields(a_dict(fields.get("toolinvocation")))
        return ("call with its result" if inner.get("state") in _DONE_STATES else "call"), inner
    for name, inner in fields.items():  # Gemini and Bedrock name the part by its one field
        if isinstance(inner, dict) and (name in _RESULT_PARTS or name in CALL_PARTS):
            return ("result" if name in _RESULT_PARTS else "call"), plain_fields(inner)
    return "", {}


def _result_text(part: Mapping[str, Any]) -> str:
    names = ("content", "output", "result", "response", "responsedata", "contents", "text", "outputs", "items")
    value = next((part[name] for name in names if part.get(name) is not None), None)
    if isinstance(value, dict):
        # A plain result is wrapped by Gemini and by the AI SDK; anything else is the tool's own object.
        alone = next((value[name] for name in ("result", "output", "value", "text") if name in value), None)
        return dumped(alone) if alone is not None and len(value) <= 2 else dumped(value)
    if isinstance(value, list) and all(isinstance(each, dict | str) for each in value):
        return flatten(value)
    return dumped(value)


def _item(fields: Mapping[str, Any], key: str) -> list[Turn]:
    """Return a call or a result of the Responses API (``function_call``, ``function_call_output``)."""
    kind, call_id, uid = fields.get("type"), text_or_none(fields.get("callid")), text_or_none(fields.get("id"))
    if not isinstance(kind, str):
        return []
    if kind.endswith("_call_output"):
        return [Turn("tool", _result_text(fields), (Tool(None, call_id),), _time(fields), uid, key)]
    if kind in CALLS or (kind.endswith("_call") and call_id):
        tool = Tool(text_or_none(fields.get("name")), call_id or uid)
        call = Turn("assistant", "", (tool,), _time(fields), uid, key)
        result = next((fields[name] for name in ("output", "error") if fields.get(name) is not None), None)  # MCP's
        return [call] if result is None else [call, Turn("tool", dumped(result), (tool,), call.at_s, None, key)]
    return []


def _unwrapped(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the fields of the message itself if it is wrapped (LangChain's ``data``, Strands' ``message``)."""
    fields = plain_fields(value)
    if "role" in fields:
        return fields
    for name in _INNER_FIELDS:
        if isinstance(fields.get(name), dict):
            inner = plain_fields(fields[name])
            if not any(field in inner for field in ("role", *_TEXT_FIELDS[:4])):
                continue
            outer = {key: each for key, each in fields.items() if key != name}
            if name == "kwargs":  # LangChain's constructor form: the class ends the path that is its id
                path = a_list(fields.get("id"))
                outer = {"type": path[-1]} if path and any_role(path[-1]) != "other" else {}
            return {**inner, **outer} if "type" in outer and "role" not in inner else {**outer, **inner}
    return fields


def _role(fields: Mapping[str, Any]) -> str | None:
    found = (_role_in(fields[name]) for name in _ROLE_FIELDS if name in fields)
    if role := next((each for each in found if each != "other"), None) or _flagged(fields):
        return role
    if one_of(fields.get("direction"), _DIRECTIONS):
        return _DIRECTIONS[fields["direction"]]
    if not any(_is_text(fields[name]) for name in _TEXT_FIELDS if name in fields):
        return None
    others = (
        role_of(each.lower()) for name, each in fields.items() if name not in _TEXT_FIELDS and isinstance(each, str)
    )
    if role := next((each for each in others if each != "other"), None):  # a field that holds nothing but a role
        return role
    if any(isinstance(fields.get(name), str | int) for name in _PERSON_FIELDS):
        return "other"
    if fields.get("botid"):
        return "assistant"
    answers = any(_side(name) == "assistant" for name in fields)
    return "user" if isinstance(fields.get("user"), str) and not answers else None


def _is_text(value: Any) -> bool:
    """Return whether a content is text, or has one in it: a list of anything else may be a cart."""
    if isinstance(value, list):
        return any(map(_is_text, value))
    return isinstance(value, str) or (isinstance(value, dict) and inner_text(value) is not None)


def _role_in(value: Any) -> str:
    if not isinstance(value, dict):
        return any_role(value)
    inner = plain_fields(value)
    return _flagged(inner) or any_role(next(filter(None, map(inner.get, ("role", "label", "type"))), None))


def _flagged(fields: Mapping[str, Any]) -> str | None:
    """Return the role that a flag such as ``isBot`` gives; ``isMe`` that is not set gives none."""
    for name, role in _FLAGS.items():
        flag = fields.get(name)
        if flag is True or (flag is False and name != "isme"):
            return role if flag else _OTHER_SIDE[role]
    return None


def _only_text(fields: Mapping[str, Any]) -> str | None:
    """Return the one field that can be the text, of an object that has none with a usual name."""
    if not fields.keys().isdisjoint(_TEXT_FIELDS):
        return None
    known = {*_ROLE_FIELDS, *_TIME_FIELDS, *_ID_FIELDS}
    left = [
        name
        for name, each in fields.items()
        if isinstance(each, str) and name not in known and not _NO_TEXT.fullmatch(name) and any_role(each) == "other"
    ]
    return left[0] if len(left) == 1 else None


def _pair(fields: Mapping[str, Any], key: str) -> list[Turn]:
    """Return a question and its answer (``prompt`` and ``response``), or the one that its only field names."""
    texts = [name for name, value in fields.items() if value is None or _is_content(value)]
    asked = _likeliest([name for name in texts if _side(name) == "user" and fields[name] is not None])
    reply = _likeliest([name for name in texts if _side(name) == "assistant"])
    if reply and not asked:
        asked = next((name for name in _TEXT_FIELDS[:3] if isinstance(fields.get(name), str)), None)
    if not (asked and reply) and (len(fields) > 1 or len(asked or reply or "") < _SHORTEST_ALONE):
        return []
    question, answer = fields[asked] if asked else None, fields[reply] if reply else None
    both = [(question, answer)]
    if isinstance(question, list) and isinstance(answer, list) and len(question) == len(answer):
        both = list(zip(question, answer, strict=True))
    at_s = _time(fields)
    return [
        Turn(role, flatten(text), (), at_s or _time(plain_fields(a_dict(text))), None, key)
        for pair in both
        for role, text in zip(("user", "assistant"), pair, strict=True)
        if text is not None
    ]


@lru_cache(maxsize=4_096)
def _side(name: str) -> str:
    """Return which side of a pair a field of this name holds: the user's, the assistant's, or none."""
    return "user" if _ASKED.fullmatch(name) else "assistant" if _ANSWERED.fullmatch(name) else ""


def _likeliest(names: list[str]) -> str | None:
    return min(names, key=lambda name: name in _LESS_LIKELY, default=None)


def _is_content(value: Any) -> bool:
    if isinstance(value, dict):
        return isinstance(value.get("text", value.get("content")), str)
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(each, str | dict) for each in value))


def _time(fields: Mapping[str, Any]) -> float | None:
    for name in () if fields.keys().isdisjoint(_TIME_FIELDS) else _TIME_FIELDS:
        value = fields.get(name)
        value = value.get("$date") if isinstance(value, dict) else value  # MongoDB's extended JSON
        if value is not None and (at_s := seconds(_number(value))) is not None:
            return at_s
    meta = fields.get("metadata")
    return _time(plain_fields(meta)) if isinstance(meta, dict) and "metadata" not in meta else None


def _place(fields: Mapping[str, Any], value: Mapping[str, Any]) -> float | None:
    if (at_s := _time(fields)) is not None:
        return at_s
    for name in _ORDER_FIELDS:
        found = _number(fields.get(name, value.get(name)))
        if type(found) in (int, float) and abs(found) <= sys.float_info.max:  # NaN orders nothing
            return float(found)
    return None


def _number(value: Any) -> Any:
    """Return a text that is a number as a number: fields of hashes and streams are texts."""
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,17}(\.\d{1,9})?", value, re.ASCII):
        return float(value)
    return value


def spoken_line(text: str, key: str) -> Turn | None:
    """Return the message of a line ``User: hello`` or ``user|hello``, or None."""
    found = _SPOKEN_LINE.fullmatch(text.lstrip())
    role = any_role(found[2]) if found else "other"
    if found is None or role == "other":
        return None
    return Turn(role, found[3].strip(), (), seconds(found[1].strip("[]() -")), None, key)


def spoken_lines(text: str, key: str) -> list[Turn]:
    """Return the messages of a transcript, each of which begins a line; empty if it is not one."""
    parts = [part for part in _LINE_START.split(text[:_TRANSCRIPT_CHARS]) if part.strip()]
    found: list[Turn] = []
    for part in parts:
        turn = spoken_line(part, key)
        if turn:
            found.append(turn)
        elif found:
            found[-1] = found[-1]._replace(text=f"{found[-1].text}\n{part.strip()}")
        else:
            return []
    roles = {turn.role for turn in found}
    return found if "user" in roles and len(roles) > 1 else []  # settings have lines "model: …" and "system: …"
