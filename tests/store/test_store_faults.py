"""MemoryStore when things go wrong: full memory, eviction, denied commands, crashes, damage. Whole or not at all."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import redis
from servers import every_server, start
from waiting import wait_for

import memkit.store.store
from memkit.connect import connect
from memkit.errors import DecodeError, ServerError, SessionNotFound
from memkit.policy import ExpiryPolicy
from memkit.server import RedisServer, free_port
from memkit.store import MemoryStore

HI = {"role": "user", "content": "hi"}
VECTORS = np.zeros(3, dtype="float32")
WEEK_MS = 7 * 86_400_000


@pytest.fixture(scope="module", params=every_server())
def one_server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    with start(request.param) as server:
        yield server


@pytest.fixture
def any_server(
    one_server: RedisServer, request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> RedisServer:
    """One server for all tests of this module, as new for each of them."""
    record_property("server", request.node.callspec.params["one_server"])
    with one_server.client() as client:
        client.replicaof("NO", "ONE")
        client.config_set("maxmemory", 0)
        client.config_resetstat()
        client.acl_deluser("limited", "own")
        client.flushall()
    return one_server


@pytest.fixture
def client(any_server: RedisServer) -> Iterator[redis.Redis]:
    with any_server.client() as client:
        yield client


@pytest.fixture
def store(client: redis.Redis) -> MemoryStore:
    return MemoryStore(client, prefix="session:", ttl="7d")


def writes(store: MemoryStore, session_id: str = "a") -> dict[str, Callable[[], object]]:
    return {
        "append": lambda: store.append(session_id, HI),
        "append of several": lambda: store.append(session_id, HI, {"id": "y"}),
        "append of a known id": lambda: store.append(session_id, {"id": "x"}),
        "save": lambda: store.save(session_id, [HI, HI]),
        "update": lambda: store.update(session_id, summary="s", metadata={"k": 1}),
        "put_vectors": lambda: store.put_vectors(session_id, VECTORS),
        "touch": lambda: store.touch(session_id),
    }


NAMES = sorted(writes(MemoryStore(redis.Redis(), prefix="", ttl=None)))


def seeded(client: redis.Redis, *, vectors: bool = False) -> MemoryStore:
    store = MemoryStore(client, prefix="session:", ttl="7d")
    store.save("a", [HI] * 40)
    store.append("a", {"id": "x"})
    store.append("a", HI)
    store.update("a", summary="short", metadata={"user": "bob"})
    if vectors:
        store.put_vectors("a", VECTORS)
    return store


# Full memory


def fill(client: redis.Redis, policy: str) -> None:
    client.config_set("maxmemory-policy", policy)
    client.config_set("maxmemory", client.info("memory")["used_memory"] // 2)


@pytest.mark.parametrize("first", [True, False])
def test_full_memory_is_an_error_without_changes(client: redis.Redis, first: bool) -> None:
    store = seeded(client)
    if first:
        store = MemoryStore(client, prefix="session:", ttl="7d")
    before = client.lrange("session:a", 0, -1)
    fill(client, "noeviction")
    for session_id in ("a", "new"):
        for name, write in writes(store, session_id).items():
            if name == "touch":
                continue
            if session_id == "new" and name in ("update", "put_vectors"):
                with pytest.raises(SessionNotFound):
                    write()
                continue
            # OutOfMemoryError from 7.0 on; 6.2 wraps what a script meets.
            with pytest.raises(redis.ResponseError, match="OOM|maxmemory"):
                write()
    assert client.lrange("session:a", 0, -1) == before
    assert client.keys() == [b"session:a"]
    assert client.pttl("session:a") > 0


def test_reads_and_deletes_work_with_full_memory(client: redis.Redis, any_server: RedisServer) -> None:
    seeded(client)
    store = MemoryStore(client, prefix="session:", ttl=ExpiryPolicy.sliding("7d", refresh_on_read=True))
    any_server.clock.shift("6d")
    fill(client, "noeviction")
    assert len(store.load("a") or []) == 42
    assert client.pttl("session:a") > WEEK_MS - 60_000
    assert store.touch("a") is True
    assert store.delete("a") is True


@pytest.mark.parametrize("policy", ["allkeys-lfu", "volatile-lru", "volatile-ttl"])
def test_eviction_takes_whole_sessions(client: redis.Redis, policy: str) -> None:
    store = MemoryStore(client, prefix="session:", ttl="7d")
    limit = client.info("memory")["used_memory"] + 700_000
    client.config_set("maxmemory-policy", policy)
    client.config_set("maxmemory", limit)
    writer = 0
    while writer % 10 or client.info("stats")["evicted_keys"] < 100:  # INFO takes as long as a session
        session_id = str(writer)
        store.save(session_id, [{"n": n, "text": "x" * 300} for n in range(5)])
        for n in range(5, 8):
            if store.load(session_id) is None:
                break
            try:
                store.append(session_id, {"n": n, "text": "x" * 300}, create=False)
            except SessionNotFound:
                break
        writer += 1
        assert writer < 5_000
    whole = 0
    for session_id in store.sessions():
        found = store.get(session_id)
        if found:
            numbers = [message["n"] for message in found.messages]
            assert numbers == list(range(len(numbers)))
            assert len(numbers) >= 5
            assert found.ttl is not None
            whole += 1
    assert whole > 50
    assert whole < writer


# Denied commands: as good as a crash between two commands


def restricted(client: redis.Redis, server: RedisServer, *denied: str) -> redis.Redis:
    client.acl_setuser("limited", reset=True, enabled=True, nopass=True, keys=["*"], commands=["+@all", *denied])
    return server.client(username="limited", password="x")


DENIED = ["-pexpire", "-rpush", "-lset", "-ltrim", "-pttl", "-lindex", "-llen", "-lrange", "-time", "-setnx", "-rpushx"]
DENIED += ["-set", "-evalsha", "-eval", "-@write", "-@list", "-@keyspace"]


@pytest.mark.parametrize("denied", DENIED)
@pytest.mark.parametrize("vectors", [False, True])
def test_a_denied_command_changes_nothing(
    client: redis.Redis, any_server: RedisServer, denied: str, vectors: bool
) -> None:
    reference = seeded(client, vectors=vectors)
    with restricted(client, any_server, denied) as limited:
        for name in NAMES:
            client.expire("session:a", 3600)
            before, head = client.lrange("session:a", 1, -1), client.lindex("session:a", 0)
            try:
                writes(MemoryStore(limited, prefix="session:", ttl="7d"))[name]()
            except redis.exceptions.NoPermissionError:
                assert client.lrange("session:a", 1, -1) == before
                assert client.lindex("session:a", 0) == head
                assert 3_500_000 < client.pttl("session:a") <= WEEK_MS
            except redis.ResponseError:  # 6.2 wraps what a script meets
                assert client.lrange("session:a", 1, -1) == before
            else:
                assert client.pttl("session:a") > WEEK_MS - 60_000
            assert reference.get("a") is not None
            assert reference.load("a") is not None


@pytest.mark.parametrize("denied", DENIED)
@pytest.mark.parametrize("name", ["append", "append of several", "save"])
def test_a_denied_command_leaves_no_persistent_session(
    client: redis.Redis, any_server: RedisServer, denied: str, name: str
) -> None:
    with restricted(client, any_server, denied) as limited:
        try:
            writes(MemoryStore(limited, prefix="session:", ttl="7d"))[name]()
        except redis.ResponseError:
            assert client.keys() == []
        else:
            assert client.pttl("session:a") > WEEK_MS - 60_000


@pytest.mark.parametrize("denied", ["-rpush", "-lset", "-ltrim", "-lpos", "-@write"])
@pytest.mark.parametrize("added", [1, 5])
def test_a_denied_save_leaves_what_was_to_grow(
    client: redis.Redis, any_server: RedisServer, denied: str, added: int
) -> None:
    dialogue = [{"text": "x" * 3_000} for _ in range(9)]
    store = MemoryStore(client, prefix="session:", ttl="7d")
    store.save("a", dialogue)
    before = client.lrange("session:a", 0, -1)
    grown = dialogue + [{"text": "y" * 3_000}] * added
    with restricted(client, any_server, denied) as limited:
        try:
            MemoryStore(limited, prefix="session:", ttl="7d").save("a", grown)
        except redis.ResponseError:
            assert client.lrange("session:a", 0, -1) == before
        else:
            assert store.load("a") == grown


def test_a_grown_dialogue_is_not_replicated_whole() -> None:
    with RedisServer(config={"appendonly": "yes"}) as server, server.client() as client:
        store = MemoryStore(client, prefix="session:", ttl="7d")
        dialogue = [{"role": "user", "content": f"{n} " + "x" * 300} for n in range(1_000)]
        store.save("a", dialogue)
        before = client.info("persistence")["aof_current_size"]
        store.save("a", [*dialogue, {"role": "user", "content": "one more"}])
        assert client.info("persistence")["aof_current_size"] - before < 20_000
        assert len(store.load("a") or []) == 1_001


def test_user_without_vector_keys_can_store_messages(client: redis.Redis, any_server: RedisServer) -> None:
    client.acl_setuser("own", reset=True, enabled=True, nopass=True, keys=["session:*"], commands=["+@all"])
    with any_server.client(username="own", password="x") as limited:
        store = MemoryStore(limited, prefix="session:", ttl="7d")
        for name, write in writes(store).items():
            if name != "put_vectors":
                write()
        before = client.lrange("session:a", 0, -1)
        with pytest.raises(redis.ResponseError, match=r"permission|can't access|No permissions"):
            store.put_vectors("a", VECTORS)
        assert client.lrange("session:a", 0, -1) == before
        assert store.delete("a") is True


def test_the_documented_rights_are_enough(client: redis.Redis, any_server: RedisServer) -> None:
    assert memkit.store.store.__doc__
    named = re.findall(r"\b[A-Z]{3,}\b", memkit.store.store.__doc__.partition("needs,")[2])
    commands = [f"+{name.lower()}" for name in named] + ["+select", "+hello"]  # redis-py's own
    keys = ["session:*", "{session:*"]
    client.acl_setuser("limited", reset=True, enabled=True, nopass=True, keys=keys, commands=commands)
    with any_server.client(username="limited", password="x") as limited:
        store = MemoryStore(limited, prefix="session:", ttl="7d")
        for _ in range(2):
            for write in writes(store).values():
                write()
        MemoryStore(limited, prefix="session:", ttl=None, shorten=True).append("a", HI)
        assert store.get("a")
        assert store.get_vectors("a") is not None
        assert list(store.sessions()) == ["a"]
        assert store.ttl("a") is None
        assert store.delete("a") is True


# Scripts, crashes, replicas


def test_a_flushed_script_is_sent_again(client: redis.Redis, store: MemoryStore) -> None:
    for n in range(5):
        store.append("a", {"n": n})
        client.script_flush()
        store.save("b", [{"n": n}])
        client.script_flush()
    assert store.load("a") == [{"n": n} for n in range(5)]


def test_a_restart_keeps_acknowledged_writes(any_server: RedisServer) -> None:
    with RedisServer(binary=any_server._binary.path, persist=True) as server, server.client() as client:
        store = MemoryStore(client, prefix="session:", ttl="7d")
        acknowledged: list[int] = []

        def write() -> None:
            for n in range(100_000):
                try:
                    store.append("a", {"n": n})
                except redis.ConnectionError:
                    break
                acknowledged.append(n)

        thread = threading.Thread(target=write)
        thread.start()
        wait_for("100 acknowledged messages", lambda: len(acknowledged), lambda number: number >= 100)
        server.kill()
        thread.join()
        server.start()
        numbers = [message["n"] for message in store.load("a") or []]
        assert numbers[: len(acknowledged)] == acknowledged
        assert len(acknowledged) <= len(numbers) <= len(acknowledged) + 1
        assert client.pttl("session:a") > WEEK_MS - 60_000
        store.append("a", HI)


def test_a_script_is_atomic_in_the_append_only_file(any_server: RedisServer) -> None:
    with RedisServer(binary=any_server._binary.path, persist=True, config={"aof-use-rdb-preamble": "no"}) as server:
        with server.client() as client:
            store = MemoryStore(client, prefix="session:", ttl="7d")
            store.save("a", [{"n": 1}])
            store.put_vectors("a", VECTORS)
            store.save("a", [{"n": 2}, {"n": 2}])
        (aof,) = [path for path in server.directory.rglob("*.aof") if path.stat().st_size]
        server.kill()
        whole = aof.read_bytes()
        seen = set()
        for cut in range(len(whole), 0, -max(1, len(whole) // 12)):
            aof.write_bytes(whole[:cut])
            server.start()
            with server.client() as client:
                found = MemoryStore(client, prefix="session:", ttl="7d").get("a")
                seen.add(None if found is None else tuple(message["n"] for message in found.messages))
                assert found is None or found.ttl is not None
            server.kill()
            aof.write_bytes(whole)
        assert seen <= {None, (1,), (2, 2)}
        assert len(seen) == 3


def test_a_replica_refuses_and_nothing_is_lost(any_server: RedisServer, client: redis.Redis) -> None:
    seeded(client)
    before = client.lrange("session:a", 0, -1)
    client.replicaof("127.0.0.1", "1")
    store = MemoryStore(client, prefix="session:", ttl="7d")
    for name, write in writes(store).items():
        if name != "append of a known id":
            # ReadOnlyError from 7.0 on; 6.2 wraps what a script meets.
            with pytest.raises(redis.ResponseError, match="read only replica"):
                write()
    assert store.load("a") is not None
    assert client.lrange("session:a", 0, -1) == before
    assert any_server.running


def test_wait_confirms_a_write_on_its_connection() -> None:
    at_once = {"repl-diskless-sync-delay": "0"}
    with (
        RedisServer(port=0, config=at_once) as primary,
        RedisServer() as replica,
        primary.client() as client,
        client.client() as one_connection,
        replica.client() as admin,
    ):
        store = MemoryStore(one_connection, prefix="session:", ttl="7d")
        store.append("a", HI)
        assert one_connection.wait(1, 1) == 0
        admin.replicaof("127.0.0.1", str(primary.port))
        wait_for("an online replica", lambda: client.info("replication").get("slave0", {}).get("state") == "online")
        store.append("a", HI)
        assert one_connection.wait(1, 60_000) == 1
        assert admin.lrange("session:a", 0, -1) == client.lrange("session:a", 0, -1)


# Expiry in the middle of a read


def test_no_read_sees_half_a_session_at_its_deadline(any_server: RedisServer, client: redis.Redis) -> None:
    store = MemoryStore(client, prefix="session:", ttl="30ms")
    before = after = 0
    for _ in range(15):
        store.save("a", [{"n": n} for n in range(50)])
        while True:
            found, messages = store.get("a"), store.load("a", 20)
            if found is None:
                after += 1
                break
            assert len(found.messages) == 50
            assert found.ttl is not None
            assert 0 <= found.ttl <= 0.03
            assert messages is None or len(messages) == 20
            before += 1
    assert before > after > 0
    assert any_server.running


# Keys that are not a session of this memkit: byte for byte unchanged

WRONG_TYPES: dict[str, Callable[[redis.Redis], object]] = {
    "string": lambda client: client.set("session:a", "x", ex=3600),
    "hash": lambda client: client.hset("session:a", "f", "v"),
    "set": lambda client: client.sadd("session:a", "x"),
    "zset": lambda client: client.zadd("session:a", {"x": 1}),
    "stream": lambda client: client.xadd("session:a", {"f": "v"}),
}
FOREIGN = {
    "langchain": [b'{"type": "human", "data": {"content": "hi"}}'] * 3,
    "raw json": [b'{"role":"user","content":"hi"}'],
    "empty element": [b""],
    "bytes": [b"\xff\xfe\x00", b"x"],
    "looks like one": [b'{"memkit":"1"}', b'"aaaaaaaaa1.0",{"a":1}'],
}


def unchanged(client: redis.Redis, store: MemoryStore, *, reads: bool = True) -> None:
    """Every operation raises DecodeError naming the key; what is stored stays as it was."""
    before, deadline = client.dump("session:a"), client.pexpiretime_or_pttl()  # type: ignore[attr-defined]
    operations: dict[str, Callable[[], object]] = writes(store)
    if reads:
        operations |= {
            "load": lambda: store.load("a"),
            "last": lambda: store.load("a", 1),
            "get": lambda: store.get("a"),
        }
        operations |= {"ttl": lambda: store.ttl("a")}
    for name, operation in operations.items():
        with pytest.raises(DecodeError) as caught:
            operation()
        assert "'session:a'" in str(caught.value), name
    assert client.dump("session:a") == before
    assert abs(client.pexpiretime_or_pttl() - deadline) < 60_000  # type: ignore[attr-defined]


@pytest.fixture
def resettable(client: redis.Redis) -> redis.Redis:
    client.pexpiretime_or_pttl = lambda: client.pttl("session:a")  # type: ignore[attr-defined]
    return client


@pytest.mark.parametrize("kind", sorted(WRONG_TYPES))
def test_a_key_of_another_type_is_unchanged(resettable: redis.Redis, store: MemoryStore, kind: str) -> None:
    WRONG_TYPES[kind](resettable)
    unchanged(resettable, store)
    with pytest.raises(DecodeError):
        store.delete("a")
    assert list(store.sessions()) == []


@pytest.mark.parametrize("kind", sorted(FOREIGN))
def test_a_foreign_list_is_unchanged(resettable: redis.Redis, store: MemoryStore, kind: str) -> None:
    resettable.rpush("session:a", *FOREIGN[kind])
    unchanged(resettable, store)
    with pytest.raises(DecodeError):
        store.delete("a")
    with pytest.raises(DecodeError):  # put there after the delete had looked
        store._write(store._operations.delete("a", b""))


def test_a_newer_schema_is_unchanged(resettable: redis.Redis) -> None:
    store = seeded(resettable)
    head = resettable.lindex("session:a", 0)
    resettable.lset("session:a", 0, head.replace(b'{"memkit":1,', b'{"memkit":2,'))
    for other in (store, MemoryStore(resettable, prefix="session:", ttl="7d")):
        unchanged(resettable, other)
    with pytest.raises(DecodeError, match="newer memkit"):
        store.append("a", HI)


@pytest.mark.parametrize("cut", [1, 9, 40, 120])
def test_a_truncated_header_is_unchanged(resettable: redis.Redis, cut: int) -> None:
    store = seeded(resettable)
    resettable.lset("session:a", 0, resettable.lindex("session:a", 0)[:-cut])
    for other in (store, MemoryStore(resettable, prefix="session:", ttl="7d")):
        unchanged(resettable, other)


@pytest.mark.parametrize("garbage", [b"", b"garbage", b"\xff", b'{"role":"user"}', None])
def test_a_damaged_last_message_is_unchanged(resettable: redis.Redis, garbage: bytes | None) -> None:
    store = seeded(resettable)
    last = resettable.lindex("session:a", -1)
    resettable.lset("session:a", -1, last[:-5] if garbage is None else garbage)
    for other in (store, MemoryStore(resettable, prefix="session:", ttl="7d")):
        for name, operation in writes(other).items():
            before = resettable.dump("session:a")
            with pytest.raises(DecodeError, match=r"'session:a' has a damaged element, number (-1|3)"):
                operation()
            assert resettable.dump("session:a") == before, name
        for read in (other.load, other.get):
            with pytest.raises(DecodeError, match=r"element 3 of 'session:a'"):
                read("a")
        with pytest.raises(DecodeError, match=r"element -1 of 'session:a'"):
            other.load("a", 1)


def test_damage_is_seen_by_the_last_writer(resettable: redis.Redis) -> None:
    store = seeded(resettable)
    store.append("a", HI)
    for index, cut in ((-1, 5), (0, 1)):
        whole = resettable.lindex("session:a", index)
        resettable.lset("session:a", index, whole[:-cut])
        before = resettable.dump("session:a")
        with pytest.raises(DecodeError):
            store.append("a", HI)
        assert resettable.dump("session:a") == before
        resettable.lset("session:a", index, whole)
        store.append("a", HI)


@pytest.mark.parametrize("index", [1, 2])
def test_a_damaged_middle_message_is_not_overwritten(resettable: redis.Redis, index: int) -> None:
    store = seeded(resettable)
    resettable.lset("session:a", index, resettable.lindex("session:a", index)[:-1])
    before = resettable.dump("session:a")
    with pytest.raises(DecodeError, match=rf"'session:a' has a damaged element, number {index}"):
        store.save("a", [HI])
    with pytest.raises(DecodeError, match=rf"element {index} of 'session:a'"):
        store.load("a")
    assert resettable.dump("session:a") == before
    assert store.delete("a") is True


@pytest.mark.parametrize("index", [1, 2, 40, 64, 65, 80])
def test_damage_is_seen_by_a_save_of_the_same_messages(resettable: redis.Redis, index: int) -> None:
    store = MemoryStore(resettable, prefix="session:", ttl="7d")
    dialogue = [{"role": "user", "content": "x" * 7_000, "turn": turn // 3} for turn in range(80)]
    version = store.save("a", dialogue)
    assert resettable.llen("session:a") == 81
    assert store.save("a", dialogue) == version + 1
    resettable.lset("session:a", index, resettable.lindex("session:a", index)[:-1])
    before = resettable.dump("session:a")
    with pytest.raises(DecodeError, match=rf"'session:a' has a damaged element, number {index}"):
        store.save("a", dialogue)
    assert resettable.dump("session:a") == before


def test_damage_in_the_searched_window_is_an_error(resettable: redis.Redis) -> None:
    store = seeded(resettable)
    resettable.lset("session:a", 2, b"garbage")
    with pytest.raises(DecodeError, match="number -2"):
        MemoryStore(resettable, prefix="session:", ttl="7d").append("a", {"id": "new"})
    assert store.append("a", HI) == 5


def test_any_flipped_byte_is_an_error_or_harmless(resettable: redis.Redis) -> None:
    """What is damaged is refused, or still of the right shape; nothing else is raised, and nothing is half done."""
    store = seeded(resettable)
    elements = resettable.lrange("session:a", 0, -1)
    for index, element in enumerate(elements):
        for position in range(0, len(element), 3):
            flipped = element[:position] + bytes([element[position] ^ 0x41]) + element[position + 1 :]
            resettable.lset("session:a", index, flipped)
            for operation in (lambda: store.get("a"), lambda: store.append("a", {"id": "x"})):
                with contextlib.suppress(DecodeError):
                    operation()
            assert resettable.lindex("session:a", index) == flipped
            assert resettable.llen("session:a") <= len(elements) + 1
            resettable.ltrim("session:a", 0, len(elements) - 1)
        resettable.lset("session:a", index, element)


def test_a_server_is_started_by_name() -> None:
    """The tests above run on each server found; none is silently another's binary."""
    for name, binary in every_server().items():
        if binary:
            with start(name) as server, server.client() as client:
                info = client.info("server")
                assert (info.get("valkey_version") or info["redis_version"]) == binary.version


def test_a_tls_url_works(any_server: RedisServer, tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if not openssl:
        pytest.skip("no openssl on PATH to make a certificate with")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([*make, *names, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    port = free_port()
    tls = {"tls-port": port, "tls-cert-file": certificate, "tls-key-file": key, "tls-ca-cert-file": certificate}
    try:
        server = RedisServer(binary=any_server._binary.path, config={**tls, "tls-auth-clients": "no"}).start()
    except ServerError:
        pytest.skip(f"{any_server.flavour} {any_server.version} from {any_server.source} was built without TLS")
    with server, connect(f"rediss://127.0.0.1:{port}/0", ssl_ca_certs=str(certificate)) as client:
        store = MemoryStore(client, prefix="session:", ttl="7d")
        store.append("a", HI)
        assert store.load("a") == [HI]
        with pytest.raises(redis.ConnectionError), connect(f"redis://127.0.0.1:{port}/0") as plain:
            plain.ping()
