import contextlib
import socket
import subprocess

import pytest
import redis
from waiting import wait_for

from memkit import Sandbox, connect
from memkit.connect import connect_async, place, redact
from memkit.errors import MemkitError, ProductionGuardError, ServerError
from memkit.server import find_server, free_port
from memkit.server.guard import guard_write, started_by_memkit


@contextlib.contextmanager
def bare_server(*arguments):
    """A redis-server that memkit did not start; ended by its PID."""
    port = free_port()
    command = [find_server().path, "--port", str(port), "--bind", "127.0.0.1", "--dir", "/tmp", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_for("a server that listens", lambda: process.poll() is not None or connects(port))
        yield port
    finally:
        process.kill()
        process.wait()


def connects(port):
    """Whether something listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


NO_PERSISTENCE = ("--save", "", "--appendonly", "no")


@pytest.fixture(scope="module")
def foreign():
    with bare_server(*NO_PERSISTENCE) as port:
        yield port


@pytest.fixture(autouse=True)
def _no_permission(monkeypatch):
    monkeypatch.delenv("MEMKIT_ALLOW", raising=False)


@pytest.fixture
def client(foreign):
    with redis.Redis(port=foreign, db=3) as client:
        yield client
        client.delete("someones:1", "someones:2")


def test_an_empty_loopback_database_is_allowed(client):
    guard_write(client)


def test_foreign_keys_are_refused(client, foreign, monkeypatch):
    client.mset({"someones:1": 1, "someones:2": 2})
    with pytest.raises(ProductionGuardError, match="2 keys outside") as caught:
        guard_write(client)
    assert f"MEMKIT_ALLOW=127.0.0.1:{foreign}/3" in str(caught.value).replace("localhost", "127.0.0.1")
    monkeypatch.setenv("MEMKIT_ALLOW", f"elsewhere:1/0, localhost:{foreign}/3")
    guard_write(client)


@pytest.mark.parametrize("allow", ["localhost:{}/4", "*", "localhost:{}", "localhost:{}/*"])
def test_no_other_value_allows_writing(client, foreign, monkeypatch, allow):
    client.set("someones:1", 1)
    monkeypatch.setenv("MEMKIT_ALLOW", allow.format(foreign))
    with pytest.raises(ProductionGuardError):
        guard_write(client)


def test_a_refused_sandbox_writes_nothing(client, foreign):
    client.set("someones:1", 1)
    with pytest.raises(ProductionGuardError), Sandbox(f"redis://localhost:{foreign}/3"):
        pass
    assert client.keys() == [b"someones:1"]
    assert client.acl_users() == ["default"]


def test_an_append_only_file_is_refused(tmp_path):
    aof = bare_server("--appendonly", "yes", "--dir", str(tmp_path))
    with aof as port, pytest.raises(ProductionGuardError, match="append-only"):
        guard_write(f"redis://127.0.0.1:{port}/15")


def test_replication_is_refused_on_both_sides():
    with (
        bare_server(*NO_PERSISTENCE) as primary,
        bare_server(*NO_PERSISTENCE, "--replicaof", f"127.0.0.1 {primary}") as replica,
    ):
        with redis.Redis(port=primary) as client:
            wait_for("a replica", lambda: client.info("replication")["connected_slaves"])
        with pytest.raises(ProductionGuardError, match="1 replica"):
            guard_write(f"redis://127.0.0.1:{primary}/0")
        with pytest.raises(ProductionGuardError, match="it replicates a primary"):
            guard_write(f"redis://127.0.0.1:{replica}/0")


def test_many_other_clients_are_refused(client, foreign):
    with contextlib.ExitStack() as stack:
        for _ in range(6):
            stack.enter_context(redis.Redis(port=foreign)).ping()
        with pytest.raises(ProductionGuardError, match="other clients"):
            guard_write(client)


def test_a_server_started_by_memkit_is_recognised(memkit_server, client):
    with memkit_server.client() as own:
        assert started_by_memkit(own)
        own.set("anything", 1)
        guard_write(own)
        own.delete("anything")
    assert not started_by_memkit(client)


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("redis://db.example:6380/3", "db.example:6380/3"),
        ("redis://u:p@localhost", "localhost:6379/0"),
        ("unix:///run/redis.sock?db=2", "/run/redis.sock/2"),
        ("rediss://h:1/5", "h:1/5"),
    ],
)
def test_place_of_a_url_is_host_port_and_database(url, where):
    assert place(connect(url)) == where


@pytest.mark.parametrize(
    "url",
    [
        "http://x", "localhost:6379", "", "redis+cluster://nohost", "redis+sentinel://h:1", "redis+sentinel://h:1/a/b/c",
        "redis://localhost:99999999", "redis+ring://h:1", "redis+cluster://h:0", "redis+sentinel://h:1/s?socket_timeout=x",
    ],
)  # fmt: skip
def test_an_invalid_url_is_one_line_without_password(url):
    with pytest.raises(MemkitError) as caught:
        connect(url)
    assert isinstance(caught.value, ServerError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [connect, connect_async])
@pytest.mark.parametrize("options", ["nonsense=1", "socket_timeout=soon", "ssl_ca_certs=/ca.pem"])
def test_an_option_that_does_not_fit_is_an_error(make, options):
    with pytest.raises(ServerError, match="no option '(nonsense|ssl_ca_certs)'|Invalid value for 'socket_timeout'"):
        make(f"redis://h:1/0?{options}")


@pytest.mark.parametrize("make", [connect, connect_async])
def test_options_of_a_sentinel_url(make):
    client = make("rediss+sentinel://u:p%40@h:1/s/3?socket_timeout=7&sentinel_password=a%26b&ssl_ca_certs=/ca.pem")
    sentinels = client.connection_pool.sentinel_manager
    assert sentinels.sentinel_kwargs["password"] == "a&b"
    options = {"username": "u", "password": "p@", "db": 3, "socket_timeout": 7.0, "ssl_ca_certs": "/ca.pem"}
    assert {name: sentinels.connection_kwargs[name] for name in options} == options


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:hunter2@h:1/0", "redis://:hunter2@h:1/0", "rediss://u:hunter2@a,b:2/x", "unix:///s?password=hunter2",
        "redis://user:hun@ter2@h:1/0", "redis+cluster://u:hunter2@h", "redis://h/0?username=u&password=hunter2&db=1",
        "gopher://u:hunter2@h", "redis+sentinel://h:1/s?sentinel_password=hunter2",
    ],
)  # fmt: skip
def test_passwords_are_never_shown(url):
    assert "ter2" not in redact(url)
    with contextlib.suppress(MemkitError):
        connect(url.replace("redis://", "nonsense://"))
    with pytest.raises(MemkitError) as caught:
        connect(f"x{url}")
    assert "ter2" not in str(caught.value)
