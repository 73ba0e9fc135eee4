"""Secrets are planted in every place a session has, and looked for in everything that can be shown."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
import traceback
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest
import redis

from memkit.errors import MemkitError
from memkit.formats import capture
from memkit.inspect import SessionReport, inspect_session, load_capture
from memkit.server import RedisServer
from memkit.store import MemoryStore

SECRET = "Canary7731"
ATTACK = f"<script>alert('{SECRET}')</script>\x1b]0;{SECRET}\x07\x1b[2J\u202e{SECRET}\u2066\x9b31m\r\n{SECRET}"
CAPTURES = capture.names()
FIRST = (
    *("ag2", "agent-framework-redis", "agno", "google-adk-redis", "langchain-community", "langchain-redis"),
    *("langgraph-plainredis", "langgraph-redis", "langgraph-redis-refresh", "langgraph-redis-shallow", "llama-index"),
    *("memkit", "openai-agents", "redisvl"),
)
"""Stores with texts that can be replaced by secrets without losing their form."""


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer(port=0) as running:
        yield running


def plant(value: Any, *, structure: frozenset[str]) -> Any:
    """Return a JSON value with a secret in place of each text that is not structure."""
    if isinstance(value, str):
        return (
            value
            if value in structure or value.startswith(("sess-A", "agno:", "checkpoint", "lg:", "2026-"))
            else ATTACK
        )
    if isinstance(value, list):
        return [plant(each, structure=structure) for each in value]
    if isinstance(value, dict):
        return {key: plant(each, structure=structure) for key, each in value.items()}
    return value


STRUCTURE = frozenset((
    *("user", "human", "ai", "assistant", "tool", "system", "model", "function", "message", "text", "tool_call"),
    *("function_call", "function_call_output", "function_result", "function_response", "constructor", "json"),
    *("HumanMessage", "AIMessage", "ToolMessage", "langchain", "schema", "messages", "input", "loop", "__empty__"),
    *("msgpack", "ag2.events.input_events.TextInput", "ag2.events.tool_events.ToolCallEvent"),
    *("ag2.events.tool_events.ToolResultEvent", "ag2.events.tool_events.ToolResult"),
))  # fmt: skip


def planted_element(element: str) -> str:
    """Return an element with secrets; before memkit's own stands a stamp, and its header has its form."""
    stamp, _, body = element.partition('",{')
    if stamp[:1] == '"' and " " not in stamp:
        return f'{stamp}",{json.dumps(plant(json.loads("{" + body), structure=STRUCTURE))}'
    header = element.startswith('{"memkit"')
    return element if header else json.dumps(plant(json.loads(element), structure=STRUCTURE))


def planted(client: redis.Redis, name: str) -> str:
    """Load a capture with a secret in place of every text that does not give it its form."""
    session = load_capture(client, name, json_as_text=True)
    for entry in capture.capture(name)["keys"]:
        key, value = entry["key"], entry["value"]
        if entry["type"] == "list":
            client.delete(key)
            client.rpush(key, *map(planted_element, value))
        elif entry["type"] == "hash" and name == "redisvl":
            client.hset(key, "content", ATTACK)
            client.hset(key, "metadata", json.dumps({"tool_call": {"name": SECRET, "id": SECRET}}))
        elif isinstance(value, str) and value[:1] == "{" and name != "langgraph-plainredis":
            ids = frozenset(re.findall(r"[0-9a-f-]{36}|1f1e[0-9a-f-]+|0000[0-9.]+", value)) | {
                "bot",
                "u1",
                "agent",
                "RUNNING",
            }
            client.set(key, json.dumps(plant(json.loads(value), structure=STRUCTURE | ids)), keepttl=True)
    return session


def everything_shown(report: SessionReport) -> Iterator[str]:
    yield from (report.to_json(), report.to_text(), report._repr_html_(), repr(report), str(report))
    yield from (repr(report.messages), repr(report.keys), repr(report.problems), repr(report.notes))
    yield from (problem.repair for problem in report.problems)
    yield from (report.to_frame(table).to_csv() for table in ("messages", "keys", "problems"))
    yield repr(report.to_dict())


class Tags(HTMLParser):
    """Collects what a browser would act on."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes |= {name for name, _ in attrs}


def harmless(report: SessionReport) -> None:
    tags = Tags()
    tags.feed(report._repr_html_())
    assert tags.seen <= {"div", "p", "strong", "code", "table", "caption", "thead", "tbody", "tr", "th", "td", "pre"}
    assert tags.attributes <= {"class", "scope", "style"}
    frames = [report.to_frame(table) for table in ("messages", "keys", "problems")]
    cells = [cell for frame in frames for column in frame for cell in frame[column] if isinstance(cell, str)]
    # A frame keeps line breaks, which pandas writes out.
    broken = [line for cell in cells for line in cell.split("\n")]
    for shown in (report.to_text(), report.to_json(), report._repr_html_(), repr(report), *broken):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", shown)
        shown.encode()


@pytest.mark.parametrize("name", FIRST)
def test_no_secret_is_shown_unless_asked_for(client: redis.Redis, name: str) -> None:
    report = inspect_session(client, planted(client, name))
    if name == "langgraph-plainredis":
        secrets = ["Zürich", "get_weather", "call_1", "breeze"]
    else:
        secrets = [SECRET]
        assert any(message.chars for message in report.messages)
    for shown in everything_shown(report):
        for secret in secrets:
            assert secret not in shown
    harmless(report)
    revealed = inspect_session(client, "sess-A", reveal=True)
    assert all(
        secret in revealed.to_json() or secret in json.dumps(revealed.to_dict(), ensure_ascii=False)
        for secret in secrets
    )
    harmless(revealed)


@pytest.mark.parametrize("name", FIRST)
def test_no_secret_is_in_the_report_of_damage(client: redis.Redis, name: str) -> None:
    planted(client, name)
    for entry in capture.capture(name)["keys"]:
        key = entry["key"]
        if entry["type"] == "list":
            for index in range(3):
                client.lset(key, index, client.lindex(key, index)[:-9] + SECRET)
        elif isinstance(entry["value"], str) and entry["value"][:1] == "{":
            client.set(key, (client.get(key) or "")[:-9] + SECRET, keepttl=True)
    report = inspect_session(client, "sess-A")
    assert report.problems
    for shown in everything_shown(report):
        assert SECRET not in shown
    harmless(report)


@pytest.mark.parametrize("name", CAPTURES)
def test_no_text_of_a_capture_is_shown_unrevealed(client: redis.Redis, name: str) -> None:
    report = inspect_session(client, load_capture(client, name, json_as_text=True))
    texts = [text for message in capture.capture(name)["expected"] for text in message["text"].splitlines() if text]
    for shown in everything_shown(report):
        for text in [*texts, "get_weather"]:
            assert text not in shown
    harmless(report)


@pytest.mark.parametrize(
    "payload",
    [SECRET.encode() * 9, ATTACK.encode(), pickle.dumps({"text": SECRET}), b"\x00\x01" + SECRET.encode(),
     json.dumps({"a": ATTACK}).encode(),
     json.dumps([{"role": SECRET, "content": ATTACK, "name": SECRET}]).encode(), json.dumps([ATTACK]).encode()],
)  # fmt: skip
def test_no_secret_of_an_unknown_store_is_shown(client: redis.Redis, payload: bytes) -> None:
    client.set("some:key", payload)
    report = inspect_session(client, "some:key")
    for shown in everything_shown(report):
        assert SECRET not in shown
        assert SECRET.encode().hex(" ") not in shown
    harmless(report)
    harmless(inspect_session(client, "some:key", reveal=True))


def test_memkits_own_header_is_not_shown_either(client: redis.Redis) -> None:
    store = MemoryStore(client, prefix="session:", ttl="7d")
    store.save("s", [{"role": "user", "content": ATTACK, "id": SECRET, "name": SECRET}])
    store.update("s", summary=SECRET, metadata={SECRET: SECRET})
    header = client.lindex("session:s", 0)
    for damaged in (
        header,
        header.replace('"sliding', f'"{SECRET} '),
        header.replace('"born":"', f'"born":["{SECRET}'),
        header[:-3],
    ):
        client.lset("session:s", 0, damaged)
        report = inspect_session(client, "s")
        for shown in everything_shown(report):
            assert SECRET not in shown
        harmless(report)


def test_a_hostile_session_name_does_no_harm(client: redis.Redis) -> None:
    name = "</code><script>alert(1)</script>\x1b[2J\u202e"
    client.rpush(f"message_store:{name}", *capture.capture("langchain-community")["keys"][0]["value"])
    harmless(inspect_session(client, name))
    client.rpush(f"x/{name}", *capture.capture("langchain-community")["keys"][0]["value"])
    for missing in (name, f"{name}?"):
        with pytest.raises(MemkitError) as refused:
            inspect_session(client, missing)
        assert not re.search(r"[\x00-\x1f\u202e]", str(refused.value))


def test_equal_texts_have_equal_hashes_in_one_report(client: redis.Redis) -> None:
    texts = ["yes", "no", "yes", ""]
    client.rpush(
        "message_store:s",
        *[json.dumps({"type": "human", "data": {"content": text}, "n": at}) for at, text in enumerate(texts)],
    )
    first, second = ([message.hash for message in inspect_session(client, "s").messages] for _ in range(2))
    assert first[1] == first[3] != first[2]
    assert not set(first) & set(second)


def test_hashes_do_not_depend_on_pythonhashseed(server: RedisServer, client: redis.Redis) -> None:
    client.rpush("message_store:s", json.dumps({"type": "human", "data": {"content": "yes"}}))
    code = f"from memkit.inspect import inspect_session; print(inspect_session({server.url!r}, 's').messages[0].hash)"
    python = [sys.executable, "-c", code]
    runs = [subprocess.run(python, env={"PYTHONHASHSEED": "0"}, capture_output=True, check=True).stdout for _ in "ab"]
    assert runs[0] != runs[1]


@pytest.mark.parametrize("tail", ["localhost:1/0", "localhost:{port}/0", "localhost:x/0", "localhost/a/b", "[::1/0"])
def test_a_password_in_a_url_is_never_shown(server: RedisServer, tail: str) -> None:
    url = f"redis://user:{SECRET}@{tail.format(port=server.port)}"
    with pytest.raises((MemkitError, redis.RedisError, ValueError)) as refused:
        inspect_session(url, "sess-A")
    assert SECRET not in "".join(traceback.format_exception(refused.value))


def test_ids_that_only_a_payload_states_are_hidden(client: redis.Redis) -> None:
    session = load_capture(client, "agno")
    run = "agno:runs:f082bd82-75bf-46ce-8948-423d61b19d2b"
    document = json.loads(client.get(run) or "")
    client.set(run, json.dumps(document | {"user_id": SECRET, "agent_id": f"a:{SECRET}"}), keepttl=True)
    client.zadd(f"agno:runs:by_session:{session}", {SECRET: 9})
    client.delete("agno:runs:index:status:RUNNING")
    report = inspect_session(client, session)
    for shown in everything_shown(report):
        assert SECRET not in shown
    keys = {problem.key for problem in report.problems}
    assert {"agno:runs:index:user_id:…", "agno:runs:…", "agno:runs:index:status:RUNNING"} <= keys
    client.delete(f"agno:runs:by_session:{session}")
    client.sadd(f"agno:runs:index:session_id:{session}", SECRET)
    assert not [shown for shown in everything_shown(inspect_session(client, session)) if SECRET in shown]
    assert SECRET in inspect_session(client, session, reveal=True).to_json()


@pytest.mark.parametrize("store", ["google-adk-redis", "redisvl", "langchain-redis"])
def test_a_session_id_only_in_a_payload_is_hidden(client: redis.Redis, store: str) -> None:
    load_capture(client, store, json_as_text=True)
    for entry in capture.capture(store)["keys"]:
        if entry["type"] == "hash":
            client.hset(entry["key"], "session_tag", SECRET)
        else:
            client.set(entry["key"], entry["value"].replace('"sess-A"', f'"{SECRET}"'))
        for shown in everything_shown(inspect_session(client, entry["key"])):
            assert SECRET not in shown


@pytest.mark.parametrize("thread", [SECRET, f"a b {SECRET}", f"{SECRET}:1"])
def test_a_thread_in_a_payload_is_hidden_in_a_repair(client: redis.Redis, thread: str) -> None:
    load_capture(client, "langgraph-redis", json_as_text=True)
    key = max(name for name in client.keys("checkpoint:*"))
    client.set(key, (client.get(key) or "").replace('"sess-A"', json.dumps(thread)), keepttl=True)
    report = inspect_session(client, key)
    for shown in everything_shown(report):
        assert SECRET not in shown
    (repair,) = [problem.repair for problem in report.problems if problem.repair]
    assert repair.startswith("SET checkpoint_latest:")
    assert repair.endswith(
        f" {key} EX <the checkpoints' TTL in seconds> (names in it are hidden; --reveal, or reveal=True, prints them)"
    )
    (revealed,) = [problem.repair for problem in inspect_session(client, key, reveal=True).problems if problem.repair]
    assert SECRET in revealed
    assert "hidden" not in revealed


def test_a_repair_of_known_names_is_shown_whole(client: redis.Redis) -> None:
    for name, lost in (
        ("langgraph-redis", "checkpoint_latest:sess-A:__empty__"),
        ("agno", "agno:runs:by_session:sess-A"),
        ("langgraph-plainredis", "lg:idx:sess-A:"),
        ("langgraph-redis-shallow", "write_registry:sess-A:__empty__:shallow"),
    ):
        client.flushall()
        load_capture(client, name, json_as_text=True)
        client.delete(lost)
        hidden, revealed = (
            [problem.repair for problem in inspect_session(client, "sess-A", reveal=reveal).problems if problem.repair]
            for reveal in (False, True)
        )
        assert hidden == revealed != []


def test_a_frame_holds_nothing_that_a_terminal_acts_on(client: redis.Redis) -> None:
    client.rpush(
        "message_store:\x1b[2Ja", json.dumps({"type": "human", "data": {"content": "two\nlines \x1b[31m\u202e"}})
    )
    report = inspect_session(client, "\x1b[2Ja", reveal=True)
    assert report.to_frame("keys").key[0] == "message_store:\\x1b[2Ja"
    assert report.to_frame().text[0] == "two\nlines \\x1b[31m\\u202e"
    assert report.messages[0].text == "two\nlines \x1b[31m\u202e"
