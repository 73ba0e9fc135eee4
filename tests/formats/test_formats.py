"""The decoders, without a server: captured sessions of real libraries, damaged ones, and bytes that are hostile."""

from __future__ import annotations

import ast
import base64
import bz2
import contextlib
import gzip
import json
import pickle
import re
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stress.fuzz_formats import Fuzzer, value_of

from memkit import formats, render
from memkit.formats import agent_framework_redis, capture, store_layouts, unknown
from memkit.formats.model import (
    ConfiguredTtl,
    Item,
    KeyOwner,
    Note,
    Problem,
    SessionValues,
    Tool,
    Turn,
    quoted,
    unquoted,
)
from memkit.formats.parsing import bounded_json, chat, encodings, msgpack
from memkit.formats.parsing.any_message import messages_of
from memkit.formats.parsing.bounded_json import parse
from memkit.formats.parsing.dialogue_checks import Dialogue
from memkit.policy import ExpiryPolicy
from memkit.readonly.values import RedisValue, to_bytes, to_name

EVERY_CAPTURE = capture.names()
HOMEMADE = [name for name in EVERY_CAPTURE if capture.capture(name)["store"] == "unknown"]
UNREADABLE = ["django-session", "homemade-pickle", "openai-agents-encrypted"]
"""Serialised objects, which are never loaded, and texts that only the application can decrypt."""
CAPTURES = [
    name
    for name in EVERY_CAPTURE
    if name not in (*HOMEMADE, *UNREADABLE) and capture.capture(name)["session_id"] == "sess-A"
]
IDS = [
    "a:b",
    "a/b",
    "{a}",
    "a{b}c",
    "🧠",
    "a*b?[c]",
    "with space",
    "new\nline",
    "Ünï",
    "back\\slash",
    "x" * 200,
    ":",
    "a::b",
    "checkpoint:1",
    "checkpoint_latest:1",
    "write_registry:x",
    "cp:1",
]


def raws_of(name: str, session: str = "sess-A") -> list[RedisValue]:
    """Return a capture's keys, written for another session id."""
    kept = capture.capture(name)
    for entry in kept["keys"]:
        encoded = agent_framework_redis.encoded("sess-A")
        entry["key"] = entry["key"].replace(encoded, agent_framework_redis.encoded(session)).replace("sess-A", session)
        entry["value"] = _renamed(entry["value"], session, in_json=entry["type"] in ("string", "ReJSON-RL", "list"))
    return [value_of(entry) for entry in kept["keys"]]


def _renamed(value: Any, session: str, *, in_json: bool) -> Any:
    if isinstance(value, str):
        # A pointer is a bare key, everything else that is a string is JSON.
        escaped = json.dumps(session, ensure_ascii=False)[1:-1] if in_json and value[:1] == "{" else session
        return value.replace("sess-A", escaped)
    if isinstance(value, list):
        return [_renamed(each, session, in_json=in_json) for each in value]
    if isinstance(value, dict):
        return {
            _renamed(key, session, in_json=False): _renamed(each, session, in_json=False) for key, each in value.items()
        }
    return value


def known_of(raws: Iterable[RedisValue], wanted: str | None = "sess-A") -> SessionValues:
    raws = list(raws)
    owners = [owner for raw in raws if (owner := formats.recognise(raw, wanted))]
    owner = owners[0]
    keys: dict[str, RedisValue | None] = {raw.name: raw for raw in raws}
    for _ in range(4):
        wants = formats.format_of(owner.store).siblings(SessionValues(owner, keys))
        keys = {want.name: None for want in list(wants)} | keys
    return SessionValues(owner, keys)


def decoded(raws: Iterable[RedisValue], wanted: str | None = "sess-A") -> list[Item]:
    return list(formats.decode(known_of(raws, wanted)))


def turns(items: Iterable[Item]) -> list[Turn]:
    return [item for item in items if isinstance(item, Turn)]


def problems(items: Iterable[Item]) -> list[Problem]:
    return [item for item in items if isinstance(item, Problem)]


def _tool(message: Any) -> dict[str, str]:
    return {"tool": message.tools[0].name} if message.tools and message.tools[0].name else {}


def plainly(found: Iterable[Turn]) -> list[dict[str, Any]]:
    """Return messages as the captures state them."""
    return [{"role": message.role, "text": message.text} | _tool(message) for message in found]


def expected_of(name: str) -> list[dict[str, Any]]:
    """Return the messages of a capture; those of the first captures leave out the name of the tool that answers."""
    kept = capture.capture(name)["expected"]
    called = next((message["tool"] for message in kept if "tool" in message), None)
    answer = {"tool": called} if called and name != "langchain-redis" else {}  # it drops the calls, and so the name
    return [answer | message if message["role"] == "tool" else message for message in kept]


def list_of(name: str, *elements: Any) -> RedisValue:
    packed = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in elements]
    return RedisValue(name, "list", elements=packed, total=len(packed))


def test_there_is_a_capture_of_every_store() -> None:
    stores = {capture.capture(name)["store"] for name in EVERY_CAPTURE} - {"unknown"}
    assert {each.store for each in formats.FORMATS} <= stores


@pytest.mark.parametrize("name", CAPTURES)
def test_a_capture_decodes_to_its_messages(name: str) -> None:
    kept = capture.capture(name)
    stored = known_of(raws_of(name))
    items = list(formats.decode(stored))
    assert formats.store_name(stored) == kept["store"]
    assert plainly(turns(items)) == expected_of(name)
    assert problems(items) == []


@pytest.mark.parametrize("name", [name for name in CAPTURES if any("tool" in each for each in expected_of(name))])
def test_the_result_of_a_tool_is_linked_to_its_call(name: str) -> None:
    result = next(turn for turn in turns(decoded(raws_of(name))) if turn.role == "tool")
    assert result.tools[0].call_id == "call_1"
    assert result.tools[0].name == ("get_weather" if name != "langchain-redis" else None)


@pytest.mark.parametrize(("name", "session"), [(name, IDS[at % len(IDS)]) for at, name in enumerate(CAPTURES * 6)])
def test_id_with_any_characters_is_recognised(name: str, session: str) -> None:
    stored = known_of(raws_of(name, session), session)
    assert stored.owner.session == session
    items = list(formats.decode(stored))
    assert plainly(turns(items)) == expected_of(name)
    assert problems(items) == []


@pytest.mark.parametrize(
    "session", ["checkpoint:1", "write_keys_zset:1", "write_registry:x", "checkpoint_write:a:b", "lg:cp:1"]
)
@pytest.mark.parametrize("name", [name for name in CAPTURES if name.startswith("langgraph")])
def test_a_thread_with_the_name_of_a_key(name: str, session: str) -> None:
    own = [raw for raw in raws_of(name, session) if raw.name not in ("lg:seq", "lg:threads")]
    for wanted in (session, None):
        owners = [formats.recognise(raw, wanted) for raw in own]
        assert {(owner and owner.session, owner and owner.prefix) for owner in owners} == {
            (session, "lg:" if "plain" in name else "")
        }


@pytest.mark.parametrize("name", CAPTURES)
def test_an_id_is_never_taken_for_a_longer_one(name: str) -> None:
    owners = [formats.recognise(raw, "sess-A") for raw in raws_of(name, "sess-A:b")]
    assert [owner for owner in owners if owner and owner.session == "sess-A"] == []


def under(prefix: str, raws: Iterable[RedisValue]) -> list[RedisValue]:
    """Return keys with a prefix before each name, and before each name that a value holds."""
    put = {raw.name: prefix + raw.name for raw in raws}
    return [
        RedisValue(
            put[raw.name],
            raw.kind,
            data=to_bytes(put.get(to_name(raw.data), "")) or raw.data,
            elements=raw.elements,
            fields={put.get(name, name): value for name, value in raw.fields.items()},
            members=raw.members,
            scores={put.get(name, name): score for name, score in raw.scores.items()},
            total=raw.total,
        )
        for raw in raws
    ]


@pytest.mark.parametrize("name", CAPTURES)
def test_a_session_is_recognised_under_another_prefix(name: str) -> None:
    items = decoded(under("tenant-7:", raws_of(name)))
    assert plainly(turns(items)) == expected_of(name)
    assert problems(items) == []


@pytest.mark.parametrize(
    ("name", "key", "mine"),
    [
        ("langchain-community", "message_store:", "chats/"),
        ("openai-agents", "agents:session:", "assistant|"),
        ("ag2", "ag2:stream:", "events#"),
        ("google-adk-redis", "session:bot:u1:", "adk/"),
        ("redisvl", "chat:", "my-index:"),
        ("langchain-redis", "chat:", "history:"),
        ("agent-framework-redis", "chat_messages|v2|~none|bot|~none|redis_memory|", "other|"),
    ],
)
def test_an_own_prefix_is_recognised_by_the_payload(name: str, key: str, mine: str) -> None:
    raws = [raw._replace(name=raw.name.replace(key, mine)) for raw in raws_of(name)]
    assert plainly(turns(decoded(raws))) == expected_of(name)


# Of other stores no key names these, or the library itself lets them expire.
UNNAMED = ("spring-ai", "strands-valkey", "langgraph-js", "langgraph-aws-valkey", "agentscope-storage", "mastra-redis",
           "redisvl-semantic")  # fmt: skip
SIBLINGS = [
    (name, entry["key"])
    for name in CAPTURES
    for entry in capture.capture(name)["keys"]
    if len(capture.capture(name)["keys"]) > 1
    and name not in UNNAMED
    # These writes led to checkpoints that the shallow saver has replaced.
    and not (name == "langgraph-redis-shallow" and entry["key"].startswith("checkpoint_write:"))
]


@pytest.mark.parametrize(("name", "key"), SIBLINGS)
def test_a_missing_sibling_is_reported(name: str, key: str) -> None:
    left = [raw for raw in raws_of(name) if raw.name != key]
    found = problems(decoded(left))
    assert found
    assert {problem.cause for problem in found} <= {"dangling", "gap", "orphan_tool_result"}


def test_the_repair_of_a_lost_pointer() -> None:
    pointer = "checkpoint_latest:sess-A:__empty__"
    left = [raw for raw in raws_of("langgraph-redis") if raw.name != pointer]
    items = decoded(left)
    (problem,) = problems(items)
    assert problem.key == pointer
    assert "recoverable: the checkpoints exist" in problem.message
    newest = max(raw.name for raw in left if raw.name.startswith("checkpoint:"))
    assert problem.repair.startswith(f"SET {pointer} {newest} ")
    assert plainly(turns(items)) == expected_of("langgraph-redis")


def test_the_repair_of_a_lost_order_of_checkpoints() -> None:
    order = next(raw for raw in raws_of("langgraph-plainredis") if raw.kind == "zset")
    (problem,) = problems(
        decoded(raw for raw in raws_of("langgraph-plainredis") if raw is not order and raw.kind != "zset")
    )
    assert (
        problem.repair == f"ZADD lg:idx:sess-A: {' '.join(f'{score:.0f} {uid}' for uid, score in order.scores.items())}"
    )


def test_the_oldest_checkpoints_expire_first() -> None:
    """A thread that is older than its TTL lacks its first checkpoints, and the blobs that were written with them."""
    whole = raws_of("langgraph-plainredis")
    (order,) = (raw for raw in whole if raw.name == "lg:idx:sess-A:")
    uids = sorted(order.scores, key=order.scores.__getitem__)
    for count in range(1, len(uids) - 1):
        left = [raw for raw in whole if not raw.name.endswith(tuple(uids[:count]))]
        left = [raw for raw in left if ":blob:" not in raw.name or int(raw.name.rpartition(":")[2]) > count]
        items = decoded(left)
        assert plainly(turns(items)) == expected_of("langgraph-plainredis")
        assert [problem.cause for problem in problems(items)] == ["gap"]


def test_the_last_readable_checkpoint_is_shown() -> None:
    items = decoded(raw for raw in raws_of("langgraph-plainredis") if raw.name != "lg:blob:sess-A::messages:8")
    assert plainly(turns(items)) == expected_of("langgraph-plainredis")[:2]
    assert {problem.cause for problem in problems(items)} >= {"dangling", "gap"}


# Stores with three messages in a list; memkit's own elements are not JSON objects and have tests of their own.
LISTS = ["langchain-community", "llama-index", "openai-agents", "agent-framework-redis", "ag2"]


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("name", LISTS)
def test_a_corrupt_element_is_reported_with_its_byte(name: str, index: int) -> None:
    raws = raws_of(name)
    damaged = next(raw for raw in raws if raw.kind == "list")
    damaged.elements[index] = damaged.elements[index][:20] + b"\xff" + damaged.elements[index][21:]
    items = decoded(raws)
    corrupt = [problem for problem in problems(items) if problem.cause == "corrupt"]
    (problem,) = corrupt
    assert f"element {index} of 3" in problem.message
    assert f"at byte 20 of {len(damaged.elements[index])}" in problem.message
    assert "2 of 3 elements are readable" in problem.message
    assert len(turns(items)) == 2


DOCUMENTS = [
    (name, raw.name) for name in CAPTURES if name != "connect-redis" for raw in raws_of(name) if raw.data[:1] == b"{"
]


@pytest.mark.parametrize(("name", "key"), DOCUMENTS)
def test_a_corrupt_document_is_named_with_its_byte(name: str, key: str) -> None:
    raws = {raw.name: raw for raw in raws_of(name)}
    data = raws[key].data[: len(raws[key].data) // 2]
    raws[key] = RedisValue(key, raws[key].kind, data=data, total=len(data))
    corrupt = [problem for problem in problems(decoded(raws.values())) if problem.cause == "corrupt"]
    assert [problem.key for problem in corrupt] == [key]
    assert f"of {len(data):,}" in corrupt[0].message
    assert "% of it is readable" in corrupt[0].message


def test_a_broken_document_is_shown_up_to_the_break() -> None:
    (raw,) = raws_of("google-adk-redis")
    cut = RedisValue(raw.name, raw.kind, data=raw.data[:-300], total=raw.total)
    assert plainly(turns(decoded([cut]))) == expected_of("google-adk-redis")[:2]


# What is JSON and of another shape


def listed(name: str) -> tuple[list[RedisValue], RedisValue]:
    """Return a capture's keys, and the one of them that is a list."""
    raws = raws_of(name)
    return raws, next(raw for raw in raws if raw.kind == "list")


# llama-index reads a bare role and content as well: a user's message of openai-agents is no damage there.
FOREIGN = [
    (name, other)
    for name in LISTS
    for other in LISTS
    if name != other and (name, other) != ("llama-index", "openai-agents")
]


@pytest.mark.parametrize("at", [0, 1, 3])
@pytest.mark.parametrize(("name", "other"), FOREIGN)
def test_one_foreign_element_in_a_list(name: str, other: str, at: int) -> None:
    raws, raw = listed(name)
    foreign = listed(other)[1].elements[-1 if other == "langchain-community" else 0]
    raw.elements.insert(at, foreign)
    raws = [each._replace(total=4) if each.kind == "list" else each for each in raws]
    for wanted in ("sess-A", None):
        stored = known_of(raws, wanted)
        assert stored.owner.store == name
        items = list(formats.decode(stored))
        (problem,) = [problem for problem in problems(items) if problem.cause == "corrupt"]
        assert f"element {at} of 4 (counted from the head) is not a message of {name}: it has no " in problem.message
        hint = "" if other == "openai-agents" else f"; it looks like one of {other}"  # anybody writes role and content
        assert f"{hint} (3 of 4 elements are readable)" in problem.message
        assert plainly(turns(items)) == expected_of(name)


@pytest.mark.parametrize(
    "foreign", [b'"Zk3_x9Ab1.5",{"role":"user","content":"hi"}', b'{"memkit":1,"policy":"x","end":1}']
)
@pytest.mark.parametrize("name", LISTS)
def test_one_element_of_memkit_in_a_list(name: str, foreign: bytes) -> None:
    raws, raw = listed(name)
    raw.elements.insert(0, foreign)
    assert known_of(raws).owner.store == name


def test_foreign_elements_in_a_memkit_session() -> None:
    raw = memkit_raw()
    raw.elements.insert(1, listed("langchain-community")[1].elements[0])
    stored = known_of([raw], "s")
    assert stored.owner.store == "memkit"
    assert [problem.cause for problem in problems(formats.decode(stored))] == ["corrupt"]


JUNK = [{}, {"foo": 1}, {"type": "human"}, {"role": "user"}, {"role": 7, "content": "x"}, {"type": "ai", "data": {}},
        7, None, "x", [], [1], True]  # fmt: skip


@pytest.mark.parametrize("junk", JUNK, ids=json.dumps)
@pytest.mark.parametrize("name", LISTS)
def test_an_element_of_the_wrong_shape_is_corrupt(name: str, junk: Any) -> None:
    raws, raw = listed(name)
    raw.elements[1] = json.dumps(junk).encode()
    items = decoded(raws)
    (problem,) = [problem for problem in problems(items) if problem.cause == "corrupt"]
    assert problem.message.startswith("element 1 of 3 (counted from the head) is ")
    assert "2 of 3 elements are readable" in problem.message
    assert [turn.role for turn in turns(items)] == (["user", "tool"])


@pytest.mark.parametrize(
    ("name", "element", "message"),
    [
        ("langchain-community", {"type": "human", "data": {"content": 7}}, "its content is a number"),
        ("langchain-community", {"type": "human", "data": {"content": None}}, "it has no content"),
        ("llama-index", {"role": "user", "additional_kwargs": {}, "blocks": "hi"}, "its blocks is text, not an array"),
        ("openai-agents", {"role": "user", "content": True}, "its content is a boolean"),
        ("openai-agents", {"type": "function_call", "name": "f"}, "it has no call_id"),
        ("openai-agents", {"type": "function_call_output", "call_id": "1"}, "it has no output"),
        ("agent-framework-redis", {"type": "message", "role": "user", "contents": {}}, "its contents is an object"),
        ("ag2", {"__event__": "ag2.events.input_events.TextInput"}, "it has no content"),
        ("ag2", {"__event__": "ag2.events.tool_events.ToolCallEvent", "id": "1"}, "it has no name"),
        ("ag2", {"__event__": "ag2.events.tool_events.ToolResultEvent", "result": 1}, "it has no parent_id"),
        ("ag2", {"__event__": "ag2.events.tool_events.ToolResultEvent", "parent_id": "1"}, "it has no result"),
    ],
)
def test_what_an_element_lacks_is_reported(name: str, element: dict[str, Any], message: str) -> None:
    raws, raw = listed(name)
    raw.elements[1] = json.dumps(element).encode()
    corrupt = [problem.message for problem in problems(decoded(raws)) if problem.cause == "corrupt"]
    assert len(corrupt) == 1
    assert message in corrupt[0]


CALLED = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]


@pytest.mark.parametrize(
    ("name", "element"),
    [
        ("langchain-community", {"type": "ai", "data": {"tool_calls": [{"name": "f", "id": "1"}]}}),
        ("langchain-community", {"type": "ai", "data": {"content": None, "additional_kwargs": {"tool_calls": CALLED}}}),
        ("llama-index", {"role": "assistant", "content": None, "additional_kwargs": {"tool_calls": CALLED}}),
        ("llama-index", {"role": "assistant", "blocks": [], "additional_kwargs": {"tool_calls": CALLED}}),
        ("openai-agents", {"role": "assistant", "tool_calls": CALLED}),
        ("openai-agents", {"type": "web_search_call", "id": "w"}),
        ("openai-agents", {"type": "some_new_tool_call_output", "id": "w"}),
        ("agent-framework-redis", {"type": "message", "role": "assistant", "contents": []}),
        ("ag2", {"__event__": "ag2.events.model_events.ModelResponse", "message": None}),
    ],
)
def test_a_message_that_needs_no_content(name: str, element: dict[str, Any]) -> None:
    raws, raw = listed(name)
    raw.elements[:] = [json.dumps(element).encode()]
    found = [problem for problem in problems(decoded(raws)) if problem.cause == "corrupt"]
    assert found == []


PARTS = [
    ("google-adk-redis", "session:bot:u1:sess-A"),
    ("agno", "agno:sessions:sess-A"),
    ("agno", "agno:runs:f082bd82-75bf-46ce-8948-423d61b19d2b"),
    ("langchain-redis", "chat:sess-A:01M82HPQ1167C4WN418C6KQH10"),
    ("langgraph-redis-shallow", "checkpoint:sess-A:"),
    ("langgraph-redis", max(raw.name for raw in raws_of("langgraph-redis") if raw.name.startswith("checkpoint:"))),
    ("langgraph-redis", next(raw.name for raw in raws_of("langgraph-redis") if "checkpoint_write:" in raw.name)),
    ("langgraph-plainredis", max(raw.name for raw in raws_of("langgraph-plainredis") if raw.name.startswith("lg:cp:"))),
    ("langgraph-plainredis", "lg:blob:sess-A::messages:8"),
]


@pytest.mark.parametrize("data", [b"", b"null", b"{}", b"[]"])
@pytest.mark.parametrize(("name", "key"), PARTS)
def test_a_document_of_the_wrong_shape_is_corrupt(name: str, key: str, data: bytes) -> None:
    raws = [raw._replace(data=data, total=len(data)) if raw.name == key else raw for raw in raws_of(name)]
    for wanted in ("sess-A", None):
        stored = known_of(raws, wanted)
        assert (formats.store_name(stored), stored.owner.session) == (name, "sess-A")
        corrupt = [problem for problem in problems(formats.decode(stored)) if problem.cause == "corrupt"]
        assert [problem.key for problem in corrupt] == [key]


@pytest.mark.parametrize(
    ("name", "key", "lost", "message"),
    [
        ("google-adk-redis", PARTS[0][1], '"events"', "it has no events"),
        ("google-adk-redis", PARTS[0][1], '"author"', ""),
        ("agno", PARTS[1][1], '"session_id"', "it has no session_id"),
        ("agno", PARTS[2][1], '"run_data"', "it has no run_data"),
        ("agno", PARTS[2][1], '"role"', "entry 0 of 1 (counted from 0) is not a valid message: it has no role"),
        ("langchain-redis", PARTS[3][1], '"type"', "it has no type"),
        ("langchain-redis", PARTS[3][1], '"data"', "it has no data"),
        ("langchain-redis", PARTS[3][1], '"content"', "it has no content"),
        ("langchain-redis", PARTS[3][1], '"session_id"', "it has no session_id"),
        ("langgraph-redis-shallow", PARTS[4][1], '"checkpoint"', "it has no checkpoint"),
        ("langgraph-redis-shallow", PARTS[4][1], '"content"', "is not a valid message: it has no content"),
        ("langgraph-redis", PARTS[5][1], '"checkpoint"', "it has no checkpoint"),
        ("langgraph-redis", PARTS[6][1], '"channel"', "it has no channel"),
        ("langgraph-plainredis", PARTS[7][1], '"d"', "it has no d"),
        ("langgraph-plainredis", PARTS[8][1], '"t"', "it has no t"),
    ],
)  # fmt: skip
def test_what_a_document_lacks_is_reported(name: str, key: str, lost: str, message: str) -> None:
    renamed = lost.replace('"', '"x_', 1).encode()
    raws = [raw._replace(data=raw.data.replace(lost.encode() + b":", renamed + b":")) if raw.name == key else raw
            for raw in raws_of(name)]  # fmt: skip
    corrupt = [problem for problem in problems(decoded(raws)) if problem.cause == "corrupt"]
    assert {problem.key for problem in corrupt} == ({key} if message else set())
    assert message in " ".join(problem.message for problem in corrupt)


EVENTS = [{}, {"foo": 1}, {"author": "user", "content": "hi"}, {"author": "user", "content": {"parts": 7}},
          {"author": "user", "content": {"parts": [7]}}, 7, None]  # fmt: skip


@pytest.mark.parametrize("event", EVENTS, ids=json.dumps)
def test_an_event_of_the_wrong_shape_is_corrupt(event: Any) -> None:
    (raw,) = raws_of("google-adk-redis")
    document = json.loads(raw.data)
    document["events"][1] = event
    items = decoded([raw._replace(data=json.dumps(document).encode())])
    (problem,) = [problem for problem in problems(items) if problem.cause == "corrupt"]
    assert "entry 1 of 3 (counted from 0) is not a valid event: " in problem.message
    assert len(turns(items)) == 2


def test_a_thread_without_its_latest_checkpoint() -> None:
    key = PARTS[5][1]
    items = decoded(raw._replace(data=b"{}") if raw.name == key else raw for raw in raws_of("langgraph-redis"))
    assert plainly(turns(items)) == expected_of("langgraph-redis")
    assert any("the newest state that can be" in item.message for item in items if isinstance(item, Note))


def changed(raw: RedisValue, **values: Any) -> RedisValue:
    """Return a document with other values; None takes a field away."""
    document = json.loads(raw.data) | values
    data = json.dumps({name: value for name, value in document.items() if value is not None}).encode()
    return raw._replace(data=data, total=len(data))


def test_lists_of_writes_without_a_word_for_the_root() -> None:
    raws = [raw._replace(name=raw.name.replace("__empty__", "")) if raw.kind == "zset" else raw
            for raw in raws_of("langgraph-redis")]  # fmt: skip
    assert {owner.group for raw in raws if (owner := formats.recognise(raw, None))} == {
        ("langgraph-redis", "sess-A", "")
    }
    assert problems(decoded(raws)) == []
    assert problems(decoded([raw for raw in raws if raw.kind != "zset"]))[0].cause == "dangling"


@pytest.mark.parametrize("in_blobs", [False, True])
def test_a_thread_of_the_first_versions(in_blobs: bool) -> None:
    raws: list[RedisValue] = []
    for raw in raws_of("langgraph-redis"):
        if raw.name.startswith("checkpoint:"):
            checkpoint = json.loads(raw.data)["checkpoint"]
            values = checkpoint.pop("channel_values") if in_blobs else {}
            for channel, value in values.items():
                blob = {"thread_id": "sess-A", "channel": channel, "version": "1", "blob": json.dumps(value)}
                name = f"checkpoint_blob:sess-A:__empty__:{channel}:{checkpoint['channel_versions'][channel]}"
                raws.append(changed(raw, **blob, checkpoint=None)._replace(name=name))
            raws.append(changed(raw, checkpoint=checkpoint, checkpoint_ts=None, has_writes=None))
        elif raw.name.startswith("checkpoint_write:"):
            raws.append(raw)
    stored = known_of(raws)
    items = list(formats.decode(stored))
    assert formats.store_name(stored) == "langgraph-redis"
    assert plainly(turns(items)) == expected_of("langgraph-redis")
    assert problems(items) == []


def test_a_shallow_saver_that_deleted_its_list() -> None:
    raws = [raw for raw in raws_of("langgraph-redis-shallow") if raw.kind != "zset"]
    assert [problem.cause for problem in problems(decoded(raws))] == ["dangling"]
    before = [changed(raw, run_id=None) for raw in raws]
    assert problems(decoded(before)) == []


def test_a_pointer_without_the_users_own_prefix() -> None:
    raws = raws_of("langgraph-redis-own-prefix")
    (pointer,) = [raw for raw in raws if "_latest:" in raw.name]
    renamed = pointer._replace(name="checkpoint_latest:" + pointer.name.partition("_latest:")[2])
    raws = [renamed if raw is pointer else raw for raw in raws]
    assert len({owner.group for raw in raws if (owner := formats.recognise(raw, None))}) == 1
    assert problems(decoded(raws)) == []


def test_writes_alone_do_not_show_their_own_prefix() -> None:
    writes = [raw for raw in raws_of("langgraph-redis-own-prefix") if b'"task_id"' in raw.data]
    assert writes
    lost = {problem.message for problem in problems(decoded(writes))}
    assert lost == {"a checkpoint has writes, and the list of them no longer exists"}


def test_a_plain_redis_subgraph_that_keeps_its_state() -> None:
    inner = [raw._replace(name=raw.name.replace("sess-A:", "sess-A:sub", 1)) for raw in raws_of("langgraph-plainredis")]
    own = [raw for raw in inner if "sess-A" in raw.name]
    owners = [formats.recognise(raw, "sess-A") for raw in own]
    alone = [raw for raw in own if ":blob:" not in raw.name]
    owners += [formats.recognise(raw) for raw in alone]
    assert {owner and owner.session for owner in owners} == {"sess-A"}


@pytest.mark.parametrize("name", ["langgraph-redis", "langgraph-js", "langgraph-redis-shallow", "langgraph-js-shallow"])
def test_a_subgraph_that_keeps_its_state(name: str) -> None:
    own = raws_of(name)
    found = re.compile("(?<=sess-A:)(__empty__)?(?=:|$)")
    inner = [raw._replace(name=found.sub("sub", raw.name, count=1), data=found.sub("sub", raw.data.decode()).encode(),
                          scores={found.sub("sub", each, count=1): score for each, score in raw.scores.items()})
             for raw in own]  # fmt: skip
    for wanted in ("sess-A", None):
        owners = [formats.recognise(raw, wanted) for raw in (*own, *inner) if raw.name != "checkpoint:sess-A:sub"]
        assert {owner and owner.group for owner in owners} == {(owners[0] and owners[0].group)}


SEVERAL = ("openai-agents", "agno", "langgraph-redis", "langgraph-redis-shallow", "langgraph-plainredis")
OTHER_KIND = [(name, raw.name) for name in SEVERAL for raw in raws_of(name) if "checkpoint_write" not in raw.name]


@pytest.mark.parametrize(("name", "key"), OTHER_KIND)
def test_a_key_of_another_type_is_corrupt(name: str, key: str) -> None:
    whole = known_of(raws_of(name))
    raw = whole.keys[key]
    assert raw is not None
    other = RedisValue(key, "stream", elements=[b"x"], total=1)
    found = [problem for problem in problems(formats.decode(whole._replace(keys={**whole.keys, key: other})))
             if problem.cause == "corrupt" and problem.key == key]  # fmt: skip
    assert len(found) == 1
    assert "this key is of type stream, and a" in found[0].message


@pytest.mark.parametrize("field", ["role", "content", "entry_id", "session_tag", "timestamp"])
def test_a_hash_without_a_field_is_corrupt(field: str) -> None:
    raws = raws_of("redisvl")
    fields = dict(raws[1].fields)
    del fields[field]
    raws[1] = raws[1]._replace(fields=fields)
    for wanted in ("sess-A", None):
        assert formats.recognise(raws[1], wanted) == KeyOwner("redisvl", "sess-A", "chat:", "message")
    items = decoded(raws)
    (problem,) = [problem for problem in problems(items) if problem.cause == "corrupt"]
    assert problem.key == raws[1].name
    assert f"this message has no {field}" in problem.message
    assert len(turns(items)) == (2 if field == "content" else 3)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("content", b"a\xff\xfe", "content of this message is not valid UTF-8 at byte 1 of 3"), ("role", b"\xff", "UTF-8"),
     ("role", b"", "the role of this message is empty"), ("timestamp", b"x", "not a number")],
)  # fmt: skip
def test_a_hash_with_a_damaged_field_is_corrupt(field: str, value: bytes, message: str) -> None:
    raws = raws_of("redisvl")[:1]
    raws[0] = raws[0]._replace(fields={**raws[0].fields, field: value})
    (problem,) = problems(decoded(raws))
    assert (problem.cause, problem.key) == ("corrupt", raws[0].name)
    assert message in problem.message


def test_a_foreign_hash_is_not_claimed() -> None:
    for fields in ({"role": b"a", "content": b"b"}, {"role": b"a", "content": b"b", "timestamp": b"1"}):
        assert formats.recognise(RedisValue("users:1", "hash", fields=fields)) is None


def test_many_damaged_messages_are_counted() -> None:
    hashes = [
        RedisValue(f"chat:s:{at}:aa", "hash", fields={"entry_id": b"s:1:aa", "session_tag": b"s", "content": b"hi"})
        for at in range(300)
    ]
    found = [problem for problem in problems(decoded(hashes, "s")) if problem.cause == "corrupt"]
    assert (len(found), found[-1].message) == (6, "… and 295 more like it")
    adk = {"id": "s", "app_name": "a", "events": [{}] * 300}
    found = problems(decoded([RedisValue("session:a:u:s", "string", data=json.dumps(adk).encode())], "s"))
    assert (len(found), found[-1].message) == (6, "… and 295 more like it")


def test_a_memkit_message_may_be_any_object() -> None:
    odd = [b'"Zk3_x9Ab1.5",{}', b'"Zk3_x9Ab2.6",{"q":"why","a":7}', b'["x",{"role":"user","content":"hi"}]']
    items = decoded([_sessions(odd)], "s")
    assert [turn.text for turn in turns(items)] == ["{}", '{"q": "why", "a": 7}', "hi"]
    (problem,) = problems(items)
    assert "a message in it is not a JSON object" in problem.message


OTHER_ENCODINGS = {
    "gzip > json": lambda data: gzip.compress(data, mtime=0),
    "zlib > json": zlib.compress,
    "base64 > json": base64.b64encode,
    "json string > json": lambda data: json.dumps(data.decode()).encode(),
    "python repr": lambda data: repr(json.loads(data)).encode(),
}


@pytest.mark.parametrize("name", OTHER_ENCODINGS)
@pytest.mark.parametrize("store", ["langchain-community", "agno"])
def test_another_encoding_is_no_damage(store: str, name: str) -> None:
    raws = raws_of(store)
    raw = next(raw for raw in raws if raw.kind == "list" or raw.name == "agno:sessions:sess-A")
    encode = OTHER_ENCODINGS[name]
    whole = raw._replace(elements=list(map(encode, raw.elements)), data=encode(raw.data) if raw.data else b"")
    found = [
        problem
        for problem in problems(decoded([whole if one is raw else one for one in raws]))
        if problem.key == raw.name
    ]
    assert {problem.cause for problem in found} == {"encoding_changed"}
    assert f"is {name}, and not the store's JSON" in found[0].message


@pytest.mark.parametrize(("texts", "cause"), [(3, "partly_decoded"), (1, "corrupt")])
def test_text_among_a_store_s_messages_is_damage(texts: int, cause: str) -> None:
    (raw,) = raws_of("langchain-community")
    kept = len(raw.elements) if texts == 1 else 0
    raw.elements[:] = [*raw.elements[:kept], *[b"see you tomorrow"] * texts]
    found = problems(decoded([raw._replace(total=len(raw.elements))]))
    assert {problem.cause for problem in found} - {"duplicate"} == {cause}


def test_many_corrupt_elements_are_counted() -> None:
    (raw,) = raws_of("llama-index")
    found = problems(decoded([RedisValue(raw.name, "list", elements=[*raw.elements, *[b"x"] * 900], total=903)]))
    assert len(found) == 6
    assert "895 more elements (3 of 903 elements are readable)" in found[-1].message


def test_nan_is_not_json_but_is_read() -> None:
    (raw,) = raws_of("ag2")
    raw.elements[0] = raw.elements[0].replace(b"1795381676.6998444", b"NaN")
    items = decoded([raw])
    assert [problem.cause for problem in problems(items)] == ["nan"]
    assert plainly(turns(items)) == expected_of("ag2")


def test_an_element_written_twice_is_a_duplicate() -> None:
    (raw,) = raws_of("llama-index")
    raw.elements.insert(0, raw.elements[0])
    assert [problem.cause for problem in problems(decoded([raw]))] == ["duplicate"]


# The dialogue, whatever the store


def follow(*dialogue: Item, loses_calls: bool = False) -> list[str]:
    return [item.cause for item in Dialogue(loses_calls=loses_calls).follow(dialogue) if isinstance(item, Problem)]


USER, CALL = Turn("user", "hi"), Turn("assistant", "", (Tool("f", "1"),))
RESULT = Turn("tool", "ok", (Tool(None, "1"),))


def test_a_whole_dialogue_has_no_problem() -> None:
    assert follow(USER, CALL, RESULT, Turn("assistant", "done")) == []
    assert follow(USER, Turn("assistant", "done"), USER, Turn("assistant", "done")) == []
    assert follow(Turn("system", "be kind"), USER) == []
    assert follow(Turn("assistant", "hello!"), USER) == []


def test_a_result_without_its_call_is_an_orphan() -> None:
    assert follow(USER, RESULT) == ["orphan_tool_result"]
    assert follow(USER, CALL, Turn("tool", "ok", (Tool(None, "2"),))) == ["orphan_tool_result", "gap"]
    assert follow(USER, RESULT, loses_calls=True) == ["orphan_tool_result"]
    assert follow(USER, Turn("assistant", ""), RESULT, loses_calls=True) == []
    assert follow(USER, Turn("tool", "ok", (Tool("f", None),))) == ["orphan_tool_result"]


def test_a_call_without_its_result_is_a_gap() -> None:
    assert follow(USER, CALL) == ["gap"]
    assert follow(USER, Turn("assistant", ""), loses_calls=True) == ["gap"]


def test_a_dialogue_that_begins_with_a_call_has_a_gap() -> None:
    assert follow(CALL, RESULT) == ["gap"]


def test_the_same_id_twice_is_a_duplicate() -> None:
    assert follow(USER._replace(uid="7"), USER._replace(uid="7")) == ["duplicate"]
    assert follow(USER, CALL, CALL, RESULT) == ["duplicate"]
    assert follow(USER, CALL, RESULT, RESULT) == ["duplicate"]


def test_many_problems_of_a_kind_are_counted() -> None:
    found = list(Dialogue().follow([USER] + [RESULT._replace(tools=(Tool(None, str(at)),)) for at in range(100)]))
    found = [item.message for item in found if isinstance(item, Problem)]
    assert len(found) == 6
    assert found[-1] == "… and 95 more like it"


# Vocabulary


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("plain", "plain"),
        (None, ""),
        ([], ""),
        (["a", {"type": "text", "text": "b"}], "a\nb"),
        (
            [{"type": "input_text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:…"}}],
            "a\n[image_url]",
        ),
        ([{"type": "tool_use", "id": "1", "name": "f"}, {"type": "text", "text": "a"}], "a"),
        ([{"parts": [{"text": "a"}]}], "a"),
        ([{"type": "x" * 99}], "[part]"),
        ([{"type": ["a"]}], "[part]"),
        ({"text": "a"}, "a"),
        (7, "7"),
    ],
)
def test_content_of_several_parts_becomes_one_text(content: Any, text: str) -> None:
    assert chat.flatten(content) == text


@pytest.mark.parametrize(
    ("role", "normal"),
    [("human", "user"), ("ai", "assistant"), ("model", "assistant"), ("llm", "assistant"), ("developer", "system"),
     ("function", "tool"), ("AIMessageChunk", "assistant"), ("narrator", "other"), (None, "other"), ([], "other")],
)  # fmt: skip
def test_roles_are_normalised(role: Any, normal: str) -> None:
    assert chat.role_of(role) == normal


def test_calls_are_found_in_every_form() -> None:
    openai = {"tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}
    anthropic = {"content": [{"type": "text", "text": "…"}, {"type": "tool_use", "id": "1", "name": "f", "input": {}}]}
    for message in (openai, anthropic):
        (turn,) = messages_of({"role": "assistant"} | message, "k")[0]
        assert turn.tools == (Tool("f", "1"),)


# memkit's own


def memkit_raw(name: str = "session:s", **header: Any) -> RedisValue:
    fields = {"memkit": 1, "policy": "sliding 604800000", "born": "a" * 8, "created_ms": 1790000000000, "version": 2}
    body = json.dumps(fields | {"updated_ms": 1790000000000} | header | {"end": 1}, separators=(",", ":")).encode()
    elements = [body, b'"Zk3_x9Ab1.5",{"role":"user","content":"hi"}', b'[{"role":"x"},{"role":"assistant"}]']
    elements.append(b'"........3.7.Zk3","{\\"role\\":\\"system\\",\\"seed\\":99999999999999999999}"')
    return RedisValue(name, "list", elements=elements, total=len(elements))


def test_memkits_own_sessions_are_read() -> None:
    items = decoded([memkit_raw()], "s")
    assert [turn.role for turn in turns(items)] == ["user", "other", "assistant", "system"]
    assert turns(items)[0].text == "hi"
    assert turns(items)[0].at_s == 1790000000.005
    assert ConfiguredTtl(ExpiryPolicy.sliding("7d")) in items
    assert problems(items) == []


def test_a_memkit_session_of_a_newer_schema() -> None:
    (problem,) = problems(decoded([memkit_raw(memkit=2)], "s"))
    assert problem.cause == "unknown_schema"
    assert len(turns(decoded([memkit_raw(memkit=2)], "s"))) == 4


def test_a_damaged_header_leaves_the_messages_readable() -> None:
    raw = memkit_raw()
    raw.elements[0] = raw.elements[0][:-4]
    items = decoded([raw], "s")
    assert [problem.cause for problem in problems(items)] == ["corrupt"]
    assert len(turns(items)) == 4


def test_a_memkit_session_with_a_destroyed_header() -> None:
    raw = memkit_raw()
    raw.elements[0] = b"\x00"
    assert formats.recognise(raw, "s") == KeyOwner("memkit", "s", "session:", "primary")


def test_lost_vectors_are_missed() -> None:
    (problem,) = problems(decoded([memkit_raw(vectors=1)], "s"))
    assert (problem.cause, problem.key) == ("dangling", "{session:s}:vectors")


def test_a_corrupt_element_of_a_memkit_session() -> None:
    raw = memkit_raw()
    raw.elements[1] = raw.elements[1][:30] + b"\xff" + raw.elements[1][31:]
    (problem,) = problems(decoded([raw], "s"))
    assert (
        f"element 1 of 4 (counted from the head) is unreadable: not valid UTF-8 at byte 30 of {len(raw.elements[1])}"
        in problem.message
    )
    assert "2 of 3 elements are readable" in problem.message


def test_a_foreign_element_in_a_memkit_session() -> None:
    raw = memkit_raw()
    raw.elements.append(b'{"role":"user","content":"written by hand"}')
    items = decoded([raw], "s")
    assert [problem.cause for problem in problems(items)] == ["corrupt"]
    assert len(turns(items)) == 5


# Guessing, and hostile bytes


def chat_json() -> bytes:
    return json.dumps([{"role": "user", "content": "hi"}] * 3).encode()


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        (b"", "empty"),
        (b'{"a": 1}', "json"),
        (b"[1, 2", "text"),
        (b"plain words", "text"),
        ("Привет".encode(), "text"),
        (gzip.compress(chat_json(), mtime=0), "gzip > json"),
        (zlib.compress(chat_json()), "zlib > json"),
        (zlib.compress(chat_json() * 9000), "zlib > json"),
        (base64.b64encode(chat_json()), "base64 > json"),
        (base64.urlsafe_b64encode(gzip.compress(chat_json(), mtime=0)), "base64 > gzip > json"),
        (b"d41d8cd98f00b204e9800998ecf8427e", "text"),
        (b"\x83\xa4role\xa4user\xa7content\xa2hi\xa1n\x05", "msgpack"),
        (pickle.dumps({"role": "user"}), "pickle"),
        (pickle.dumps({"role": "user", "content": ["hi", 7]}, protocol=0), "pickle"),
        (pickle.dumps(["hi", 7.5], protocol=1), "pickle"),
        (pickle.dumps("hi", protocol=0), "pickle"),
        (base64.b64encode(pickle.dumps({"role": "user"}, protocol=0)), "base64 > pickle"),
        (b"(see above).", "text"),
        (b"I am here.", "text"),
        (b"Very well.\nYes.", "text"),
        (b"\x08\x96\x01\x12\x07testing", "binary"),
        (struct.pack("<4f", 0.1, -0.2, 0.3, 7e9), "binary"),
        (bz2.compress(b"a"), "binary"),
        (bytes.fromhex("28b52ffd042005290000") + b"hello" + bytes.fromhex("00000000"), "zstd"),
        (bytes.fromhex("04224d186440a705000080") + b"hello" + bytes(8), "lz4"),
    ],
)
def test_encodings_are_guessed_layer_by_layer(data: bytes, encoding: str) -> None:
    assert encodings.encoding_of(data).split(" > ")[0] == encoding.split(" > ")[0]
    if encoding not in ("zstd", "lz4"):
        assert encodings.encoding_of(data) == encoding


class Bomb:
    """Leaves a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.trace,))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_disassembled_and_never_loaded(tmp_path: Path, protocol: int) -> None:
    raw = RedisValue("k", "string", data=pickle.dumps(Bomb(tmp_path / "ran"), protocol), total=9)
    items = survive(SessionValues(KeyOwner("unknown", "k", "", "unknown"), {"k": raw}))
    assert any("pickle: its text cannot be read" in item.message for item in items if isinstance(item, Note))
    assert any("of them call code" in item.message for item in items if isinstance(item, Note))
    assert not (tmp_path / "ran").exists()


def test_an_unknown_store_of_chat_messages_is_shown() -> None:
    for raw in (
        list_of("k", {"role": "user", "content": "hi"}),
        RedisValue("k", "string", data=b'{"history": [{"role": "user", "content": "hi"}]}'),
    ):
        assert plainly(turns(unknown.decode(SessionValues(KeyOwner("unknown", "k", "", "unknown"), {"k": raw})))) == [
            {"role": "user", "text": "hi"}
        ]


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


HOSTILE: dict[str, Callable[[int], bytes]] = {
    "nothing but prefixes": lambda size: b"a:" * (size // 20),
    "zip bomb": lambda size: zlib.compress(b"0" * (2 * size)),
    "gzip bomb in gzip": lambda size: gzip.compress(gzip.compress(b"0" * (2 * size))),
    "deep lists": lambda size: nested(size // 10),
    "deep objects": lambda size: b'{"a":' * (size // 20) + b"1" + b"}" * (size // 20),
    "deep but legal": lambda _: nested(900),
    "many empty lists": lambda size: b"[" + b"[]," * (size * 3 // 10) + b"[]]",
    "many empty objects": lambda size: b'{"messages":[' + b"{}," * (size * 3 // 10) + b"{}]}",
    "huge integer": lambda size: b'{"type":"human","data":{"content":' + b"9" * (size // 2) + b"}}",
    "huge exponent": lambda _: b'{"content":1e999999999}',
    "NaN": lambda _: b'{"role":"user","content":NaN,"timestamp":-Infinity}',
    "lone surrogate": lambda _: b'{"role":"user","content":"\\ud83d"}',
    "not UTF-8": lambda _: b'{"role":"user","content":"\xff\xfe"}',
    "one long text": lambda size: b'{"role":"user","content":"' + b"x" * size + b'"}',
    "emoji, four bytes each in Python": lambda size: (
        b'{"role":"user","content":"' + "x🧠".encode() * (size // 5) + b'"}'
    ),
    "one emoji among ten million letters": lambda size: (
        b'{"role":"user","content":"' + "🧠".encode() + b"x" * size + b'"}'
    ),
    "escaped emoji": lambda size: b'{"role":"user","content":"\\ud83e\\udde0' + b"x" * (size * 8 // 10) + b'"}',
    "msgpack of four billion": lambda _: b"\xdd\xff\xff\xff\xff",
    "msgpack, deep": lambda size: b"\x91" * (size // 10),
    "msgpack, wide": lambda _: b"\xdc\x3f\xff" + b"\xc0" * 0x3FFF,
    "long base64": lambda size: base64.b64encode(b"\x00" * (size * 8 // 10)),
    "pickle of long text": lambda _: b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.",
    "protobuf": lambda size: b"\x08\x01" * (size * 3 // 10),
    "nothing but quotes": lambda size: b'"' * (size // 2),
}
"""Hostile bytes by what they are, of up to a size."""
HOSTILE_BYTES = 10_000_000


def shells(data: bytes) -> Iterable[SessionValues]:
    """Yield the bytes as a payload of a store of each kind: lists, documents, msgpack, hashes, unknown."""
    blob = json.dumps({"t": "msgpack", "d": base64.b64encode(data).decode()}).encode()
    for name in (
        "langchain-community",
        "agno",
        "google-adk-redis",
        "langgraph-redis",
        "langgraph-plainredis",
        "redisvl",
    ):
        stored = known_of(raws_of(name))
        target = next(name for name, raw in stored.keys.items() if raw and raw.payloads)
        payload = blob if name == "langgraph-plainredis" else data
        yield SessionValues(
            stored.owner, {key: _with(raw, payload) if key == target else raw for key, raw in stored.keys.items()}
        )
    for kind in ("string", "list"):
        yield SessionValues(
            KeyOwner("unknown", "k", "", "unknown"),
            {"k": _with(RedisValue("k", kind, data=b"x", elements=[b"", b""]), data)},
        )


def _with(raw: RedisValue | None, data: bytes) -> RedisValue | None:
    if raw is None:
        return None
    return RedisValue(
        raw.name,
        raw.kind,
        data=data if raw.data else b"",
        elements=[data, *raw.elements[1:]] if raw.elements else [],
        fields=dict.fromkeys(raw.fields, data),
        members=raw.members,
        scores=raw.scores,
        total=raw.total,
    )


def survive(stored: SessionValues) -> list[Item]:
    module = unknown.decode if stored.owner.store == "unknown" else formats.decode
    for raw in stored.keys.values():
        if raw:
            formats.recognise(raw, "sess-A")
            encodings.encoding_of(next(iter(raw.payloads), b""))
    if stored.owner.store != "unknown":
        list(formats.format_of(stored.owner.store).siblings(stored))
    kept = []
    for item in module(stored):
        if not isinstance(item, Turn):
            kept.append(item)
        del item
    return kept


def cpu_s(call: Callable[[], object]) -> float:
    begun = time.process_time()
    call()
    return time.process_time() - begun


def loop_s() -> float:
    """The CPU time of ten million turns of a loop: 0.7 s on an idle core, twice that on a shared one."""
    return 40 * cpu_s(lambda: [number + 1 for number in range(250_000)])


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_bytes_take_bounded_time(what: str) -> None:
    """A second for the whole size, and a quarter of it for a quarter: time that grows faster is over both.

    On a core that is busy, the time of a loop counts instead.
    """
    data = HOSTILE[what](HOSTILE_BYTES // 4)
    share = len(data) / len(HOSTILE[what](HOSTILE_BYTES))
    for stored in shells(data):
        tries = (cpu_s(partial(survive, stored)) for _ in range(3))
        assert any(took <= share or took <= share * loop_s() for took in tries), stored.owner.store


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_bytes_take_bounded_memory(what: str) -> None:
    data = HOSTILE[what](HOSTILE_BYTES)
    document, listed = RedisValue("k", "string", data=data), RedisValue("k", "list", elements=[data] * 3)
    for store, raw in (("unknown", document), ("google-adk-redis", document), ("llama-index", listed)):
        stored = SessionValues(KeyOwner(store, "k", "", "primary"), {"k": raw})
        tracemalloc.start()
        survive(stored)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak <= (64 << 20) + len(data), store


FIELDS = [
    *(
        "role",
        "content",
        "type",
        "data",
        "id",
        "tool_calls",
        "name",
        "function",
        "text",
        "parts",
        "events",
        "blocks",
        "t",
    ),
    *("contents", "kwargs", "lc", "messages", "channel_values", "checkpoint", "created_at", "timestamp", "d", "output"),
    *("tool_call_id", "__event__", "result", "call_id", "additional_kwargs", "run_data", "run_id", "session_id"),
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=6),
    max_leaves=20,
)


@settings(max_examples=60)
@given(st.data())
def test_no_json_stops_a_decoder(data: st.DataObject) -> None:
    stored = known_of(raws_of(data.draw(st.sampled_from(CAPTURES))))
    target = data.draw(st.sampled_from([name for name, raw in stored.keys.items() if raw]))
    payload = json.dumps(data.draw(JSON)).encode()
    survive(
        SessionValues(
            stored.owner, {name: _with(raw, payload) if name == target else raw for name, raw in stored.keys.items()}
        )
    )


@settings(max_examples=100)
@given(st.data())
def test_no_mutation_of_a_capture_stops_a_decoder(data: st.DataObject) -> None:
    stored = known_of(raws_of(data.draw(st.sampled_from(CAPTURES))))
    keys = dict(stored.keys)
    for name in data.draw(st.lists(st.sampled_from([name for name, raw in keys.items() if raw]), max_size=3)):
        raw = keys[name]
        payload = bytearray(next(iter(raw.payloads), b"") if raw else b"")
        for at in data.draw(st.lists(st.integers(0, max(0, len(payload) - 1)), max_size=8)) if payload else []:
            payload[at] = data.draw(st.integers(0, 255))
        keys[name] = _with(raw, bytes(payload[: data.draw(st.integers(0, len(payload)))]))
    survive(SessionValues(stored.owner, keys))


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_no_bytes_stop_the_readers(data: bytes) -> None:
    parse(data)
    encodings.encoding_of(data)
    encodings.pickle_opcodes(data)
    encodings.hex_view(data)
    with contextlib.suppress(msgpack.MsgpackFault):
        msgpack.unpack(data)


def test_msgpack_reads_every_kind_of_value() -> None:
    packed = (
        b"\x8c\xa1a\xc0\xa1b\xc3\xa1c\xcd\x01\x00\xa1d\xff\xa1e\xcb?\xf8\x00\x00\x00\x00\x00\x00\xa1f\xd9\x02hi"
        b"\xa1g\xc4\x02\x00\x01\xa1h\x92\x01\x02\xa1i\xd4\x05x\xa1j\xdc\x00\x01\xc2\xa1k\xde\x00\x01\xa1z\xd0\x80\xa1l\xc7\x02\x07ab"
    )
    assert msgpack.unpack(packed) == {
        "a": None, "b": True, "c": 256, "d": -1, "e": 1.5, "f": "hi", "g": b"\x00\x01", "h": [1, 2],
        "i": msgpack.Ext(5, b"x"), "j": [False], "k": {"z": -128}, "l": msgpack.Ext(7, b"ab"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("data", "byte", "message"),
    [(b"\xa5hi", 1, "cut short"), (b"\xc1", 0, "never uses"), (b"\xc0\xc0", 1, "after the end"),
     (b"\xa1\xff", 1, "UTF-8"), (b"\x91" * 100, 65, "too deeply"), (b"\xdc\xff\xff", 3, "cut short")],
)  # fmt: skip
def test_msgpack_faults_say_where(data: bytes, byte: int, message: str) -> None:
    with pytest.raises(msgpack.MsgpackFault, match=message) as fault:
        msgpack.unpack(data)
    assert fault.value.byte == byte


@pytest.mark.parametrize(
    ("data", "byte", "message"),
    [(b'{"a": }', 6, "not valid JSON"), ('{"é": }'.encode(), 7, "not valid JSON"), (b'{"a": "\xff"}', 7, "UTF-8"),
     (nested(100_000), 1024, "too deeply"), (b"", 0, "not valid JSON"), (b'"\\ud83d" x', 9, "not valid JSON")],
)  # fmt: skip
def test_json_faults_say_where(data: bytes, byte: int, message: str) -> None:
    fault = parse(data).fault
    assert fault is not None
    assert fault.byte is not None
    assert abs(fault.byte - byte) <= 1
    assert message in fault.message


def test_the_estimate_of_memory_is_an_upper_bound() -> None:
    for data in (
        b"[" + b"[]," * 50_000 + b"[]]",
        b'{"a":[' + b'{"a":1},' * 50_000 + b"1]}",
        b"[" + b"1.5," * 50_000 + b"1]",
    ):
        tracemalloc.start()
        value = json.loads(data)
        taken = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert value is not None
        assert bounded_json.unfolded_bytes(data) >= taken


# Safe to show


def test_characters_a_terminal_acts_on_are_escaped() -> None:
    shown = render.printable("a\x1b[31mred\x07\u202eevil\u2066\x9b\n\r\x00\ud83d\U000e0041z\u2028")
    assert shown == "a\\x1b[31mred\\x07\\u202eevil\\u2066\\x9b\\n\\x0d\\x00\\ud83d\\U000e0041z\\u2028"
    assert render.printable("Привет 👨‍👩‍👧 Zürich 你好 ☀️ é") == "Привет 👨‍👩‍👧 Zürich 你好 ☀️ é"


@settings(max_examples=200)
@given(st.text(max_size=40))
def test_printable_text_is_one_line_without_controls(text: str) -> None:
    shown = render.printable(text)
    shown.encode()
    assert not any(
        char < " " or "\x7f" <= char <= "\x9f" or char in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
        for char in shown
    )


def test_a_long_text_is_cut_with_its_length() -> None:
    assert render.printable("x" * 10_000_000) == "x" * 2_000 + "… (10,000,000 characters)"
    assert render.escaped('<script>"&') == "&lt;script&gt;&quot;&amp;"


@settings(max_examples=200)
@given(st.binary(max_size=30))
def test_a_name_that_was_quoted_is_had_back(name: bytes) -> None:
    assert unquoted(quoted(to_name(name))) == to_name(name)


def test_width_counts_columns() -> None:
    assert [render.width(text) for text in ("abc", "你好", "é", "e\u0301")] == [3, 4, 1, 1]


def test_names_survive_and_are_quoted_for_redis_cli() -> None:
    assert to_bytes(to_name(b"\xff\x00a")) == b"\xff\x00a"
    assert quoted("lg:idx:a:") == "lg:idx:a:"
    assert quoted('a "b"\n\udcff$(rm)') == '"a \\x22b\\x22\\x0a\\xff$(rm)"'


def test_a_few_hundred_fuzzer_steps_find_nothing() -> None:
    fuzzer = Fuzzer(seed=20261124)
    for _ in range(200):  # reach 2,600 edges; 300 steps reached 70 more
        fuzzer.step()
    assert fuzzer.failures == []
    assert len(fuzzer.edges) > 2_000


def test_a_newer_schema_is_reported_and_read() -> None:
    for name in ("langgraph-redis", "langgraph-redis-shallow"):
        raws = [_with(raw, raw.data.replace(b'"v":4', b'"v":9')) or raw for raw in raws_of(name)]
        items = decoded(raws)
        assert [problem.cause for problem in problems(items)] == ["unknown_schema"]
        assert plainly(turns(items)) == expected_of(name)
    (raw,) = raws_of("agent-framework-redis")
    (problem,) = problems(
        decoded([RedisValue(raw.name.replace("|v2|", "|v3|"), "list", elements=raw.elements, total=3)])
    )
    assert problem.cause == "unknown_schema"


def test_lost_runs_leave_a_gap_in_the_run_numbers() -> None:
    lost = "f082bd82-75bf-46ce-8948-423d61b19d2b"
    raws = [
        RedisValue(raw.name, raw.kind, data=raw.data, members=raw.members - {lost}, total=raw.total,
            scores={member: score for member, score in raw.scores.items() if member != lost})
        for raw in raws_of("agno") if lost not in raw.name
    ]  # fmt: skip
    assert "run 2 follows 1 runs: 1 before it no longer exist" in [
        problem.message for problem in problems(decoded(raws))
    ]


def test_messages_that_are_not_in_order_of_time() -> None:
    now = 1_790_000_000.0
    assert follow(USER._replace(at_s=now), USER._replace(at_s=now - 60)) == ["out_of_order"]
    assert follow(USER._replace(at_s=now), USER._replace(at_s=now - 1)) == []
    (raw,) = raws_of("ag2")
    raw.elements[0] = raw.elements[0].replace(b"17953816", b"17963816")
    assert [problem.cause for problem in problems(decoded([raw]))] == ["out_of_order", "out_of_order"]


def test_values_of_other_types_in_place_of_fields() -> None:
    for fields in (None, 7, "x", [], True):
        raw = list_of("message_store:s", {"type": "human", "data": {"content": "hi"}}, {"type": "ai", "data": fields})
        items = decoded([raw], "s")
        assert [turn.text for turn in turns(items)] == ["hi"]
        assert [problem.cause for problem in problems(items)] == ["corrupt"]


@pytest.mark.parametrize(
    "entry",
    [
        {"type": "human", "content": "hi", "id": "1"},
        {"role": "user", "content": "hi"},
        {"lc": 1, "type": "constructor", "id": ["langchain", "HumanMessage"], "kwargs": {"content": "hi"}},
        {"lc": 1, "type": "constructor", "id": [["HumanMessage"]], "kwargs": {"content": "hi", "type": "human"}},
    ],
)
def test_langgraphs_messages_may_have_any_form(entry: dict[str, Any]) -> None:
    document = {"thread_id": "s", "checkpoint_ns": "__empty__", "checkpoint": {"channel_values": {"history": [entry]}}}
    raw = RedisValue("checkpoint:s:", "ReJSON-RL", data=json.dumps(document).encode())
    (turn,) = turns(decoded([raw], "s"))
    assert (turn.role, turn.text) == ("user", "hi")


def test_a_graph_without_messages_is_no_damage() -> None:
    document = {"thread_id": "s", "checkpoint_ns": "__empty__", "checkpoint": {"channel_values": {"count": [1, 2]}}}
    items = decoded([RedisValue("checkpoint:s:", "ReJSON-RL", data=json.dumps(document).encode())], "s")
    assert Note("no channel of the graph's state holds messages") in items


def test_bad_base64_and_bad_msgpack_are_distinguished() -> None:
    key = "lg:blob:sess-A::messages:8"
    for data, message in ((b"!!", "not valid base64"), (b"kQ==", "msgpack cut short at its byte 1")):
        raws = [_with(raw, json.dumps({"t": "msgpack", "d": data.decode()}).encode()) if raw.name == key else raw
                for raw in raws_of("langgraph-plainredis")]  # fmt: skip
        corrupt = [problem for problem in problems(decoded(filter(None, raws))) if problem.cause == "corrupt"]
        assert [problem.key for problem in corrupt] == [key]
        assert message in corrupt[0].message


def test_llama_indexs_plain_and_other_messages() -> None:
    def block(**fields: Any) -> dict[str, Any]:
        return {"role": "user", "additional_kwargs": {}, "blocks": [fields]}

    plain = [block(block_type="text", text=f"{at}") for at in range(150)]
    image = block(block_type="image", url="x")
    call = block(block_type="tool_call", tool_call_id="1", tool_name="f") | {"role": "assistant"}
    old = {"role": "assistant", "content": "old", "additional_kwargs": {}}
    found = turns(decoded([list_of("s", *plain, image, call, old)], "s"))
    assert [turn.text for turn in found[-4:]] == ["149", "[image]", "", "old"]
    assert found[-2].tools == (Tool("f", "1"),)


def test_reasoning_is_noted_and_not_shown() -> None:
    items = [{"role": "user", "content": "hi"}, {"type": "reasoning", "id": "r", "summary": []}]
    items.append(
        {"type": "message", "role": "assistant", "id": "m", "content": [{"type": "output_text", "text": "ho"}]}
    )
    hashed = RedisValue("agents:session:s", "hash", fields={"created_at": b"1"})
    found = decoded([list_of("agents:session:s:messages", *items), hashed], "s")
    assert [turn.text for turn in turns(found)] == ["hi", "ho"]
    assert any("reasoning" in item.message for item in found if isinstance(item, Note))


def test_agent_framework_sessions_with_own_keys() -> None:
    (raw,) = raws_of("agent-framework-redis")
    for name, wanted, session in (
        ("chat_messages|v2|s7", None, "s7"),
        ("x|s7", "s7", "s7"),
        ("chat_messages|~redis-session-!", None, "~redis-session-!"),
    ):
        owner = formats.recognise(RedisValue(name, "list", elements=raw.elements), wanted)
        assert owner is not None
        assert owner.session == session


def _sessions(elements: list[bytes]) -> RedisValue:
    head = memkit_raw().elements[0]
    return RedisValue("session:s", "list", elements=[head, *elements], total=len(elements) + 1)


def test_keys_that_a_library_deletes_are_housekeeping() -> None:
    for name in ("langgraph-redis-shallow", "langgraph-redis-own-prefix", "langgraph-js"):
        keys = [raw.name for raw in raws_of(name)]
        writes = [key for key in keys if re.search(r":\d+$", key) and "_blob" not in key]
        assert writes
        assert all(map(formats.is_housekeeping, writes))
        assert not any(formats.is_housekeeping(key) for key in keys if key.startswith(("checkpoint:", "myapp_ckpt")))
    assert formats.deletes_own_keys("checkpoint:sess-A::shallow")
    assert not formats.deletes_own_keys("checkpoint:sess-A:__empty__:1f1eb487-c0ee-6680-ffff-c1023ffb8b5f")


@pytest.mark.parametrize(("numbers", "waits"), [((0,), False), ((-3,), True), ((-3, -4, 0), False)])
def test_an_interrupted_thread_needs_its_writes(numbers: tuple[int, ...], waits: bool) -> None:
    """The interrupt of a task that has written since is not waited for."""
    step, task = "sess-A:__empty__:1f1eb487-c0ee-6680-ffff-c1023ffb8b5f", "6f1e80ea-a5e3-9c18-6bd6-8d3449617764"
    needless = {f"checkpoint_write:{step}:{task}:{number}" for number in numbers}
    needless.add("write_registry:sess-A:__empty__:shallow")
    assert set(formats.superseded({"checkpoint:sess-A:", *needless})) == (set() if waits else needless)


def test_a_layout_is_an_entry_of_at_most_15_lines() -> None:
    calls = [
        node
        for node in ast.walk(ast.parse(Path(store_layouts.__file__).read_text("utf-8")))
        if isinstance(node, ast.Call)
    ]
    entries = [node for node in calls if isinstance(node.func, ast.Name) and node.func.id == "Layout"]
    assert len(entries) == len(store_layouts.LAYOUTS)
    assert max((node.end_lineno or 0) - node.lineno + 1 for node in entries) <= 15
