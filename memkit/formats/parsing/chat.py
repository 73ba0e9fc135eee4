"""The vocabulary that stores share: roles, texts in parts, tool calls and results, and the field names people use.

``messages_of`` reads any JSON object that is a message, whatever its fields are called. The field names are those of
OpenAI, Anthropic, Gemini, the AI SDK, LangChain, LangChain4j, Spring AI, Strands and of sessions that people build
themselves.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from memkit.formats.model import Tool, Turn, a_dict, a_list, one_of, seconds, text_or_none

ROLES = {
    "user": "user", "human": "user", "HumanMessage": "user", "HumanMessageChunk": "user",
    "assistant": "assistant", "ai": "assistant", "AIMessage": "assistant", "AIMessageChunk": "assistant",
    "model": "assistant", "llm": "assistant", "bot": "assistant", "chatbot": "assistant",
    "system": "system", "developer": "system", "SystemMessage": "system", "SystemMessageChunk": "system",
    "tool": "tool", "function": "tool", "ToolMessage": "tool", "ToolMessageChunk": "tool",
    "FunctionMessage": "tool", "FunctionMessageChunk": "tool",
}  # fmt: skip
_MORE_ROLES = {
    "customer": "user", "client": "user", "visitor": "user", "me": "user", "usermessage": "user",
    "agent": "assistant", "gpt": "assistant", "claude": "assistant", "chatgpt": "assistant", "copilot": "assistant",
    "gemini": "assistant", "assistantmessage": "assistant", "aimessage": "assistant", "humanmessage": "user",
    "systemmessage": "system", "tool_result": "tool", "tool_response": "tool", "toolmessage": "tool",
    "tool_execution_result": "tool", "function_response": "tool",
}  # fmt: skip
"""Names that are roles only in a field for a role; in lower case, because some stores write ``USER``."""
_ROLE_FIELDS = ("role", "type", "messageType", "sender", "author", "from", "speaker", "event", "kind", "source")
_PERSON_FIELDS = ("role", "sender", "author", "from", "speaker")
_ASSISTANT_FLAGS = {"isBot": True, "is_bot": True, "isAI": True, "is_ai": True, "isMe": True, "isUser": False,
                    "is_user": False, "fromUser": False, "from_user": False}  # fmt: skip
_TEXT_FIELDS = ("content", "text", "message", "parts", "body", "contents", "blocks", "msg", "value")
_TIME_FIELDS = ("created_at", "createdAt", "timestamp", "ts", "time", "date", "datetime", "sent_at", "sentAt",
                "dateSent", "at", "created")  # fmt: skip
_ORDER_FIELDS = (*_TIME_FIELDS, "index", "_index", "i", "seq", "sequence", "order", "position", "turn", "n", "no")
_ID_FIELDS = ("id", "message_id", "messageId", "uuid", "_id")
_INNER_FIELDS = ("message", "data", "kwargs", "payload", "msg", "value")
_ASKED = ("prompt", "question", "user", "human", "input", "query", "user_message", "userMessage", "user_input",
          "request", "user_msg", "q")  # fmt: skip
_ANSWERED = ("response", "answer", "assistant", "ai", "bot", "output", "completion", "reply", "assistant_message",
             "assistantMessage", "ai_message", "aiMessage", "bot_message", "ai_response", "bot_response", "model", "a",
             "bot_msg")  # fmt: skip
_CALL_FIELDS = ("tool_calls", "toolCalls", "toolExecutionRequests", "invalid_tool_calls")
CALL_PARTS = frozenset({"tool_use", "tool_call", "function_call", "toolUse", "tool-call", "functionCall", "toolCall"})
_RESULT_PARTS = frozenset({"tool_result", "function_result", "tool-result", "toolResult", "function_response",
                           "functionResponse", "tool_response"})  # fmt: skip
_STEP_PARTS = frozenset({"step-start", "step-finish", "start-step", "finish-step"})
"""Marks that the AI SDK puts between the steps of an answer."""
_DONE_STATES = ("result", "output-available", "output-error")
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,32}", re.ASCII)
_SPOKEN_LINE = re.compile(r"\s*\**(\w[\w ]{0,20}?)\**\s*:\s*(.*)", re.DOTALL)


def role_of(value: Any) -> str:
    """Return one of user, assistant, tool, system, other."""
    return ROLES.get(value, "other") if isinstance(value, str) else "other"


def any_role(value: Any) -> str:
    """Return a role however it is written: ``USER``, ``TOOL_EXECUTION_RESULT``, ``customer``."""
    if not isinstance(value, str):
        return "other"
    lower = value.lower()
    return ROLES.get(value) or ROLES.get(lower) or _MORE_ROLES.get(lower, "other")


def flatten(content: Any) -> str:
    """Return content as one text: parts joined with a newline, each part that is not text as a mark (``[image]``)."""
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    if isinstance(content, list):
        return "\n".join(part for part in map(_part, content) if part is not None)
    if isinstance(content, dict):
        return _part(content) or ""
    return json.dumps(content)


def _part(part: Any) -> str | None:
    """Return one part as text or mark; None for a tool call, which is shown as such, and for a step's mark."""
    if not isinstance(part, dict):
        return flatten(part) if part is None or isinstance(part, str) else json.dumps(part)
    text = part.get("text", part.get("content"))
    if isinstance(text, str):
        return text
    if isinstance(part.get("parts"), list):
        return flatten(part["parts"])
    kind = part.get("type") or part.get("block_type") or next((key for key in part if part[key] is not None), "part")
    if one_of(kind, CALL_PARTS) or one_of(kind, _STEP_PARTS):
        return None
    return f"[{kind if isinstance(kind, str) and _WORD.fullmatch(kind) else 'part'}]"


def dumped(value: Any) -> str:
    """Return a tool's result as text: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)


def calls(raw: Any) -> tuple[Tool, ...]:
    """Return the tools of a list of calls, in OpenAI's form (``function.name``) or LangChain's (``name``)."""
    return tuple(_call(call) for call in a_list(raw) if isinstance(call, dict)) if raw else ()


def _call(call: Mapping[str, Any]) -> Tool:
    name = call.get("name") or a_dict(call.get("function")).get("name") or call.get("tool_name") or call.get("toolName")
    return Tool(text_or_none(name), _call_id(call))


def _call_id(call: Mapping[str, Any]) -> str | None:
    names = ("tool_call_id", "toolCallId", "tool_use_id", "toolUseId", "call_id", "callId", "id")
    return next((found for name in names if (found := text_or_none(call.get(name)))), None)


def call_parts(content: Any) -> tuple[Tool, ...]:
    """Return the calls among the parts of a content (Anthropic's ``tool_use``)."""
    if not isinstance(content, list):
        return ()
    return calls([part for part in content if isinstance(part, dict) and one_of(part.get("type"), CALL_PARTS)])


def chat_turn(message: dict[str, Any], key: str) -> Turn:
    """Return a message in the form of the chat APIs: role, content, tool_calls or tool_call_id."""
    role, content = role_of(message.get("role")), message.get("content")
    if role == "tool":
        tools: tuple[Tool, ...] = (answered(message),)
    else:
        tools = calls(message.get("tool_calls")) or call_parts(content)
    at_s = seconds(message.get("created_at", message.get("timestamp")))
    text = content if isinstance(content, str) else flatten(content)
    return Turn(role, text, tools, at_s, text_or_none(message.get("id")), key)


def answered(message: Mapping[str, Any]) -> Tool:
    """Return the call that a tool's message answers."""
    name = message.get("name") or message.get("tool_name") or message.get("toolName")
    uid = next((message[field] for field in ("tool_call_id", "toolCallId", "call_id") if message.get(field)), None)
    return Tool(text_or_none(name), text_or_none(uid))


class _Parts(NamedTuple):
    """A content taken apart: its text, the calls in it, and the results in it with their texts."""

    text: str
    calls: list[Tool]
    results: list[tuple[Tool, str]]


def _taken_apart(content: Any) -> _Parts:
    if isinstance(content, dict) and isinstance(content.get("parts"), list):
        content = content["parts"]
    if not isinstance(content, list):
        return _Parts(flatten(content), [], [])
    texts: list[str] = []
    made: list[Tool] = []
    results: list[tuple[Tool, str]] = []
    for part in content:
        kind, inner = _tool_part(part)
        if kind == "result":
            results.append((_call(inner), _result_text(inner)))
        elif kind:
            made.append(_call(inner))
            if kind == "call with its result":
                results.append((_call(inner), _result_text(inner)))
        elif (text := _part(part)) is not None:
            texts.append(text)
    return _Parts("\n".join(texts), made, results)


def _tool_part(part: Any) -> tuple[str, Mapping[str, Any]]:
    """Return what a part is (``call``, ``result``, both, or nothing), and its fields."""
    if not isinstance(part, dict):
        return "", {}
    kind = part.get("type") if isinstance(part.get("type"), str) else None
    if kind in _RESULT_PARTS:
        return "result", part
    if kind in CALL_PARTS:
        return "call", part
    if kind == "tool-invocation" or (kind and kind.startswith("tool-") and "toolCallId" in part):
        inner = {"toolName": (kind or "").removeprefix("tool-")} | part | a_dict(part.get("toolInvocation"))
        return ("call with its result" if inner.get("state") in _DONE_STATES else "call"), inner
    for field in part:  # Gemini and Bedrock name the part by its one field
        if field in _RESULT_PARTS and isinstance(part[field], dict):
            return "result", part[field]
        if field in CALL_PARTS and isinstance(part[field], dict):
            return "call", part[field]
    return "", {}


def _result_text(part: Mapping[str, Any]) -> str:
    names = ("content", "output", "result", "response", "responseData", "contents", "text")
    value = next((part[name] for name in names if part.get(name) is not None), None)
    if isinstance(value, dict):
        # A plain result is wrapped by Gemini and by the AI SDK; anything else is the tool's own object.
        alone = next((value[name] for name in ("result", "output", "value", "text") if name in value), None)
        return dumped(alone) if alone is not None and len(value) <= 2 else dumped(value)
    if isinstance(value, list) and all(isinstance(each, dict | str) for each in value):
        return flatten(value)
    return dumped(value)


def messages_of(value: Mapping[str, Any], key: str) -> list[Turn]:
    """Return the messages of one JSON object: none, one, or several (a pair, a call with its result).

    Args:
        value: The object, with whatever field names.
        key: The Redis key that it comes from.
    """
    if len(value) == 2 and isinstance(value.get("content"), str):  # most homemade sessions have nothing else
        plain = role_of(value.get("role"))
        if plain not in ("other", "tool"):
            return [Turn(plain, value["content"], (), None, None, key)]
    fields = _unwrapped(value)
    role = _role(fields)
    if role is None:
        return _item(fields, key) or _pair(fields, key)
    name = next((name for name in _TEXT_FIELDS if isinstance(fields.get(name), str | list | dict)), None)
    parts = _taken_apart(fields.get(name)) if name else _Parts("", [], [])
    made = [tool for field in _CALL_FIELDS for tool in calls(fields.get(field))] or parts.calls
    if not made:
        extra = a_dict(fields.get("additional_kwargs"))
        made = [*calls(extra.get("tool_calls")), *calls([fields["function_call"]] if "function_call" in fields else [])]
    results = parts.results + [(_call(each), _result_text(each)) for each in _responses(fields)]
    if name is None and not made and not results and not ("role" in fields and "content" in fields):
        return []
    text = parts.text
    if role == "tool" and not results:
        tool = answered(fields)
        own = fields.get("id") if "toolName" in fields else None  # LangChain4j's id of a result is the call's
        results, text = [(tool if tool.call_id else Tool(tool.name, text_or_none(own)), text)], ""
    return _ordered(fields, key, Turn(role, text, tuple(made)), results)


def _item(fields: Mapping[str, Any], key: str) -> list[Turn]:
    """Return a call or a result of the Responses API (``function_call``, ``function_call_output``)."""
    kind, call_id = fields.get("type"), text_or_none(fields.get("call_id"))
    if not isinstance(kind, str) or call_id is None:
        return []
    if kind.endswith("_call_output"):
        return [Turn("tool", _result_text(fields), (Tool(None, call_id),), _time(fields), None, key)]
    tool = Tool(text_or_none(fields.get("name")), call_id)
    return [Turn("assistant", "", (tool,), _time(fields), None, key)] if kind.endswith("_call") else []


def _ordered(fields: Mapping[str, Any], key: str, spoken: Turn, results: list[tuple[Tool, str]]) -> list[Turn]:
    """Return a message and the results in it: an assistant's answer comes before its results, a user's text after."""
    at_s = _time(fields)
    uid = next((found for name in _ID_FIELDS if (found := text_or_none(fields.get(name)))), None)
    answers = [Turn("tool", text, (tool,), at_s, None, key) for tool, text in results]
    said = [spoken._replace(at_s=at_s, uid=uid, key=key)] if spoken.text or spoken.tools or not answers else []
    if not said and len(answers) == 1 and "toolName" not in fields:
        answers[0] = answers[0]._replace(uid=uid)
    return [*said, *answers] if spoken.role == "assistant" else [*answers, *said]


def _responses(fields: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for name in ("toolResponses", "tool_responses", "responses", "tool_results"):
        yield from (each for each in a_list(fields.get(name)) if isinstance(each, dict))


def _unwrapped(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the fields of the message itself if it is wrapped (LangChain's ``data``, Strands' ``message``)."""
    if "role" in value:
        return value
    for name in _INNER_FIELDS:
        inner = value.get(name)
        if isinstance(inner, dict) and any(field in inner for field in ("role", *_TEXT_FIELDS[:4])):
            outer = {key: each for key, each in value.items() if key != name}
            path = value.get("id")
            if name == "kwargs" and isinstance(path, list) and path:  # LangChain's constructor form
                outer = {"type": path[-1]}
                inner = {key: each for key, each in inner.items() if key != "type"}
            return {**inner, **outer} if "type" in outer and "role" not in inner else {**outer, **inner}
    return value


def _role(fields: Mapping[str, Any]) -> str | None:
    """Return the role of a message; None if no field gives one."""
    for name in _ROLE_FIELDS:
        value = fields.get(name)
        if isinstance(value, str) and (role := any_role(value)) != "other":
            return role
        if isinstance(value, dict):
            found = _flagged(value) or any_role(value.get("role") or value.get("type"))
            if found != "other":
                return found
    if flagged := _flagged(fields):
        return flagged
    named = any(isinstance(fields.get(name), str) for name in _PERSON_FIELDS)
    return "other" if named and any(isinstance(fields.get(name), str | list) for name in _TEXT_FIELDS) else None


def _flagged(fields: Mapping[str, Any]) -> str | None:
    for name, assistant in _ASSISTANT_FLAGS.items():
        flag = fields.get(name)
        if flag is True or (flag is False and name not in ("isMe", "isBot", "is_bot")):
            return "assistant" if flag is assistant else "user"
    return "user" if fields.get("isBot") is False or fields.get("is_bot") is False else None


def _pair(fields: Mapping[str, Any], key: str) -> list[Turn]:
    """Return a question and its answer (``prompt`` and ``response``), or the one that its only field names."""
    asked = next((name for name in _ASKED if isinstance(fields.get(name), str | list)), None)
    reply = next(
        (name for name in _ANSWERED if isinstance(fields.get(name), str | list | None) and name in fields), None
    )
    alone = len(fields) == 1 and (asked or reply)
    if not alone and not (asked and reply):
        return []
    at_s = _time(fields)
    found = [Turn("user", flatten(fields[asked]), (), at_s, None, key)] if asked else []
    if reply and fields[reply] is not None:
        found.append(Turn("assistant", flatten(fields[reply]), (), at_s, None, key))
    return found


def _time(fields: Mapping[str, Any]) -> float | None:
    for name in _TIME_FIELDS:
        if (value := fields.get(name)) is not None and (at_s := seconds(_number(value))) is not None:
            return at_s
    meta = fields.get("metadata")
    return _time(meta) if isinstance(meta, dict) and meta is not fields and "metadata" not in meta else None


def place_of(value: Mapping[str, Any]) -> float | None:
    """Return a number that orders a message among others: its time, or its index."""
    fields = _unwrapped(value)
    if (at_s := _time(fields)) is not None:
        return at_s
    for name in _ORDER_FIELDS:
        found = _number(fields.get(name, value.get(name)))
        if type(found) in (int, float) and found == found:  # NaN orders nothing
            return float(found)
    return None


def _number(value: Any) -> Any:
    """Return a text that is a number as a number: fields of hashes and streams are texts."""
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,17}(\.\d{1,9})?", value, re.ASCII):
        return float(value)
    return value


def spoken_line(text: str, key: str) -> Turn | None:
    """Return the message of a line ``User: hello``, or None."""
    found = _SPOKEN_LINE.fullmatch(text)
    role = any_role(found[1]) if found else "other"
    return Turn(role, found[2].strip(), (), None, None, key) if found and role != "other" else None


def looks_like_chat(values: Iterable[Any]) -> bool:
    """Return whether at least half of the values are messages, and one is."""
    seen = [bool(isinstance(value, dict) and messages_of(value, "")) for value in values]
    return sum(seen) * 2 >= len(seen) > 0
