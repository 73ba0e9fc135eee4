"""Layouts that people write themselves: roles, texts, tools and order, as far as the content shows them."""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from codecs import BOM_UTF8
from pathlib import Path
from typing import Any

import pytest

from memkit.formats import recognise, unknown
from memkit.formats.model import Item, KeyOwner, Note, Problem, SessionValues, Turn
from memkit.formats.parsing.any_message import messages_of
from memkit.readonly.values import RedisValue

ASKED, ANSWERED = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}
BOTH = [("user", "hi"), ("assistant", "ho")]


def packed(value: Any) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def string(value: Any, name: str = "chat:1") -> RedisValue:
    return RedisValue(name, "string", data=packed(value), total=len(packed(value)))


def elements(*values: Any) -> RedisValue:
    return RedisValue("chat:1", "list", elements=list(map(packed, values)), total=len(values))


def fields(name: str = "chat:1", **values: Any) -> RedisValue:
    return RedisValue(name, "hash", fields={field: packed(value) for field, value in values.items()})


def decoded(*raws: RedisValue) -> list[Item]:
    assert [recognise(raw) for raw in raws] == [None] * len(raws)
    owner = KeyOwner(unknown.STORE, "1", "", unknown.STORE)
    return list(unknown.decode(SessionValues(owner, {raw.name: raw for raw in raws})))


def turns(items: list[Item]) -> list[tuple[str, str]]:
    return [(item.role, item.text) for item in items if isinstance(item, Turn)]


LAYOUTS = {
    "sender and message": elements({"sender": "user", "message": "hi"}, {"sender": "bot", "message": "ho"}),
    "author and body": elements({"author": "human", "body": "hi"}, {"author": "ai", "body": "ho"}),
    "from and text": elements({"from": "customer", "text": "hi"}, {"from": "BOT", "text": "ho"}),
    "type and text": elements({"type": "user", "text": "hi"}, {"type": "assistant", "text": "ho"}),
    "prompt and response": string([{"prompt": "hi", "response": "ho"}]),
    "user and assistant": string([{"user": "hi", "assistant": "ho"}]),
    "one role a field": string([{"user": "hi"}, {"assistant": "ho"}]),
    "lines": elements(b"User: hi", b"Assistant: ho"),
    "JSON lines": string(packed(ASKED) + b"\n" + packed(ANSWERED)),
    "gzip": string(gzip.compress(packed([ASKED, ANSWERED]))),
    "zlib elements": elements(zlib.compress(packed(ASKED)), zlib.compress(packed(ANSWERED))),
    "deflate": string(zlib.compress(packed([ASKED, ANSWERED]))[2:-4]),
    "base64": string(base64.b64encode(packed({"messages": [ASKED, ANSWERED]}))),
    "JSON in a JSON string": string(json.dumps([ASKED, ANSWERED])),
    "msgpack": string(b"\x92\x82\xa4role\xa4user\xa7content\xa2hi\x82\xa4role\xa9assistant\xa7content\xa2ho"),
    "nested object": string({"session": {"id": 1, "conversation": {"messages": [ASKED, ANSWERED]}}}),
    "numbered object": string({"0": ASKED, "1": ANSWERED}),
    "field of a hash": fields(history=[ASKED, ANSWERED], user=b"u1"),
    "numbered hash": fields(**{"10": ANSWERED, "9": ASKED}),
    "sorted set": RedisValue("chat:1", "zset", scores={json.dumps(ANSWERED): 2.0, json.dumps(ASKED): 1.0}),
    "stream of fields": RedisValue("chat:1", "stream", entries=[
        ("1795883377104-0", {"role": b"user", "content": b"hi"}),
        ("1795883377105-0", {"role": b"ai", "content": b"ho"})]),
    "stream of JSON": RedisValue("chat:1", "stream", entries=[
        ("1795883377104-0", {"data": packed(ASKED)}), ("1795883377105-0", {"data": packed(ANSWERED)})]),
    "mark before a document": string(BOM_UTF8 + packed({"messages": [ASKED, ANSWERED]})),
    "mark before gzipped JSON": string(gzip.compress(BOM_UTF8 + packed([ASKED, ANSWERED]))),
    "mark before JSON lines": string(BOM_UTF8 + packed(ASKED) + b"\n" + packed(ANSWERED)),
    "mark before elements": elements(BOM_UTF8 + packed(ASKED), BOM_UTF8 + packed(ANSWERED)),
    "mark before a field": fields(history=BOM_UTF8 + packed([ASKED, ANSWERED]), user=b"u1"),
    "mark in a stream": RedisValue("chat:1", "stream", entries=[
        ("1795883377104-0", {"data": BOM_UTF8 + packed(ASKED)}),
        ("1795883377105-0", {"data": BOM_UTF8 + packed(ANSWERED)})]),
    "line end before a document": string(b"\n " + packed([ASKED, ANSWERED])),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_homemade_layout_is_decoded(layout: str) -> None:
    assert turns(decoded(LAYOUTS[layout])) == BOTH


def test_a_key_a_message_is_ordered_by_number() -> None:
    keys = [fields("chat:1:10", role=b"assistant", content=b"ho"), fields("chat:1:9", role=b"user", content=b"hi")]
    assert turns(decoded(*keys)) == BOTH


CALL = {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "w", "input": {}}]}
RESULT = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "21"}]}


@pytest.mark.parametrize(
    "newest_first",
    [
        [RESULT, CALL, ASKED],
        [ANSWERED, RESULT, {"role": "assistant", "content": [{"type": "text", "text": "a"}, *CALL["content"]]}, ASKED],
        [ANSWERED | {"ts": 3}, ASKED | {"ts": 2}],
        [ANSWERED | {"timestamp": "2026-01-01T00:00:02Z"}, ASKED | {"timestamp": "2026-01-01T00:00:01Z"}],
        [ANSWERED, ASKED, {"role": "system", "content": "be kind"}],
    ],
    ids=["tool call", "tool call with a text", "index", "time", "system message"],
)
def test_the_content_shows_a_list_to_be_newest_first(newest_first: list[Any]) -> None:
    backwards = decoded(elements(*newest_first))
    assert turns(backwards) == turns(decoded(elements(*newest_first[::-1])))
    assert turns(backwards)[0][0] in ("user", "system")
    assert not [item for item in backwards if isinstance(item, Note)]


def test_an_order_that_nothing_shows_is_reported() -> None:
    for values in ([ASKED, ANSWERED], [ANSWERED, ASKED]):
        items = decoded(elements(*values))
        assert turns(items) == BOTH
        (note,) = [item for item in items if isinstance(item, Note)]
        assert "the order of the messages is not known" in note.message


UNREAD = {
    "object": string({"a": [1, 2], "b": "c"}),
    "one short field": string({"a": [1]}),
    "short names": elements({"r": 0, "t": "hi"}, {"r": 1, "t": "ho"}),
    "pairs without names": string([["hi", "ho"], ["q", "a"]]),
    "numbers and texts": string([[0, "hi"], [1, "ho"]]),
    "texts": string(["hi", "ho"]),
    "field of a hash": fields(user=b"u1", state={"a": [1]}),
    "member of a sorted set": RedisValue("chat:1", "zset", scores={'{"a":1}': 1.0}),
    "entry of a stream": RedisValue("chat:1", "stream", entries=[("1-0", {"data": b'{"a":1}'})]),
}


@pytest.mark.parametrize("what", UNREAD)
def test_json_without_messages_is_partly_decoded(what: str) -> None:
    (problem,) = decoded(UNREAD[what])
    assert isinstance(problem, Problem)
    assert (problem.cause, problem.message.split(":")[0]) == ("partly_decoded", "partly decoded")


def test_roles_that_are_numbers_leave_the_texts() -> None:
    items = decoded(elements({"role": 0, "text": "hi"}, {"role": 1, "text": "ho"}))
    assert turns(items) == [("other", "hi"), ("other", "ho")]
    assert [item.message[:16] for item in items if isinstance(item, Note)] == ["the order of the", "partly decoded: "]


def test_settings_are_no_transcript() -> None:
    assert turns(decoded(string(b"model: gpt-4o\nsystem: be kind\ntemperature: 1"))) == []


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (b"[" * 9_000 + b"]" * 9_000, "nested too deeply"),
        (b'{"n": ' + b"9" * 5_000 + b"}", "an integer of over 4,300 digits"),
    ],
)
def test_json_over_a_limit_is_not_called_text(payload: bytes, why: str) -> None:
    (note,) = decoded(string(payload))
    assert note == Note(f"partly decoded: the payload may be JSON, but is not read: {why}")


def test_lines_without_roles_are_partly_decoded() -> None:
    (note,) = decoded(elements(b"hi there", b"how are you"))
    assert note == Note("partly decoded: the payload is plain text, and shows no roles")


@pytest.mark.parametrize(
    ("payload", "name"),
    [(b"\xac\xed\x00\x05sr\x00\x11java.util.ArrayListx", "java"), (b'a:1:{i:0;s:2:"hi";}', "php"),
     (b'cart|a:1:{s:3:"sku";s:2:"A1";}uid|i:17;', "php"), (b'uid|i:17;cart|a:0:{}', "php"),
     (b"\x04\x08{\x06I\"\x09user\x06:\x06ETi\x16", "ruby marshal"),
     (b"gAAAAABrCwW06zwtDmNV0iq-uSEkKZDYzIETmcEh4SBQ-IrUHdCJnCMjgbCB4MH5qnRP5k-whYUc2pxD4Tn21Q==", "fernet")],
)  # fmt: skip
def test_a_serialised_object_is_named(payload: bytes, name: str) -> None:
    (note,) = [item for item in decoded(string(payload)) if isinstance(item, Note)]
    assert f"the payload looks like {name}" in note.message


@pytest.mark.parametrize("name", ["chat:1:messages", "message_store:1", "ag2:stream:1", "chat_messages|v2|1"])
def test_a_name_does_not_make_messages_a_librarys(name: str) -> None:
    assert recognise(elements(ASKED, ANSWERED)._replace(name=name)) is None


def test_a_hash_beside_the_messages_is_no_message() -> None:
    items = decoded(elements(ASKED, ANSWERED), fields("chat:1:meta", user=b"u1", title=b"x"))
    assert turns(items) == BOTH


ROLES = [
    "role=user/assistant",
    "role=human/ai",
    "role=USER/ASSISTANT",
    "role=customer/agent",
    "role=user/model",
    "Role=User/Bot",
    "type=human/ai",
    "type=request/response",
    "type=question/answer",
    "sender=user/bot",
    "sender=client/assistant",
    "author=me/gpt-4",
    "from=human/gpt",
    "who=user/bot",
    "actor=user/assistant",
    "name=user/assistant",
    "sender_type=user/bot",
    "senderType=user/bot",
    "messageType=USER/ASSISTANT",
    "direction=inbound/outbound",
    "direction=incoming/outgoing",
]
TEXTS = [
    "content",
    "text",
    "message",
    "body",
    "msg",
    "value",
    "utterance",
    "parts",
    "data",
    "payload",
    "txt",
    "c",
    "Content",
    "_content",
]
PAIRS = [
    "prompt/response",
    "question/answer",
    "user/assistant",
    "input/output",
    "human/ai",
    "user/bot",
    "query/response",
    "request/response",
    "q/a",
    "prompt/completion",
    "user_message/assistant_message",
    "userMessage/botMessage",
    "user_input/bot_response",
    "human_message/ai_message",
    "user_query/llm_response",
    "inputs/outputs",
    "instruction/output",
    "customer/agent",
    "User/Assistant",
    "userText/aiText",
    "message/reply",
    "text/answer",
]
NUMBERED = [
    {"0": ASKED, "1": ANSWERED},
    {"message_9": ASKED, "message_10": ANSWERED},
    {"1795884000": ASKED, "1795884001": ANSWERED},
    {"b": ASKED | {"ts": 1795884000}, "a": ANSWERED | {"ts": 1795884001}},
    {"1:user": b"hi", "2:assistant": b"ho"},
    {"user_0": b"hi", "assistant_0": b"ho"},
    {"0:role": b"user", "0:content": b"hi", "1:role": b"ai", "1:content": b"ho"},
    {"0": ASKED, "1": ANSWERED, "count": b"2", "owner": b"u1"},
]


@pytest.mark.parametrize("role", ROLES)
def test_role_field_of_any_name_is_read(role: str) -> None:
    name, _, (user, _, assistant) = (*role.partition("=")[:2], role.partition("=")[2].partition("/"))
    assert turns(decoded(elements({name: user, "content": "hi"}, {name: assistant, "content": "ho"}))) == BOTH


@pytest.mark.parametrize("text", TEXTS)
def test_text_field_of_any_name_is_read(text: str) -> None:
    assert turns(decoded(elements({"role": "user", text: "hi"}, {"role": "bot", text: "ho"}))) == BOTH


@pytest.mark.parametrize("more", [{}, {"timestamp": 1795884000, "model": "gpt-4o", "user_id": "u1"}], ids=["", "more"])
@pytest.mark.parametrize("pair", PAIRS)
def test_question_and_answer_of_any_names_are_read(pair: str, more: dict[str, Any]) -> None:
    asked, _, answered = pair.partition("/")
    assert turns(decoded(string([{asked: "hi", answered: "ho"} | more]))) == BOTH


@pytest.mark.parametrize("numbered", NUMBERED, ids=[" ".join(each) for each in NUMBERED])
def test_a_hash_with_a_name_for_each_message(numbered: dict[str, Any]) -> None:
    assert turns(decoded(fields(**numbered))) == BOTH


MORE = {
    "pairs of role and text": string([["user", "hi"], ["assistant", "ho"]]),
    "lines with a bar": elements(b"user|hi", b"assistant|ho"),
    "a transcript": string(b"Human: hi\nAI: ho"),
    "a version before it": string(b"v1:" + packed([ASKED, ANSWERED])),
    "an id before a member": RedisValue("chat:1", "zset", scores={"2:" + json.dumps(ANSWERED): 2.0,
                                                                  "1:" + json.dumps(ASKED): 1.0}),
    "scores below zero": RedisValue("chat:1", "zset", scores={json.dumps(ANSWERED): -2.0, json.dumps(ASKED): -1.0}),
    "messages by name": string({"m1": ASKED, "m2": ANSWERED}),
    "two lists": string({"user": ["hi"], "assistant": ["ho"]}),
    "Semantic Kernel": string([{"Role": {"Label": "user"}, "Items": [{"$type": "TextContent", "Text": "hi"}]},
                               {"Role": {"Label": "assistant"}, "Items": [{"Text": "ho"}]}]),
    "Pydantic AI": string([{"parts": [{"content": "hi", "part_kind": "user-prompt"}], "kind": "request"},
                           {"parts": [{"content": "ho", "part_kind": "text"}], "kind": "response"}]),
    "Haystack": string([{"_role": "user", "_content": [{"text": "hi"}]},
                        {"_role": "assistant", "_content": [{"text": "ho"}]}]),
    "Slack": elements({"user": "U1", "text": "hi"}, {"bot_id": "B1", "text": "ho"}),
    "an author beside them": string({"author": "bob", "type": "agent", "items": [ASKED, ANSWERED]}),
    "pairs by their places": string({"history": {"internal": [["hi", "ho"]], "visible": [["hi", "ho"]]}}),
    "a Markdown transcript": string(b"**User:** hi\n\n**Assistant:** ho"),
    "times before the lines": string(b"[2026-11-28 10:00:00] User: hi\n[2026-11-28 10:00:05] Bot: ho"),
    "a role in a longer word": elements({"event": "message.user", "text": "hi"}, {"event": "bot_msg", "text": "ho"}),
    "a text in an object": elements({"from": "user", "text": {"body": "hi"}}, {"from": "bot", "text": {"value": "ho"}}),
    "a flag in an object": elements({"author": {"bot": False}, "content": "hi"},
                                    {"author": {"bot": True}, "content": "ho"}),
    "in and out": elements({"direction": "in", "text": "hi"}, {"direction": "out", "text": "ho"}),
    "a pair of objects": string([{"user": {"text": "hi"}, "assistant": {"text": "ho"}}]),
    "messages with marks": string({"memory": {"content": [[ASKED, ["pinned"]], [ANSWERED, []]]}}),
    "equal scores and times": RedisValue("chat:1", "zset", scores={json.dumps(ANSWERED | {"ts": 2}): 0.0,
                                                                   json.dumps(ASKED | {"ts": 1}): 0.0}),
    "Jackson's name of a class": string({"chat": ["java.util.ArrayList", [ASKED, ANSWERED]]}),
    "texts as parts": elements({"role": "user", "content": ["hi"]}, {"role": "bot", "content": ["ho"]}),
    "JSON in texts": string([json.dumps(ASKED), json.dumps(ANSWERED)]),
    "one id for all": elements(*(each | {"id": "u1"} for each in (ASKED, ANSWERED, ASKED, ANSWERED))),
}  # fmt: skip


@pytest.mark.parametrize("layout", MORE)
def test_another_homemade_layout_is_decoded(layout: str) -> None:
    items = decoded(MORE[layout])
    assert turns(items)[:2] == BOTH
    assert not [item for item in items if isinstance(item, Problem)]


TOOL_CALLS = json.loads(Path(__file__).with_name("tool_calls.json").read_text("utf-8"))
"""One dialogue in the forms of the chat APIs and of libraries: a question, a call, its result and an answer."""


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("form", TOOL_CALLS)
def test_every_form_of_a_tool_call(form: str, newest_first: bool) -> None:
    items = decoded(elements(*TOOL_CALLS[form][:: -1 if newest_first else 1]))
    shown = [(item.role, item.text, [tool.name for tool in item.tools]) for item in items if isinstance(item, Turn)]
    assert shown == [("user", "hi", []), ("assistant", "", ["w"]), ("tool", "21", ["w"]), ("assistant", "done", [])]
    # An element that has the call and its result does not show the order.
    assert not [item for item in items if isinstance(item, Problem if form == "aisdk v5" else Problem | Note)]


def test_tool_calls_beside_a_text() -> None:
    call = {"state": "result", "toolCallId": "t", "toolName": "w", "args": {}, "result": "21"}
    items = decoded(elements(ASKED, {"role": "assistant", "content": "ho", "toolInvocations": [call]}))
    assert turns(items) == [*BOTH, ("tool", "21")]


@pytest.mark.parametrize("empty", [[], {}, {"messages": [], "user": "u1"}])
def test_an_empty_conversation_is_no_problem(empty: Any) -> None:
    (note,) = decoded(string(empty))
    assert note == Note("no messages are stored in the session")


def test_results_of_calls_that_are_not_stored() -> None:
    result = {"role": "tool", "content": "21", "tool_call_id": "t"}
    stored = decoded(elements(ASKED, {"role": "assistant", "content": ""}, result))
    lost = decoded(elements(result, ASKED))
    assert [item.cause for item in stored if isinstance(item, Problem)] == []
    assert [item.cause for item in lost if isinstance(item, Problem)] == ["orphan_tool_result"]


def test_equal_scores_show_no_order() -> None:
    tied = RedisValue("chat:1", "zset", scores={json.dumps(ANSWERED): 1.0, json.dumps(ASKED): 1.0})
    (note,) = [item.message for item in decoded(tied) if isinstance(item, Note)]
    assert note == "the order of the messages is not known if their scores are equal: 1 pair of them"


def test_a_sender_without_a_role_is_shown() -> None:
    both = [{"source": "user", "content": "hi", "kind": "x"}, {"source": "planner", "content": "ho", "kind": "x"}]
    assert turns(decoded(string({"thread": both}))) == [("user", "hi"), ("other", "ho")]


def test_cut_element_is_reported() -> None:
    items = decoded(elements(ASKED, ANSWERED, packed(ASKED)[:-4], ANSWERED))
    assert [item.cause for item in items if isinstance(item, Problem)] == ["corrupt"]


def test_elements_that_are_no_messages_are_counted() -> None:
    items = decoded(elements(ASKED, [1], ANSWERED | {"ts": 2}))
    assert items[-1] == Note("1 element of 3 could not be read as messages")


@pytest.mark.parametrize(
    "value",
    [
        {"cart": [{"sku": "a", "count": 2}]},
        {"flags": {"beta": True}},
        [["a", "b"]],
        [1, 2],
        {"user": "u1", "items": [{"sku": "a"}, {"sku": "b"}]},
        {"passport": {"user": "u1"}},
        {"users": [{"user": "u1"}, {"user": "u2"}]},
        {"role": "admin", "message": "away"},
        {"type": "like", "from": "u2", "post": "p1"},
        {"history": [["2026-01-01", "100"], ["2026-01-02", "101"]]},
        {"request": {"url": "/", "body": "a"}, "response": {"status": 200, "body": "b"}},
        [{"source": "system", "message": "started"}, {"source": "system", "message": "stopped"}],
    ],
)
def test_what_is_no_conversation_shows_none(value: Any) -> None:
    assert turns(decoded(string(value))) == []


@pytest.mark.parametrize("field", ["created_at", "index"])
def test_integer_beyond_floats_orders_nothing(field: str) -> None:
    turns, place = messages_of({"role": "user", "content": "hi", field: 10**400}, "k")
    assert ([turn.text for turn in turns], turns[0].at_s, place) == (["hi"], None, None)
