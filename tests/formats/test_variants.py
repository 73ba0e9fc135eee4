"""What libraries write beside their captures: parts, several calls, empty sessions, own prefixes, other ids."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from memkit.formats import capture
from memkit.formats.capture import _commands
from memkit.inspect import inspect_session
from memkit.server import RedisServer

VARIANTS = {each["name"]: each for each in json.loads(Path(__file__).with_name("variants.json").read_text("utf-8"))}
"""In the format of the captures, with the causes of the problems that are right."""
OLD = "sess-A"
IDS = ("a:b", "user@example.com", "web/chat/9", ":lead:", "session:1", 'q"uo{t}e', "ключ")
CAPTURES = [name for name in capture.names() if name not in ("agent-framework-redis", "memkit")]


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as running:
        yield running


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    with server.client() as client:
        client.flushall()
        yield client


def write(client: redis.Redis, keys: list[Any]) -> None:
    pipe = client.pipeline(transaction=False)
    for entry in keys:
        for command in _commands(entry, json_as_text=True):
            pipe.execute_command(*command)
    pipe.execute()


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_of_a_store_is_decoded(client: redis.Redis, name: str) -> None:
    variant = VARIANTS[name]
    write(client, variant["keys"])
    names = [entry["key"] for entry in variant["keys"]]
    for asked in (variant["session_id"], *(key for key in names if not key.endswith(":counter"))):
        report = inspect_session(client, asked, reveal=True)
        assert [[message.role, message.text] for message in report.messages] == variant["expected"], asked
        assert [problem.cause for problem in report.problems] == variant["causes"], asked
        assert sorted(key.key for key in report.keys) == sorted(names), asked
        assert report.store == ("unknown" if name == "langchain4j empty" else variant["store"]), asked
    shown = inspect_session(client, variant["session_id"]).to_json()
    assert not [text for _, text in variant["expected"] if len(text) > 3 and json.dumps(text)[1:-1] in shown]


def renamed(value: Any, session: str) -> Any:
    """Return a capture's value with another session id in it, escaped in values that are JSON."""
    if isinstance(value, str):
        return value.replace(OLD, json.dumps(session, ensure_ascii=False)[1:-1] if value[:1] in ("{", "[") else session)
    if isinstance(value, list):
        return [renamed(each, session) for each in value]
    if isinstance(value, dict):
        return {renamed(name, session): renamed(each, session) for name, each in value.items()}
    return value


@pytest.mark.parametrize("session", IDS)
def test_every_capture_under_another_id(client: redis.Redis, session: str) -> None:
    for name in CAPTURES:
        client.flushall()
        kept = capture.capture(name)
        write(client, [renamed(entry, session) for entry in kept["keys"]])
        wanted = renamed(kept["session_id"], session)
        report = inspect_session(client, wanted, reveal=True)
        assert (report.store, report.session) == (kept["store"], wanted)
        assert len(report.keys) == len(kept["keys"]), name
        assert {problem.cause for problem in report.problems} <= {"no_ttl"}, name
        by_key = inspect_session(client, renamed(kept["keys"][0]["key"], session), reveal=True)
        assert by_key.store == "unknown" or by_key.session == wanted, name
