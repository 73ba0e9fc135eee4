"""ReadOnlyConnection, open_target and Reader on real servers: what is sent, counted, routed and received."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import redis.asyncio
from servers import every_server, start
from topology import cluster, watched
from waiting import wait_for

import memkit
from memkit.audit import audit
from memkit.errors import PolicyError
from memkit.inspect import inspect_session
from memkit.readonly import KeyRequest, Reader, ReadOnlyConnection, open_target
from memkit.readonly.connection import KeyCommands, command, refused
from memkit.server import RedisServer

LANES = [name for name, binary in every_server().items() if binary]
FIRST = every_server()[LANES[0]]
WEEK_S = 604_800
PRIVATE_NAMES = {"_sock", "_parser", "_parsers", "_reader", "_buffer", "_connect", "_conn", "_encoder"}
"""Of redis-py's connections and parsers."""


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with start(LANES[-1]) as server:
        yield server


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    with server.client() as client:
        client.flushall()
        yield client


@pytest.fixture
def connection(client: redis.Redis) -> Iterator[ReadOnlyConnection]:
    connection = ReadOnlyConnection(client, name="here")
    yield connection
    connection.close()


# -- redis-py's private attributes -------------------------------------------------------------------------------------


def test_one_file_uses_private_attributes_of_redis_py() -> None:
    root = Path(memkit.__file__).parent
    users = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            own = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
            if isinstance(node, ast.Attribute) and node.attr in PRIVATE_NAMES and not own:
                users.add(path.relative_to(root).as_posix())
            if isinstance(node, ast.ImportFrom | ast.Import):
                modules = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                if any(name.startswith("redis") and "._" in name for name in modules):
                    users.add(path.relative_to(root).as_posix())
    assert users == {"readonly/connection.py"}


# -- one connection ----------------------------------------------------------------------------------------------------


def test_commands_are_counted_as_the_server_counts(client: redis.Redis, connection: ReadOnlyConnection) -> None:
    client.mset({f"key:{n}": "x" for n in range(7)})
    client.config_resetstat()
    before = connection.sent.copy()
    keys = KeyCommands([f"key:{n}".encode() for n in range(7)], ("type", "object|idletime"))
    connection.send([command("SCAN", 0), command("config", "get", "save")], keys, [command("TIME")]).take()
    stats = client.info("commandstats")
    counted = {name.removeprefix("cmdstat_"): stats[name]["calls"] for name in stats}
    assert dict(connection.sent - before) == {name: counted[name] for name in connection.sent - before}
    assert connection.sent["type"] == connection.sent["object|idletime"] == 7


def test_replies_can_be_taken_out_of_order(client: redis.Redis, connection: ReadOnlyConnection) -> None:
    client.mset({"a": "1", "b": "2"})
    commands = KeyCommands([b"a", b"missing"], ("type", "pttl"))
    first = connection.send([command("GET", "a")], commands, [command("GET", "b")])
    second = connection.send([])
    third = connection.send([command("ECHO", "third")])
    assert first.take(1) == [b"1"]
    assert connection.ask("ECHO", "last") == b"last"
    assert third.take() == [b"third"]
    assert second.take() == []
    assert first.columns(commands) == {"type": [b"string", b"none"], "pttl": [-1, -2]}
    assert first.take() == [b"2"]


def test_a_refused_command_is_returned_not_raised(client: redis.Redis, connection: ReadOnlyConnection) -> None:
    client.set("a", "1")
    replies = connection.send([command("LLEN", "a"), command("GET", "a")]).take()
    assert refused(replies[0])
    assert str(replies[0]).startswith("WRONGTYPE")
    assert replies[1] == b"1"


def test_a_broken_connection_names_the_server(client: redis.Redis, connection: ReadOnlyConnection) -> None:
    client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    with pytest.raises(redis.ConnectionError, match="here"):
        connection.ask("TIME")


def test_an_audit_ends_if_its_connection_breaks(server: RedisServer, client: redis.Redis) -> None:
    for n in range(500):
        client.set(f"chat:{n}", "{}", ex=WEEK_S)

    def kill(_done: int, _of: int) -> None:
        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    with pytest.raises(redis.ConnectionError, match="while it was being read"):
        audit(server.url, expect={"chat:*": "7d"}, progress=kill, duty=1)


def test_a_server_that_stops_answering_is_a_timeout(client: redis.Redis, connection: ReadOnlyConnection) -> None:
    # What was sent is held back: the server answers after the pause.
    connection.socket.settimeout(0.1)
    client.execute_command("CLIENT", "PAUSE", 400, "ALL")
    with pytest.raises(redis.TimeoutError, match="here stopped answering"):
        connection.ask("TIME")


def test_reading_a_value_keeps_its_idle_time(any_server: RedisServer) -> None:
    with any_server.client() as client:
        client.set("k", "v")
        any_server.clock.shift("1h")
        with open_target(client) as target:
            reader = Reader(target)
            assert reader.load([KeyRequest("k", "")])["k"]
            kept = client.object("idletime", "k") >= 3_599
            assert kept == (target.why_idle_times_reset == "")


# -- a target ----------------------------------------------------------------------------------------------------------


def test_a_target_is_a_url_or_a_synchronous_client(client: redis.Redis) -> None:
    with open_target(client) as target:
        assert [connection.ask("PING") for connection in target.connections] == [b"PONG"]
    for wrong in (redis.asyncio.Redis(), object()):
        with pytest.raises(PolicyError, match="expected"):
            open_target(wrong).__enter__()


def test_a_target_closes_its_connections(server: RedisServer, client: redis.Redis) -> None:
    before = len(client.client_list())
    with open_target(server.url), open_target(client):
        assert len(client.client_list()) == before + 2
    # The server sees the end of a connection in a turn of its own.
    wait_for("the connections to close", lambda: len(client.client_list()), lambda count: count == before)


def test_an_audit_opens_each_server_once(server: RedisServer, client: redis.Redis) -> None:
    for n in range(50):
        client.set(f"chat:{n}", "{}", ex=WEEK_S)
    client.config_resetstat()
    before = client.info("stats")["total_connections_received"]
    audit(server.url, expect={"chat:*": "7d"}, full=True, duty=1)
    assert client.info("stats")["total_connections_received"] - before == 1


def test_sentinel_leads_to_the_primary() -> None:
    assert FIRST
    with watched(FIRST.path) as made, open_target(made.url) as target:
        (connection,) = target.connections
        assert connection.name == f"127.0.0.1:{made.primary().port}/0"


def test_each_cluster_node_leads_to_all_primaries() -> None:
    assert FIRST
    with cluster(FIRST.path) as made, made.client() as client:
        names = [f"chat:{n}" for n in range(300)]
        for name in names:
            client.set(name, "{}", ex=WEEK_S)
        ports = sorted(server.port or 0 for server in made.primaries)
        reports = []
        nodes = [f"redis://127.0.0.1:{server.port}" for server in made.servers]
        for url in (made.url, *nodes):
            with open_target(url) as target:
                assert sorted(connection.ask("CONFIG", "GET", "port")[1] for connection in target.connections) == [
                    str(port).encode() for port in ports
                ]
                loaded = Reader(target).load(KeyRequest(name, "") for name in [*names, "missing"])
                assert [name for name, each in loaded.items() if each is None] == ["missing"]
                assert {each.value.data for each in loaded.values() if each} == {b"{}"}
            reports.append(audit(url, expect={"chat:*": "7d"}, duty=1))
        assert {(one.sample["keys"], one.sample["of"]) for one in reports} == {(300, 300)}
        for url in nodes:
            assert inspect_session(url, "chat:7").keys[0].key == "chat:7"
